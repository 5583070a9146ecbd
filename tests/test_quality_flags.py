"""Every flag is raised by a frame that deserves it and by no good one; the report's numbers mean what they say."""

import numpy as np
import pytest
from scipy import ndimage
from simulated_frames import photograph, photons_of

from photonstep import BackendError, Camera
from photonstep.runtime.quality_flags import FLAGS

PIXEL_SHARING = ([1.0], [1.0, 0.8])


@pytest.fixture
def clean(confocal):
    return ndimage.gaussian_filter(confocal.reference.astype(np.float64), 1.0)


@pytest.fixture
def good(clean):
    """A frame, and the camera that made it."""
    camera = Camera(offset_adu=100, gain_e_per_adu=0.5, readout_noise_e=1.0)
    return photograph(photons_of(clean, peak=40), gain=0.5, offset=100, readout=1.0, dtype=np.uint16, seed=1), camera


@pytest.mark.parametrize(
    ("name", "flags"), [("confocal", ()), ("two_photon", ()), ("widefield", ("correlated_noise",))]
)
def test_real_frames_raise_the_flags_that_they_deserve(restorer, request, name, flags):
    """Two have nearly white noise; the widefield camera shares most of its noise between neighbours."""
    assert restorer.restore(request.getfixturevalue(name).raw).flags == flags


@pytest.mark.parametrize("report", [False, True])
def test_a_good_frame_raises_no_flag(restorer, good, report):
    frame, camera = good
    assert restorer.restore(frame, camera=camera, report=report).flags == ()
    assert restorer.restore(frame.astype(np.float32), report=report).flags == ()


@pytest.mark.parametrize("given", [False, True], ids=["top of the dtype", "camera's full well"])
def test_saturated(restorer, good, given):
    frame, camera = good[0].copy(), good[1]
    top = 3000 if given else 65535
    frame[100:120, 50:70] = top  # 0.6 % of the pixels
    if given:
        camera = Camera(offset_adu=100, gain_e_per_adu=0.5, readout_noise_e=1.0, saturation_adu=3000)
    assert "saturated" in restorer.restore(frame, camera=camera).flags
    frame[100:120, 50:70] = 200
    assert "saturated" not in restorer.restore(frame, camera=camera).flags


def test_non_finite(restorer, good):
    frame = good[0].astype(np.float32)
    frame[9, 9] = np.nan
    assert restorer.restore(frame, camera=good[1]).flags == ("non_finite",)


def test_noise_mismatch(restorer, good):
    """A camera file of another camera: it promises ten electrons of readout noise where there is one."""
    wrong = Camera(offset_adu=100, gain_e_per_adu=0.5, readout_noise_e=10.0)
    assert "noise_mismatch" in restorer.restore(good[0], camera=wrong).flags


def test_correlated_noise_that_the_camera_does_not_mention(restorer, clean):
    frame = photograph(photons_of(clean, peak=40), gain=0.5, readout=1.0, kernel=PIXEL_SHARING, seed=2)
    result = restorer.restore(frame, camera=Camera(gain_e_per_adu=0.5, readout_noise_e=1.0), report=True)
    assert "correlated_noise" in result.flags
    assert result.report["residual_correlation_x"] > 0.25


def test_correlated_noise_beyond_what_the_model_knows(restorer, good):
    limit = restorer.bundle.manifest.operating_range.max_noise_correlation
    numbers = {"offset_adu": 100, "gain_e_per_adu": 0.5, "readout_noise_e": 1.0}
    beyond = Camera(**numbers, noise_correlation=(0.0, (1 + limit) / 2))
    assert "correlated_noise" in restorer.restore(good[0], camera=beyond).flags


def test_below_photon_floor(restorer):
    frame = np.random.default_rng(3).poisson(0.6, (128, 128)).astype(np.uint16)
    assert "below_photon_floor" in restorer.restore(frame, camera=Camera(readout_noise_e=0.2)).flags
    # readout noise makes the transform whole again: an ordinary camera in the dark is no reason for the flag
    noisy = (frame + np.random.default_rng(4).normal(0, 2, frame.shape) + 100).astype(np.float32)
    quiet = restorer.restore(noisy, camera=Camera(offset_adu=100, readout_noise_e=2.0))
    assert "below_photon_floor" not in quiet.flags


def test_out_of_range(restorer, clean):
    """A million photons: next to no noise, a level that no training frame had."""
    frame = photograph(photons_of(clean, peak=1e6), gain=1.0, readout=1.0, seed=5)
    result = restorer.restore(frame, camera=Camera(readout_noise_e=1.0))
    assert result.sigma < restorer.bundle.manifest.operating_range.sigma_min
    assert "out_of_range" in result.flags


def test_flags_of_any_plane_are_the_stacks_in_one_order(restorer, good):
    planes = np.stack([good[0].astype(np.float32)] * 3)
    planes[1, 4, 4] = np.nan
    camera = Camera(offset_adu=100, gain_e_per_adu=0.5, readout_noise_e=1.0, saturation_adu=110)
    flags = restorer.restore(planes, camera=camera).flags
    assert {"saturated", "non_finite"} <= set(flags)
    assert list(flags) == [name for name in FLAGS if name in flags]


def test_the_report_of_a_good_frame(restorer, good):
    report = restorer.restore(good[0], camera=good[1], report=True).report
    residual = {"residual_variance", "residual_correlation_y", "residual_correlation_x"}
    assert set(report) == residual | {"balance_gain", "balance_shift_e"}
    assert report["residual_variance"] == pytest.approx(1, abs=0.25)
    assert report["residual_correlation_y"] == pytest.approx(0, abs=0.15)
    assert report["residual_correlation_x"] == pytest.approx(0, abs=0.15)
    assert report["balance_gain"] == pytest.approx(1, abs=0.1)
    assert report["balance_shift_e"] == pytest.approx(0, abs=0.5)


def test_the_report_of_a_stack_is_the_mean_of_its_planes(restorer, good):
    frame, camera = good
    single = restorer.restore(frame, camera=camera, report=True).report
    stack = restorer.restore(np.stack([frame] * 3), camera=camera, report=True).report
    assert stack == pytest.approx(single, rel=1e-2, abs=1e-3)


def test_a_camera_with_an_offset_above_the_frame_is_told(restorer):
    frame = np.random.default_rng(2).random((64, 64), dtype=np.float32)
    camera = Camera(offset_adu=100, gain_e_per_adu=0.5, readout_noise_e=1.0)
    flags = restorer.restore(frame, camera=camera).flags
    assert "noise_mismatch" in flags
    assert "correlated_noise" not in flags


def test_a_network_that_gives_no_numbers_is_an_error(restorer, good, monkeypatch):
    """Half precision that overflows, a broken driver: dark pixels that look like light would be worse."""
    session = restorer.choice.session
    run = session.run

    def broken(inputs):
        output = run(inputs).copy()
        output[..., 40:120, :] = np.nan
        return output

    monkeypatch.setattr(session, "run", broken)
    with pytest.raises(BackendError, match="not finite"):
        restorer.restore(good[0], camera=good[1])
