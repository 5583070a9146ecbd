"""What control loops steer by: right on scenes with a known answer, steady under noise and lamp."""

import math
from itertools import pairwise

import numpy as np
import pytest

from photonstep import ShapeError
from photonstep.runtime.measures import centroid, focus_score


def spots(blur_px, *, light=100.0, shape=(96, 96)):
    """Points on a grid, as wide as defocus makes them; the total light does not change."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(float)
    image = np.full(shape, 5.0)
    for cy, cx in ((20.3, 24.6), (60.1, 30.2), (40.8, 70.5)):
        image += light * 9 / blur_px**2 * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * blur_px**2))
    return image


def test_sharper_scores_higher():
    scores = [focus_score(spots(blur)) for blur in (1.5, 2, 3, 4, 6)]
    assert all(a > 1.2 * b for a, b in pairwise(scores))


@pytest.mark.parametrize("seed", range(5))
def test_noise_hardly_moves_the_score(seed):
    rng = np.random.default_rng(seed)
    for blur in (2, 3):
        clean = focus_score(spots(blur))
        assert focus_score(rng.poisson(spots(blur))) == pytest.approx(clean, rel=0.15)


def test_noise_alone_scores_next_to_nothing():
    field = np.random.default_rng(0).poisson(20, (96, 96))
    assert focus_score(field) < 0.03 * focus_score(spots(3))


def test_the_lamp_does_not_move_the_score():
    assert focus_score(spots(2) * 7) == pytest.approx(focus_score(spots(2)))


def test_a_blank_image_scores_nothing():
    assert focus_score(np.zeros((32, 32), np.uint16)) == 0.0
    assert focus_score(np.full((33, 47), 100, np.uint8)) == 0.0


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
@pytest.mark.parametrize("at", [(20.0, 40.0), (31.3, 12.8), (50.5, 50.5)])
def test_the_centroid_is_where_the_light_is(at, dtype):
    y, x = np.mgrid[:64, :64].astype(float)
    image = 100 + 1000 * np.exp(-((y - at[0]) ** 2 + (x - at[1]) ** 2) / (2 * 3.0**2))
    assert centroid(image.astype(dtype)) == pytest.approx(at, abs=0.02)


@pytest.mark.parametrize("seed", range(5))
def test_noise_does_not_pull_the_centroid_to_the_middle(seed):
    y, x = np.mgrid[:128, :128].astype(float)
    image = 20 + 100 * np.exp(-((y - 20) ** 2 + (x - 100) ** 2) / (2 * 3.0**2))
    noisy = np.random.default_rng(seed).poisson(image)
    assert centroid(noisy) == pytest.approx((20, 100), abs=1.0)


def test_nothing_that_stands_out_has_no_centre():
    assert all(map(math.isnan, centroid(np.full((32, 32), 7, np.uint16))))


def test_bad_pixels_are_bridged():
    image = np.full((32, 32), 5.0, np.float32)
    image[10, 20] = 500
    image[0, 0] = np.nan
    assert centroid(image) == pytest.approx((10, 20))
    assert math.isfinite(focus_score(image))


@pytest.mark.parametrize("measure", [focus_score, centroid])
@pytest.mark.parametrize(
    "wrong", [np.zeros((3, 32, 32)), np.zeros((8, 32)), np.zeros((32, 32), complex), [[1]], np.full((32, 32), np.nan)]
)
def test_what_is_no_image_is_refused(measure, wrong):
    with pytest.raises(ShapeError, match="image"):
        measure(wrong)
