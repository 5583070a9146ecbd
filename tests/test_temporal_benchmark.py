"""The scenes that fusion is judged on do what they say, and what measures them finds the truth in clean frames."""

import numpy as np
import pytest

from benchmarks import temporal
from benchmarks.temporal_scenes import (
    BACKGROUND_E,
    CAMERA,
    drifting,
    light_of,
    locate,
    photograph,
    spots,
    structures,
    uncovered,
)
from photonstep.runtime.temporal import FusionSettings


def test_spots_are_found_where_they_are_and_as_bright_as_they_are():
    grid = spots(30.0, seed=1)
    shown = grid.at(shift_px=1.75)
    for y, x, way in grid.places(1.75):
        assert way in (-1, 1)
        assert locate(shown, y + 0.4, x - 0.4) == pytest.approx((y, x), abs=0.02)
        assert light_of(shown, y, x) == pytest.approx(30, rel=0.02)
    assert light_of(grid.at(weight=0.0), 20, 20) == pytest.approx(0, abs=1e-9)


def test_a_drifting_field_moves_by_its_step():
    _, field = next(iter(structures(0)))
    np.testing.assert_allclose(drifting(field, 10, 0.5)(4), 1 + 10 * np.roll(field, 2, axis=1), atol=1e-9)


def test_the_plate_uncovers_the_background():
    scene = uncovered(50.0, 4, np.zeros((128, 128)))
    assert scene(0)[0, 90] == 50
    assert scene(2)[0, 90] == pytest.approx(0.7 * BACKGROUND_E)


def test_photographs_have_the_camera_s_noise():
    photons = np.full((256, 256), 20.0)
    electrons = (photograph(photons, np.random.default_rng(0)) - CAMERA.offset_adu) * CAMERA.gain_e_per_adu
    assert electrons.mean() == pytest.approx(20, abs=0.1)
    assert electrons.var() == pytest.approx(20 + CAMERA.readout_noise_e**2, rel=0.05)


def test_settling_counts_frames_that_are_behind():
    single = np.array([0.0, 0, 10, 10, 10, 10])
    row = temporal._settling(np.array([single, [0, 0, 6, 9, 9.8, 10]]), 2)
    assert row["frames"] == 2
    assert row["first_frame_off_percent"] == pytest.approx(-40)
    assert temporal._settling(np.array([single, single]), 2)["frames"] == 0


def test_fusion_gains_on_a_static_scene_and_tables_print(restorer):
    _, field = next(iter(structures(0)))
    scene = temporal._constant(1.0 + 10 * field)
    single, fused = (temporal.psnr_db(images, scene, 4) for images in temporal.pair(restorer, scene, 6, seed=3))
    assert fused - single >= 2
    alone = temporal.restore(restorer, scene, 6, 3, FusionSettings(n_max=1))
    assert temporal.psnr_db(alone, scene, 4) == pytest.approx(single, abs=0.05)
    assert temporal.table([{"light_e": 10.0, "gain_db": fused}]).splitlines()[0] == "| light e | gain db |"
