"""Temporal fusion: its claims about noise are true, what moved is not held, nothing of the future is used."""

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from simulated_frames import lag_1, photograph, photons_of

from photonstep import Camera, PlanError, ShapeError
from photonstep.kernels import ops, reference
from photonstep.runtime.light import UNCHANGED, light_change
from photonstep.runtime.temporal import FusionSettings, TemporalFusion

CAMERA = Camera(offset_adu=100.0, gain_e_per_adu=0.5, readout_noise_e=1.6)
BLUR = (0.3, 1.0, 0.3)
OPEN = ops.Limits(point=1e3, small=1e3, large=1e3, motion=1e3, spread=1e3)


def scene(height=96, width=96, contrast=6.0):
    """A smooth scene with slopes, z from 4 up."""
    y, x = np.mgrid[:height, :width]
    return 4 + contrast * np.exp(-((np.sin(y / 9.0) + np.cos(x / 7.0)) ** 2))


def noisy(clean, rng, taps=None):
    """(H, W) float32 with noise of unit variance, filtered along both axes where taps are given."""
    noise = rng.normal(size=np.shape(clean))
    if taps is not None:
        unit = np.asarray(taps) / np.linalg.norm(taps)
        for axis in (0, 1):
            noise = sum(w * np.roll(noise, k, axis) for k, w in enumerate(unit))
    return (clean + noise).astype(np.float32)


def run(frames, settings=None, camera=CAMERA):
    """(fused, noise) of every frame, copied."""
    fusion, steps = TemporalFusion(settings), []
    for z in frames:
        fused, noise = fusion.update(z, camera)
        steps.append((fused.copy(), np.broadcast_to(np.float32(noise), z.shape).copy()))
    return steps


# --- the step ---


@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (37, 53)])
@pytest.mark.parametrize("correlation", [(0.0, 0.0), (0.5, 0.2)])
def test_step_agrees_with_its_float64_oracle(shape, correlation):
    rng = np.random.default_rng(1)
    z = (scene(*shape) + rng.normal(size=shape)).astype(np.float32)
    mean = (scene(*shape) + rng.normal(size=shape)).astype(np.float32)
    mean[: shape[0] // 2] += 3  # changed there
    variance = rng.uniform(0.25, 1, shape).astype(np.float32)
    told = {"n_max": 4.0, "limits": FusionSettings().limits, "emphasis": 16.0, "noise_correlation": correlation,
            "light": (1.03, -0.2)}  # fmt: skip
    oracle = reference.fuse(*(a.astype(np.float64) for a in (z, mean, variance)), **told)
    plain = reference.fuse(z, mean, variance, **told)
    for mine, theirs, exact in zip(ops.fuse(z, mean, variance, **told), plain, oracle, strict=True):
        assert mine.dtype == np.float32
        assert np.abs(mine - exact).max() <= 2 * np.abs(theirs - exact).max() + 1e-5


def test_variance_is_exact_and_ends_at_one_in_n_max():
    z = np.zeros((8, 8), np.float32)
    mean, variance = np.zeros_like(z), np.ones_like(z)
    seen = []
    for _ in range(20):
        mean, variance = ops.fuse(z, mean, variance, n_max=4.0, limits=OPEN, emphasis=16.0)
        seen.append(float(variance[4, 4]))
    weights = np.array([1.0])
    for variance in seen:  # of the weights that the frames have in the mean
        gain = max(1 - 1 / (1 + np.sum(weights**2)), 2 / 5)
        weights = np.append((1 - gain) * weights, gain)
        assert variance == pytest.approx(np.sum(weights**2), abs=1e-6)
    assert seen[-1] == pytest.approx(1 / 4, abs=1e-4)
    assert min(seen) >= 0.25 - 1e-6


def test_outputs_go_where_they_are_told_and_never_onto_an_input():
    z, mean, variance = (np.ones((9, 7), np.float32) for _ in range(3))
    out_mean, out_variance = np.empty_like(z), np.empty_like(z)
    told = {"n_max": 4.0, "limits": OPEN, "emphasis": 16.0}
    made = ops.fuse(z, mean, variance, **told, out_mean=out_mean, out_variance=out_variance)
    assert made[0] is out_mean and made[1] is out_variance
    for wrong in ({"out_mean": mean}, {"out_variance": z}, {"out_mean": out_mean, "out_variance": out_mean}):
        with pytest.raises(ops.FrameError, match="shares memory"):
            ops.fuse(z, mean, variance, **told, **wrong)


@pytest.mark.parametrize("wrong", [np.ones((9, 7)), np.ones((9, 8), np.float32), np.ones(9, np.float32), None])
def test_arrays_that_do_not_fit_are_refused(wrong):
    good = np.ones((9, 7), np.float32)
    with pytest.raises(ops.FrameError, match="mean"):
        ops.fuse(
            good, wrong, good, n_max=4.0, limits=OPEN, emphasis=1.0, out_mean=good.copy(), out_variance=good.copy()
        )
    with pytest.raises(ops.FrameError):
        ops.fused_noise(good, out=wrong if wrong is not None else np.ones((2, 2), np.float32))


def test_slope_noise_is_what_white_noise_makes():
    noise = np.random.default_rng(0).normal(size=(400, 400))
    for axis in (0, 1):
        assert np.var(reference.temporal.slope(noise, axis)) == pytest.approx(reference.temporal.SLOPE_NOISE, rel=0.02)


@pytest.mark.parametrize(("taps", "window"), [((1.0,), 3), ((1.0,), 7), ((1.0, 0.4), 3), (BLUR, 7)])
def test_noise_left_in_a_window_is_not_told_too_small(taps, window):
    noise = noisy(np.zeros((500, 500)), np.random.default_rng(0), taps).astype(np.float64)
    correlation = (lag_1(taps), lag_1(taps))
    measured = np.var(reference.temporal.box_mean(noise, window))
    told = reference.temporal.noise_left(window, correlation)
    assert 0.92 * measured <= told <= 2.2 * measured


# --- what is claimed about the noise ---


@pytest.mark.parametrize("taps", [None, BLUR])
@pytest.mark.parametrize("n_max", [2, 4, 8])
def test_claimed_noise_is_measured_noise_on_a_static_scene(taps, n_max):
    rng = np.random.default_rng(5)
    clean = scene()
    correlation = (0.0, 0.0) if taps is None else (lag_1(taps), lag_1(taps))
    camera = replace(CAMERA, noise_correlation=correlation)
    measured, claimed = [], []
    for _ in range(6):
        fused, noise = run([noisy(clean, rng, taps) for _ in range(12)], FusionSettings(n_max=n_max), camera)[-1]
        measured.append(np.mean((fused - clean) ** 2))
        claimed.append(np.mean(noise**2))
    assert np.mean(claimed) >= 0.95 * np.mean(measured)
    # a false alarm costs more where there is more past to lose
    assert np.mean(claimed) <= {2: 1.15, 4: 1.3, 8: 1.8}[n_max] / n_max
    assert np.mean(claimed) >= 1 / n_max - 1e-6


def test_nothing_is_fused_at_first_and_with_one_frame():
    rng = np.random.default_rng(0)
    frames = [noisy(scene(), rng) for _ in range(3)]
    fused, noise = TemporalFusion().update(frames[0], CAMERA)
    assert noise == 1.0
    np.testing.assert_array_equal(fused, frames[0])
    fused, noise = run(frames, FusionSettings(n_max=1, follow_light=False))[-1]
    np.testing.assert_allclose(fused, frames[-1], atol=1e-5)
    np.testing.assert_allclose(noise, 1, atol=1e-5)


# --- change ---


def test_a_square_that_appears_is_shown_at_once_and_the_rest_kept():
    rng = np.random.default_rng(2)
    before, after = scene(), scene()
    after[30:50, 30:50] += 8
    steps = run([noisy(before, rng) for _ in range(8)] + [noisy(after, rng)])
    fused, noise = steps[-1]
    inside, outside = np.s_[33:47, 33:47], np.s_[60:, 60:]
    assert abs(np.mean(fused[inside] - after[inside])) < 0.05 * 8
    assert noise[inside].mean() > 0.9
    assert noise[outside].mean() < 0.6
    assert np.mean((fused - after)[outside] ** 2) < 0.33


def test_a_spot_that_moves_by_a_fraction_of_a_pixel_does_not_lag():
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:40, :60]
    lag = []
    for _ in range(12):
        fusion = TemporalFusion()
        for t in range(16):
            place = 20 + 0.5 * t
            clean = 4 + 10 * np.exp(-((y - 20) ** 2 + (x - place) ** 2) / (2 * 1.5**2))
            fused, _ = fusion.update(noisy(clean, rng), CAMERA)
        near = np.exp(-((y - 20) ** 2 + (x - place) ** 2) / (2 * 1.5**2))
        slope = near * (x - place) / 1.5**2
        # least-squares shift from the true place
        lag.append(-np.sum((fused - clean) * slope) / (10 * np.sum(slope**2)))
    assert abs(np.mean(lag)) < 0.2
    without_test = replace(FusionSettings(), point_limit=100, small_limit=100, large_limit=100, motion_limit=100,
                           spread_limit=100)  # fmt: skip
    frames = [4 + 10 * np.exp(-((y - 20) ** 2 + (x - 20 - 0.5 * t) ** 2) / (2 * 1.5**2)) for t in range(16)]
    held = run([noisy(f, rng) for f in frames], without_test)[-1][0]
    assert -np.sum((held - clean) * slope) / (10 * np.sum(slope**2)) > 0.4  # what the test is there for


def test_a_new_scene_starts_anew():
    rng = np.random.default_rng(4)
    other = scene()[::-1, ::-1] + 4 * (np.mgrid[:96, :96][0] > 40)
    fused, _ = run([noisy(scene(), rng) for _ in range(6)] + [noisy(other, rng)])[-1]
    changed = np.abs(other - scene()) > 4
    assert abs(np.mean((fused - other)[changed])) < 0.2


# --- light ---


@pytest.mark.parametrize("gain", [0.8, 0.95, 1.1, 1.25])
def test_light_is_followed(gain):
    rng = np.random.default_rng(6)
    photons = 5 + 20 * (scene() - 4) / 6
    mean = np.mean([CAMERA.stabilise(photograph(photons, gain=0.5, offset=100, readout=1.6, seed=s)) for s in range(4)],
                   axis=0, dtype=np.float32)  # fmt: skip
    z = CAMERA.stabilise(photograph(gain * photons, gain=0.5, offset=100, readout=1.6, seed=int(rng.integers(1000))))
    factor, shift = light_change(z, mean, np.full_like(z, 0.25))
    brought = np.sqrt(factor * np.square(2 * np.sqrt(photons + 0.375 + 1.6**2)) + shift)
    assert np.abs(brought - 2 * np.sqrt(gain * photons + 0.375 + 1.6**2)).max() < 0.15


def test_noise_alone_tilts_no_line():
    rng = np.random.default_rng(7)
    flat = np.full((256, 256), 8.0)
    tilts = []
    for _ in range(5):
        mean = (flat + 0.5 * rng.normal(size=flat.shape)).astype(np.float32)
        tilts.append(light_change(noisy(flat, rng), mean, np.full(flat.shape, 0.25, np.float32))[0])
    assert abs(np.mean(tilts) - 1) < 0.02


def test_things_that_move_are_not_the_light():
    rng = np.random.default_rng(8)
    after = scene(128, 128)
    after[:64, :50] += 5
    mean = (scene(128, 128) + 0.5 * rng.normal(size=after.shape)).astype(np.float32)
    gain, shift = light_change(noisy(after, rng), mean, np.full(after.shape, 0.25, np.float32))
    assert abs(gain - 1) < 0.02
    assert abs(shift) < 0.5


def test_another_scene_or_a_tiny_frame_says_nothing_about_the_light():
    rng = np.random.default_rng(9)
    quarter = np.full((64, 64), 0.25, np.float32)
    assert light_change(noisy(scene(64, 64), rng), noisy(3 * scene(64, 64), rng), quarter) == UNCHANGED
    tiny = np.ones((7, 64), np.float32)
    assert light_change(tiny, 2 * tiny, tiny) == UNCHANGED


def test_bleaching_neither_resets_nor_biases():
    photons = 5 + 25 * (scene() - 4) / 6
    fusion = TemporalFusion()
    for t in range(15):
        light = photons * 0.97**t
        z = CAMERA.stabilise(photograph(light, gain=0.5, offset=100, readout=1.6, seed=t))
        fused, noise = fusion.update(z, CAMERA)
    truth = 2 * np.sqrt(light + 0.375 + 1.6**2)
    assert np.mean(noise) < 0.58
    # the transform's own bias, a quarter of an electron, is in every frame
    assert abs(np.mean(fused - truth) - np.mean(z - truth)) < 0.03


# --- the memory of a sequence ---


def test_no_frame_knows_of_a_later_one():
    rng = np.random.default_rng(10)
    frames = [noisy(scene(), rng) for _ in range(6)]
    other = [*frames[:4], noisy(scene() + 5, rng), noisy(scene() - 2, rng)]
    for mine, theirs in zip(run(frames)[:4], run(other)[:4], strict=True):
        np.testing.assert_array_equal(mine[0], theirs[0])
        np.testing.assert_array_equal(mine[1], theirs[1])
    assert not np.array_equal(run(frames)[4][0], run(other)[4][0])


def test_same_frames_same_pixels_and_inputs_untouched():
    rng = np.random.default_rng(11)
    frames = [noisy(scene(), rng) for _ in range(4)]
    kept = [f.copy() for f in frames]
    first, second = run(frames), run(frames)
    np.testing.assert_array_equal(first[-1][0], second[-1][0])
    for frame, copy in zip(frames, kept, strict=True):
        np.testing.assert_array_equal(frame, copy)


def test_reset_and_a_new_shape_forget():
    rng = np.random.default_rng(12)
    fusion = TemporalFusion()
    for _ in range(4):
        fusion.update(noisy(scene(), rng), CAMERA)
    fusion.reset()
    z = noisy(scene() + 0.3, rng)
    fused, noise = fusion.update(z, CAMERA)
    assert noise == 1.0
    np.testing.assert_array_equal(fused, z)
    fusion.update(z, CAMERA)
    small = noisy(scene(40, 50), rng)
    fused, noise = fusion.update(small, CAMERA)
    assert noise == 1.0
    np.testing.assert_array_equal(fused, small)


@pytest.mark.parametrize("first", [0, 1], ids=["from the first frame", "later"])
def test_a_number_in_place_of_a_pixel_is_no_measurement(first):
    """Numbers a little off the scene, which no test would notice: the next measurement counts alone."""
    rng = np.random.default_rng(14)
    clean = scene()
    missing = rng.random(clean.shape) < 0.03
    fusion = TemporalFusion()
    for step in range(4):
        z = noisy(clean, rng)
        gap = missing if first <= step < 3 else None
        if gap is not None:
            z[gap] = clean[gap] - 1.5
        fused, noise = fusion.update(z, CAMERA, gap)
    np.testing.assert_array_equal(fused[missing], z[missing])
    assert (np.abs(fused[~missing] - z[~missing]) > 1e-3).mean() > 0.99  # the others keep their past
    assert np.median(noise) < 0.7
    again, _ = fusion.update(noisy(clean, rng), CAMERA)
    assert (again[missing] != z[missing]).all()  # and from then on it is fused like the others


def test_pixels_that_were_not_measured_are_shown_as_the_mean_and_disturb_nobody():
    rng = np.random.default_rng(15)
    frames = [noisy(scene(), rng) for _ in range(3)]
    gap = np.zeros(frames[0].shape, bool)
    gap[40:44, 40:44] = True
    still = FusionSettings(follow_light=False)
    with_gap, whole = TemporalFusion(still), TemporalFusion(still)
    for z in frames[:2]:
        past = with_gap.update(z, CAMERA)[0].copy()
        whole.update(z, CAMERA)
    broken = np.where(gap, np.float32(60), frames[2])
    fused, _ = with_gap.update(broken, CAMERA, gap)
    np.testing.assert_array_equal(fused[gap], past[gap])
    far = np.ones_like(gap)
    far[34:50, 34:50] = False
    np.testing.assert_array_equal(fused[far], whole.update(frames[2], CAMERA)[0][far])


def test_buffers_are_kept_and_results_cannot_be_written_to():
    rng = np.random.default_rng(13)
    fusion = TemporalFusion()
    places = set()
    for _ in range(8):
        fused, noise = fusion.update(noisy(scene(), rng), CAMERA)
        places.add(fused.__array_interface__["data"][0])
        with pytest.raises(ValueError, match="read-only"):
            fused[0, 0] = 0
    with pytest.raises(ValueError, match="read-only"):
        noise[0, 0] = 0
    assert len(places) == 2


@pytest.mark.parametrize(
    "z",
    [np.ones((8, 8)), np.ones((2, 8, 8), np.float32), np.ones((0, 8), np.float32), [[1.0]],
     np.full((8, 8), np.nan, np.float32)],
)  # fmt: skip
def test_frames_that_cannot_be_fused_are_refused_and_leave_the_past_alone(z):
    good = np.full((8, 8), 5, np.float32)
    fusion = TemporalFusion()
    fusion.update(good, CAMERA)
    with pytest.raises(ShapeError, match="expected"):
        fusion.update(z, CAMERA)
    _, noise = fusion.update(good, CAMERA)
    assert noise is not None and np.mean(noise) == pytest.approx(0.5**0.5, abs=1e-3)


@pytest.mark.parametrize(
    "wrong",
    [{"n_max": 0.5}, {"n_max": 65}, {"n_max": "4"}, {"n_max": True}, {"n_max": float("nan")}, {"point_limit": 0},
     {"small_limit": -1}, {"large_limit": None}, {"motion_limit": 1e3}, {"spread_limit": float("inf")},
     {"emphasis": -1}, {"follow_light": 1}],
)  # fmt: skip
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(PlanError, match=next(iter(wrong))):
        FusionSettings(**wrong)


def test_settings_are_frozen():
    with pytest.raises(FrozenInstanceError):
        FusionSettings().n_max = 8


# --- restored ---


def test_restoring_a_fused_static_scene_gains_two_decibels(restorer, lysosome):
    photons = photons_of(lysosome, peak=20)
    camera = Camera(offset_adu=100.0, gain_e_per_adu=0.5, readout_noise_e=1.6)
    fusion, error = TemporalFusion(), {"single": [], "fused": []}
    for t in range(8):
        frame = photograph(photons, gain=0.5, offset=100, readout=1.6, dtype=np.uint16, seed=t)
        for kind, memory in (("single", None), ("fused", fusion)):
            image = restorer.restore(frame, camera=camera, steps=1, output="photoelectrons", fusion=memory).image
            error[kind].append(np.mean((image - photons) ** 2))
    gain_db = 10 * np.log10(np.mean(error["single"][4:]) / np.mean(error["fused"][4:]))
    assert gain_db >= 2
