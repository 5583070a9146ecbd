"""Similarity of two frames: 1 for a static scene, more where a part of it changed, whatever the noise is like."""

import numpy as np
import pytest
from simulated_frames import lag_1
from test_temporal import BLUR, noisy, scene

from photonstep.kernels import ops, reference
from photonstep.kernels.reference.similarity import largest_by_noise


@pytest.mark.parametrize("taps", [None, BLUR])
@pytest.mark.parametrize("side", [64, 200])
def test_static_scenes_are_about_one(taps, side):
    rng = np.random.default_rng(0)
    clean = scene(side, side)
    correlation = (0.0, 0.0) if taps is None else (lag_1(taps), lag_1(taps))
    values = [
        ops.similarity(noisy(clean, rng, taps), noisy(clean, rng, taps), noise_correlation=correlation)
        for _ in range(20)
    ]
    assert min(values) > 0.93
    assert np.mean(values) == pytest.approx(1, abs=0.04)
    assert max(values) < 1.15


def test_one_pair_in_a_hundred_is_a_false_alarm():
    rng = np.random.default_rng(1)
    alarms = 0
    for _ in range(300):
        half = (rng.normal(size=(96, 96)) ** 2).astype(np.float32)
        largest = float(reference.block_means(half, 8).max())
        alarms += largest > largest_by_noise(144, 8, (0.0, 0.0))
    assert alarms <= 9


def test_a_small_moving_spot_is_noticed():
    rng = np.random.default_rng(2)
    y, x = np.mgrid[:256, :256]
    spot = [scene(256, 256) + 8 * np.exp(-((y - 99) ** 2 + (x - c) ** 2) / 4) for c in (80, 84)]
    assert ops.similarity(noisy(spot[0], rng), noisy(spot[0], rng)) < 1.15
    assert ops.similarity(noisy(spot[1], rng), noisy(spot[0], rng)) > 1.5


def test_a_faint_change_everywhere_is_noticed():
    rng = np.random.default_rng(3)
    assert ops.similarity(noisy(scene() + 0.7, rng), noisy(scene(), rng)) > 1.15


def test_a_few_hot_pixels_hardly_touch_the_mean_over_the_frame():
    rng = np.random.default_rng(4)
    z, previous = noisy(scene(256, 256), rng), noisy(scene(256, 256), rng)
    squared = (z - previous) ** 2 / 2
    z[::64, ::64] += 100
    cut = np.mean(np.minimum((z - previous) ** 2 / 2, 9)) / 0.9865233
    assert cut == pytest.approx(np.mean(np.minimum(squared, 9)) / 0.9865233, abs=0.01)
    assert ops.similarity(z, previous) > 10  # the blocks see them


def test_equal_frames_differ_by_nothing():
    z = np.full((20, 30), 7, np.float32)
    assert ops.similarity(z, z.copy()) == 0


def test_agrees_with_its_float64_oracle_and_takes_frames_of_any_size():
    rng = np.random.default_rng(5)
    for shape in ((1, 1), (3, 50), (37, 61)):
        z, previous = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
        oracle = reference.similarity(z.astype(np.float64), previous.astype(np.float64))
        assert ops.similarity(z, previous) == pytest.approx(oracle, rel=1e-5)


@pytest.mark.parametrize("wrong", [np.ones((8, 8)), np.ones((8, 9), np.float32), np.ones(8, np.float32), [[1.0]]])
def test_frames_that_do_not_fit_are_refused(wrong):
    with pytest.raises(ops.FrameError, match="expected"):
        ops.similarity(np.ones((8, 8), np.float32), wrong)
