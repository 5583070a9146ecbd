"""The model's range: where frames land in it, and that it moves slowly over a sequence."""

import numpy as np
import pytest

from photonstep.runtime.manifest import Normalisation
from photonstep.runtime.normalise import ModelRange, RangeTracker

SETTINGS = Normalisation(
    method="block_percentile",
    block_px=4,
    low_percent=0.5,
    high_percent=99.5,
    minimum_range_z=4.0,
    low_u=-0.5,
    high_u=0.5,
)


def ramp(low, high, shape=(64, 64)):
    return np.broadcast_to(np.linspace(low, high, shape[1], dtype=np.float32), shape).copy()


def test_the_percentiles_land_on_the_ends_of_the_range():
    z = ramp(10, 50, (64, 4000))
    model_range = RangeTracker(SETTINGS).update(z)
    u = model_range.to_model(z.copy())
    assert u.min() == pytest.approx(-0.505, abs=0.002)
    assert u.max() == pytest.approx(0.505, abs=0.002)
    assert model_range.sigma == pytest.approx(1 / (0.99 * 40), rel=0.01)


def test_sigma_is_one_unit_of_z():
    model_range = ModelRange(centre_z=12.0, span_z=20.0)
    z = np.float32([[12.0, 13.0]])
    u = model_range.to_model(z.copy())
    assert u[0, 1] - u[0, 0] == pytest.approx(model_range.sigma)


def test_there_and_back():
    z = np.random.default_rng(0).normal(20, 6, (40, 50)).astype(np.float32)
    model_range = RangeTracker(SETTINGS).update(z)
    u = model_range.to_model(z.copy())
    assert u.dtype == np.float32
    np.testing.assert_allclose(model_range.from_model(u), z, atol=1e-5)
    kept = u.copy()
    model_range.from_model(u)
    np.testing.assert_array_equal(u, kept)


def test_a_flat_frame_has_the_smallest_range_and_stays_finite():
    model_range = RangeTracker(SETTINGS).update(np.full((32, 32), 9.0, np.float32))
    assert model_range.span_z == pytest.approx(4.0)
    assert np.isfinite(model_range.to_model(np.full((32, 32), 9.0, np.float32))).all()


def test_single_bright_pixels_do_not_stretch_the_range():
    z = ramp(10, 50)
    hot = z.copy()
    hot[5, 7] = 1000
    calm, disturbed = (RangeTracker(SETTINGS).update(a) for a in (z, hot))
    assert disturbed.span_z == pytest.approx(calm.span_z, rel=0.02)


def test_the_first_frame_is_taken_as_it_is_and_later_ones_slowly():
    tracker = RangeTracker(SETTINGS, memory=0.9)
    spans = [tracker.update(ramp(0, 40)).span_z for _ in range(2)]
    assert spans[0] == pytest.approx(spans[1])
    brighter = [tracker.update(ramp(0, 48)).span_z for _ in range(60)]
    assert brighter[0] == pytest.approx(1.02 * spans[0], rel=1e-3)
    assert np.all(np.diff(brighter) > 0)
    assert brighter[-1] == pytest.approx(1.2 * spans[0], rel=0.01)


@pytest.mark.parametrize("other", [ramp(0, 80), ramp(0, 8), ramp(30, 70)])
def test_another_scene_starts_anew(other):
    tracker = RangeTracker(SETTINGS, memory=0.9)
    tracker.update(ramp(0, 40))
    assert tracker.update(other) == RangeTracker(SETTINGS).update(other)


def test_without_memory_every_frame_stands_alone():
    tracker = RangeTracker(SETTINGS, memory=0.0)
    tracker.update(ramp(0, 400))
    assert tracker.update(ramp(0, 40)).span_z == pytest.approx(RangeTracker(SETTINGS).update(ramp(0, 40)).span_z)


def test_a_steady_scene_does_not_flicker():
    """Noise alone moves the range by less than a hundredth of its span from frame to frame."""
    rng, tracker = np.random.default_rng(1), RangeTracker(SETTINGS)
    ranges = [tracker.update(ramp(10, 50) + rng.normal(size=(64, 64)).astype(np.float32)) for _ in range(20)]
    centres, spans = (np.array([getattr(r, name) for r in ranges]) for name in ("centre_z", "span_z"))
    assert np.abs(np.diff(centres)).max() < 0.01 * spans.mean()
    assert np.abs(np.diff(spans)).max() < 0.01 * spans.mean()


def test_a_frame_smaller_than_a_block_is_one_block():
    assert RangeTracker(SETTINGS).update(np.full((2, 3), 5.0, np.float32)).span_z == pytest.approx(4.0)
