"""The camera from the frames alone: real clean structure, simulated cameras, noise white and correlated."""

import numpy as np
import pytest
from scipy import ndimage
from simulated_frames import lag_1, photograph, photons_of

from photonstep import Camera, CameraError, ShapeError
from photonstep.kernels import ops
from photonstep.runtime import noise_estimate

GAIN, OFFSET = 0.5, 100.0
KERNELS = {
    "white": None,
    "blurred": ([0.3, 1.0, 0.3], [0.3, 1.0, 0.3]),
    "shared along x": ([1.0], [1.0, 0.8]),
}
SCENES = ("confocal", "two_photon", "widefield", "lysosome")


@pytest.fixture(params=SCENES)
def scene(request):
    """A real frame with its own noise smoothed away: what the simulated camera looks at."""
    found = request.getfixturevalue(request.param)
    return ndimage.gaussian_filter(getattr(found, "reference", found).astype(np.float64), 1.0)


def photographs(scene, *, peak, readout, kernel, frames=3):
    """Frames of one camera and the clean photons."""
    photons = photons_of(scene, peak=peak)
    shots = [
        photograph(photons, gain=GAIN, offset=OFFSET, readout=readout, kernel=kernel, seed=s) for s in range(frames)
    ]
    return np.stack(shots), photons


def true_correlation(kernel):
    return (0.0, 0.0) if kernel is None else tuple(lag_1(taps) for taps in kernel)


def noise_adu(camera, level_adu):
    """Standard deviation, ADU, that the camera promises at a brightness."""
    electrons = (level_adu - camera.offset_adu) * camera.gain_e_per_adu
    return np.sqrt(max(electrons, 0.0) + camera.readout_noise_e**2) / camera.gain_e_per_adu


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_dim_frames_give_gain_and_correlation(scene, kernel):
    frames, _ = photographs(scene, peak=20, readout=0.5, kernel=kernel)
    camera = Camera.estimate(frames)
    assert camera.source == "estimated"
    assert camera.gain_e_per_adu == pytest.approx(GAIN, rel=0.25)
    assert camera.noise_correlation == pytest.approx(true_correlation(kernel), abs=0.12)


@pytest.mark.parametrize("peak", [60, 300])
def test_bright_frames_with_white_noise_give_gain_and_correlation(scene, peak):
    frames, _ = photographs(scene, peak=peak, readout=0.5, kernel=None)
    camera = Camera.estimate(frames)
    assert camera.gain_e_per_adu == pytest.approx(GAIN, rel=0.25)
    assert camera.noise_correlation == pytest.approx((0, 0), abs=0.12)


@pytest.mark.parametrize("readout", [0.5, 3.0])
@pytest.mark.parametrize("peak", [20, 60, 300])
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_the_strength_of_the_noise_is_right_at_every_brightness(scene, kernel, peak, readout):
    """Gain, offset and readout noise trade places in one frame; what restoration needs is the noise they add up to."""
    frames, photons = photographs(scene, peak=peak, readout=readout, kernel=kernel)
    camera = Camera.estimate(frames)
    levels = np.array([photons.mean(), np.percentile(photons, 95)])
    promised = np.array([noise_adu(camera, n / GAIN + OFFSET) for n in levels])
    np.testing.assert_allclose(promised, np.sqrt(levels + readout**2) / GAIN, rtol=0.32)
    assert camera.noise_correlation == pytest.approx(true_correlation(kernel), abs=0.2)


@pytest.mark.parametrize("name", ["confocal", "two_photon", "widefield"])
def test_real_frames_give_the_noise_that_their_reference_shows(name, request):
    """No simulation: the raw capture minus the mean of 50 is the noise itself."""
    pair = request.getfixturevalue(name)
    noise = pair.raw.astype(np.float32) - pair.reference
    camera = Camera.estimate(pair.raw)
    level = float(pair.reference.mean())
    near = np.abs(pair.reference.astype(float) - level) < 0.3 * level
    assert noise_adu(camera, level) == pytest.approx(float(noise[near].std()), rel=0.3)
    variance, along_y, along_x = ops.lag_products(noise)
    assert camera.noise_correlation == pytest.approx((along_y / variance, along_x / variance), abs=0.15)


def test_a_restored_scene_is_never_cut_off_by_the_offset(scene):
    frames, photons = photographs(scene, peak=100, readout=2, kernel=None)
    camera = Camera.estimate(frames)
    assert 0 <= camera.offset_adu <= photons.min() / GAIN + OFFSET + 2


def test_the_unit_of_the_counts_does_not_matter(confocal):
    """Counts in other units (float frames scaled to 0..1, say) give the same photons."""
    plain = Camera.estimate(confocal.raw.astype(np.float32))
    scaled = Camera.estimate(confocal.raw.astype(np.float32) / 256)
    assert scaled.gain_e_per_adu / 256 == pytest.approx(plain.gain_e_per_adu, rel=0.02)
    assert scaled.noise_correlation == pytest.approx(plain.noise_correlation, abs=0.02)


def test_axes_are_not_confused(two_photon):
    kernel = KERNELS["shared along x"]
    frames, _ = photographs(two_photon.reference, peak=20, readout=1, kernel=kernel)
    along = Camera.estimate(frames).noise_correlation
    turned = Camera.estimate(np.ascontiguousarray(frames.transpose(0, 2, 1))).noise_correlation
    assert along[1] - along[0] > 0.25
    assert turned[0] - turned[1] > 0.25


def test_estimates_repeat_and_leave_the_frame_alone(confocal):
    frame = confocal.raw.copy()
    first, second = Camera.estimate(frame), Camera.estimate(frame)
    assert first.summary() == second.summary()
    np.testing.assert_array_equal(frame, confocal.raw)


def test_a_stack_is_pooled(two_photon):
    frames, _ = photographs(two_photon.reference, peak=40, readout=1, kernel=None, frames=6)
    single = Camera.estimate(frames[0])
    pooled = Camera.estimate(frames)
    assert pooled.gain_e_per_adu == pytest.approx(GAIN, rel=0.25)
    assert single.gain_e_per_adu != pooled.gain_e_per_adu
    assert Camera.estimate(frames[:1]).summary() == single.summary()


def test_a_large_frame_is_sampled_and_agrees_with_the_whole(confocal):
    tiled = np.tile(photograph(photons_of(confocal.reference, peak=40), gain=GAIN, seed=3), (5, 5))
    assert tiled.size > noise_estimate.MAXIMUM_PIXELS
    assert Camera.estimate(tiled).gain_e_per_adu == pytest.approx(GAIN, rel=0.25)


def test_a_few_missing_pixels_change_little(confocal):
    frame = confocal.raw.astype(np.float32)
    holed = frame.copy()
    holed[np.random.default_rng(0).random(frame.shape) < 0.002] = np.nan
    holed[7, 9] = np.inf
    assert Camera.estimate(holed).gain_e_per_adu == pytest.approx(Camera.estimate(frame).gain_e_per_adu, rel=0.3)


@pytest.mark.parametrize("value", [0, 7, 255])
def test_constant_frames_hold_no_noise(value):
    with pytest.raises(CameraError, match="constant or saturated"):
        Camera.estimate(np.full((64, 64), value, np.uint8))


@pytest.mark.parametrize(
    ("frames", "error", "says"),
    [
        (np.zeros((31, 64), np.uint16), CameraError, r"\(31, 64\).*32x32"),
        (np.zeros((0, 64, 64), np.uint16), CameraError, r"\(0, 64, 64\)"),
        (np.zeros(64, np.uint16), ShapeError, r"\(64,\)"),
        (np.zeros((2, 2, 64, 64), np.uint16), ShapeError, r"\(2, 2, 64, 64\)"),
        (np.zeros((64, 64), np.float64), ShapeError, "float64"),
        (np.zeros((64, 64), np.int32), ShapeError, "int32"),
        ([[1, 2], [3, 4]], ShapeError, "list"),
        (np.full((64, 64), np.nan, np.float32), CameraError, "not finite"),
        (np.full((64, 64), np.inf, np.float32), CameraError, "not finite"),
    ],
)
def test_frames_that_say_nothing_are_refused(frames, error, says):
    with pytest.raises(error, match=says):
        Camera.estimate(frames)


def test_white_noise_of_unit_variance_has_no_features():
    z = np.random.default_rng(1).normal(size=(512, 512)).astype(np.float32)
    features = noise_estimate.noise_features(z).reshape(-1, len(noise_estimate.QUANTILES))
    median = features[:, noise_estimate.QUANTILES.index(0.5)]
    # the median of a block's mean power lies below the mean: little where blocks hold 256 px, more at 8x8 and 4x4
    np.testing.assert_allclose(median[:10], 0, atol=0.03)
    np.testing.assert_allclose(median[10:], 0, atol=0.25)
