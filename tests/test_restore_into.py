"""Restoring into a given array, from fused frames, and again and again with the same buffers."""

import numpy as np
import pytest

from photonstep import Camera, ShapeError

CAMERA = Camera(offset_adu=3.0, gain_e_per_adu=0.25, readout_noise_e=0.5)


def test_the_image_is_written_into_the_given_array(restorer, confocal):
    expected = restorer(confocal.raw, camera=CAMERA)
    out = np.full_like(expected, 7)
    result = restorer.restore(confocal.raw, camera=CAMERA, out=out)
    assert result.image is out
    np.testing.assert_array_equal(out, expected)


def test_only_the_given_array_is_written(restorer, confocal):
    store = np.full((3, *confocal.raw.shape), 7, np.uint8)
    restorer.restore(confocal.raw, camera=CAMERA, out=store[1])
    assert (store[[0, 2]] == 7).all()
    np.testing.assert_array_equal(store[1], restorer(confocal.raw, camera=CAMERA))


def test_a_stack_and_photoelectrons_go_into_given_arrays(restorer, confocal):
    stack = np.stack([confocal.raw[:64, :64], confocal.raw[64:128, :64]])
    out = np.empty(stack.shape, np.float32)
    result = restorer.restore(stack, camera=CAMERA, output="photoelectrons", out=out)
    assert result.image is out
    np.testing.assert_array_equal(out, restorer.restore(stack, camera=CAMERA, output="photoelectrons").image)


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ([[0]], "list"),
        (np.empty((256, 256), np.uint16), "uint16"),
        (np.empty((256, 255), np.uint8), r"\(256, 255\)"),
        (np.empty((256, 512), np.uint8)[:, ::2], "C order"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(restorer, confocal, out, says):
    with pytest.raises(ShapeError, match=says):
        restorer.restore(confocal.raw, camera=CAMERA, out=out)


def test_a_read_only_array_is_refused(restorer, confocal):
    out = np.empty_like(confocal.raw)
    out.flags.writeable = False
    with pytest.raises(ShapeError, match="read-only"):
        restorer.restore(confocal.raw, camera=CAMERA, out=out)


def test_results_do_not_share_memory_with_later_ones(restorer, confocal, two_photon):
    first = restorer.restore(confocal.raw, camera=CAMERA, output="photoelectrons").image
    kept = first.copy()
    restorer.restore(confocal.raw[::-1].copy(), camera=CAMERA, output="photoelectrons")
    restorer.restore(two_photon.raw, camera=CAMERA)
    np.testing.assert_array_equal(first, kept)


class Mean:
    """A fusion that hands on the mean of all frames: a static scene's best."""

    def __init__(self):
        self.frames = []

    def update(self, z, camera, missing=None):
        self.frames.append(z.copy())
        return np.mean(self.frames, axis=0, dtype=np.float32), np.full(z.shape, len(self.frames) ** -0.5, np.float32)


def static(light, count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        (rng.poisson(light) / 0.5 + 100 + rng.normal(0, 2, light.shape)).round().astype(np.uint16) for _ in range(count)
    ]


def test_fused_frames_start_at_their_own_lower_noise(restorer, confocal):
    light = confocal.reference.astype(np.float64) / 5
    camera = Camera(offset_adu=100, gain_e_per_adu=0.5, readout_noise_e=1.0)
    fusion, tracker = Mean(), restorer.tracker()
    for frame in static(light, 4):
        fused = restorer.restore(frame, camera=camera, fusion=fusion, tracker=tracker, output="photoelectrons")
    alone = restorer.restore(frame, camera=camera, output="photoelectrons")
    assert fused.sigma == pytest.approx(alone.sigma / 2, rel=0.1)
    assert fused.flags == alone.flags == ()
    error = [np.sqrt(np.mean((r.image - light) ** 2)) for r in (fused, alone)]
    assert error[0] < 0.8 * error[1]


def test_a_noise_map_of_ones_changes_nothing(restorer, confocal):
    class Nothing:
        def update(self, z, camera, missing=None):
            return z, np.ones(z.shape, np.float32)

    plain = restorer.restore(confocal.raw, camera=CAMERA, report=True)
    mapped = restorer.restore(confocal.raw, camera=CAMERA, report=True, fusion=Nothing())
    assert np.abs(mapped.image.astype(int) - plain.image).max() <= 1
    assert mapped.report == pytest.approx(plain.report, abs=1e-4)


def test_a_noise_map_goes_with_tiles_and_padding(restorer, confocal):
    class Half:
        def update(self, z, camera, missing=None):
            noise = np.ones(z.shape, np.float32)
            noise[:, : z.shape[1] // 2] = 0.5
            return z, noise

    frame = np.ascontiguousarray(confocal.raw[:200, :250])
    whole = restorer.restore(frame, camera=CAMERA, fusion=Half())
    tiled = restorer.restore(frame, camera=CAMERA, fusion=Half(), tile_px=64)
    assert np.abs(tiled.image.astype(int) - whole.image).max() <= 1
    assert np.abs(whole.image.astype(int) - restorer(frame, camera=CAMERA)).max() > 1


def test_fused_float_frames_are_told_what_was_not_measured(restorer):
    """Fused like a measurement, the median in place of a NaN would stay in the frames after it."""
    frames = [f.astype(np.float32) for f in static(np.full((64, 64), 8.0), 3, seed=1)]
    frames[1][::4, ::4] = np.nan
    camera = Camera(offset_adu=100, gain_e_per_adu=0.5, readout_noise_e=1.0)
    fusion = restorer.fusion()
    for frame in frames[:2]:
        restored = restorer.restore(frame, camera=camera, fusion=fusion)
    assert np.isnan(restored.image).sum() == 256
    z = camera.stabilise(frames[2])
    fused, _ = fusion.update(z, camera)
    np.testing.assert_array_equal(fused[::4, ::4], z[::4, ::4])


def test_a_camera_saves_the_same_before_and_after_it_was_used(restorer, confocal, tmp_path):
    maps = Camera(offset_adu=np.full((256, 256), 3.0, np.float32), gain_e_per_adu=0.25, readout_noise_e=0.5)
    maps.save(tmp_path / "before.json")
    restorer(confocal.raw, camera=maps)
    maps.save(tmp_path / "after.json")
    assert (tmp_path / "before.json").read_bytes() == (tmp_path / "after.json").read_bytes()
