"""The restore path from outside: what goes in comes out in kind, tiles do not show, faults say what they are."""

import hashlib

import numpy as np
import pytest

import photonstep as ps
from photonstep import BackendError, BundleError, Camera, CameraError, PlanError, ShapeError
from photonstep.metrics import psnr
from photonstep.runtime import samplers

CAMERA = Camera(offset_adu=3.0, gain_e_per_adu=0.25, readout_noise_e=0.5)
DTYPES = ["uint8", "uint16", "float32"]


def real_frame(confocal, shape, dtype="uint8"):
    """A real frame grown by mirroring to any shape, so that it has no seams."""
    rows, columns = (-(-n // 512) for n in shape)
    mirrored = np.pad(confocal.raw, ((0, 256), (0, 256)), mode="symmetric")
    return np.tile(mirrored, (rows, columns))[: shape[0], : shape[1]].astype(dtype)


def fingerprint(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def counts_apart(a, b):
    assert a.shape == b.shape
    return float(np.max(np.abs(a.astype(np.float64) - b.astype(np.float64))))


# --- what it is for ---


@pytest.mark.parametrize(("name", "gain_db"), [("confocal", 4.0), ("two_photon", 5.5), ("widefield", 6.0)])
@pytest.mark.parametrize("steps", [1, 4])
def test_real_frames_come_nearer_to_their_reference(restorer, request, name, gain_db, steps):
    """Blind, against the mean of 50 captures; a floor well under what a trained bundle does, not a mark to reach."""
    pair = request.getfixturevalue(name)
    restored = restorer(pair.raw, steps=steps)
    assert psnr(pair.reference, restored, 255) >= psnr(pair.reference, pair.raw, 255) + gain_db


def test_shared_fields_come_nearer_to_their_reference(restorer, shared_data):
    import tifffile

    gains = {}
    for path in sorted((shared_data / "paired" / "fmd_fov1" / "val").glob("*.tif")):
        raw, reference = tifffile.imread(path)
        gains[path.stem] = psnr(reference, restorer(raw), 255) - psnr(reference, raw, 255)
    assert len(gains) == 5
    assert min(gains.values()) > 2.5, gains
    assert np.mean(list(gains.values())) > 4.5, gains


def test_no_light_is_invented_or_lost(restorer, confocal):
    camera = Camera.estimate(confocal.raw)
    restored = restorer.restore(confocal.raw, camera=camera, output="photoelectrons").image
    measured = (confocal.raw.astype(np.float64) - camera.offset_adu) * camera.gain_e_per_adu
    assert float(restored.mean(dtype=np.float64)) == pytest.approx(float(measured.mean()), rel=0.02)


# --- in and out ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(64, 64), (3, 48, 64), (1, 33, 40)])
def test_shape_dtype_and_units_are_kept(restorer, confocal, dtype, shape):
    frames = np.stack([real_frame(confocal, shape[-2:], dtype)] * shape[0]) if len(shape) == 3 else None
    frames = real_frame(confocal, shape, dtype) if frames is None else frames
    restored = restorer(frames, camera=CAMERA)
    assert restored.shape == frames.shape
    assert restored.dtype == frames.dtype
    assert float(restored.mean()) == pytest.approx(float(frames.mean()), rel=0.05, abs=0.5)
    assert not np.shares_memory(restored, frames)


def test_one_scene_gives_one_result_in_every_dtype(restorer, confocal):
    images = [restorer(confocal.raw.astype(d), camera=CAMERA) for d in DTYPES]
    np.testing.assert_array_equal(images[0], images[1])
    assert counts_apart(images[0], images[2]) <= 0.501  # the integer ones are rounded


@pytest.mark.parametrize("shape", [(16, 16), (17, 16), (23, 31), (33, 97), (1000, 37), (37, 1000)])
def test_any_size_is_restored_whole(restorer, confocal, shape):
    frame = real_frame(confocal, shape)
    restored = restorer(frame, camera=CAMERA)
    assert restored.shape == shape
    # the last row and column too: padding was cut off, nothing was left undone
    reference = real_frame(type(confocal)(confocal.reference, None), shape).astype(float)
    noisy = np.abs(frame.astype(float) - reference)
    left = np.abs(restored.astype(float) - reference)
    assert left.mean() < 0.8 * noisy.mean()
    assert left[-1].mean() < noisy[-1].mean() + 0.5
    assert left[:, -1].mean() < noisy[:, -1].mean() + 0.5


VIEWS = {
    "every other pixel": lambda a: a[::2, ::2],
    "upside down": lambda a: a[::-1],
    "mirrored": lambda a: a[:, ::-1],
    "transposed": lambda a: a.T,
    "window": lambda a: a[13:90, 7:120],
    "Fortran order": np.asfortranarray,
    "repeated row": lambda a: np.broadcast_to(a[:1], a.shape),
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_memory_layout_does_not_matter(restorer, confocal, view, dtype):
    frame = view(real_frame(confocal, (128, 160), dtype))
    before = fingerprint(frame)
    plain = np.ascontiguousarray(frame, dtype=frame.dtype.newbyteorder("="))
    np.testing.assert_array_equal(restorer(frame, camera=CAMERA), restorer(plain, camera=CAMERA))
    assert fingerprint(frame) == before


@pytest.mark.parametrize("options", [{}, {"steps": 2}, {"report": True}, {"tile_px": 64}, {"output": "photoelectrons"}])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_raw_frame_is_never_modified(restorer, confocal, dtype, options):
    frame = confocal.raw.astype(dtype)
    before = fingerprint(frame)
    restorer.restore(frame, **options)
    assert fingerprint(frame) == before
    frame.flags.writeable = False
    restorer.restore(frame, **options)


# --- pixels that are no numbers, or impossible ones ---


def test_missing_pixels_pass_through_and_spare_their_neighbours(restorer, confocal):
    whole = confocal.raw.astype(np.float32)
    frame = whole.copy()
    holes = np.zeros(frame.shape, bool)
    holes[40, 50] = holes[100:103, 60:64] = holes[0, 0] = holes[-1, -1] = True
    frame[holes] = np.nan
    frame[41, 50], frame[200, 9] = np.inf, -np.inf
    missing = ~np.isfinite(frame)
    result = restorer.restore(frame, camera=CAMERA)
    np.testing.assert_array_equal(result.image[missing], frame[missing])
    assert np.isfinite(result.image[~missing]).all()
    undisturbed = restorer(whole, camera=CAMERA)
    assert np.abs(result.image - undisturbed)[~missing].mean() < 0.5
    electrons = restorer.restore(frame, camera=CAMERA, output="photoelectrons").image
    np.testing.assert_array_equal(np.isnan(electrons), missing)


def test_missing_pixels_are_no_obstacle_to_estimating_the_camera(restorer, confocal):
    frame = confocal.raw.astype(np.float32)
    frame[3, 5] = np.nan
    restored = restorer(frame)
    assert np.isnan(restored[3, 5])
    assert np.count_nonzero(~np.isfinite(restored)) == 1


def test_a_plane_without_a_single_number_is_refused(restorer):
    with pytest.raises(ShapeError, match="no finite pixel"):
        restorer(np.full((32, 32), np.nan, np.float32), camera=CAMERA)


@pytest.mark.parametrize("value", [-1e6, -5.0, 1e6, 1e30])
def test_impossible_brightness_stays_finite(restorer, confocal, value):
    frame = confocal.raw.astype(np.float32)
    frame[60:63, 70:73] = value
    assert np.isfinite(restorer(frame, camera=CAMERA)).all()


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_saturated_frames_stay_in_range(restorer, dtype):
    top = np.iinfo(dtype).max
    frame = np.full((64, 64), top, dtype)
    frame[:, :32] = 0
    restored = restorer(frame, camera=Camera(gain_e_per_adu=1.0))
    within = max(3 * np.sqrt(top), 0.1 * top)  # shot noise at the top, which such a frame has not
    assert restored[:, 40:].min() > top - within
    assert restored[:, :24].max() < within


def test_frames_darker_than_the_offset_come_out_at_the_offset(restorer):
    frame = np.random.default_rng(0).normal(80, 2, (64, 64)).astype(np.float32)
    restored = restorer(frame, camera=Camera(offset_adu=100, gain_e_per_adu=0.5, readout_noise_e=1.0))
    np.testing.assert_allclose(restored, 100, atol=1)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_a_constant_frame_stays_within_the_noise_that_its_camera_promises(restorer, value):
    """Test patterns are like this, no camera is: nothing explodes, and missing noise is flagged where light is."""
    result = restorer.restore(np.full((48, 48), value, np.uint16), camera=Camera(gain_e_per_adu=0.5, readout_noise_e=1))
    noise_adu = np.sqrt(value * 0.5 + 1) / 0.5
    assert np.abs(result.image.astype(float) - value).max() <= 3 * noise_adu
    assert {"noise_mismatch", "correlated_noise"} & set(result.flags) or value == 0


@pytest.mark.parametrize("photons", [3, 30, 1000])
def test_flat_fields_keep_their_brightness_and_lose_their_noise(restorer, photons):
    rng = np.random.default_rng(photons)
    frame = (rng.poisson(photons, (128, 128)) + rng.normal(0, 1, (128, 128)) + 100).astype(np.float32)
    restored = restorer(frame, camera=Camera(offset_adu=100, readout_noise_e=1.0)) - 100
    assert float(restored.mean()) == pytest.approx(photons, rel=0.02)
    assert float(restored.std()) < 0.3 * np.sqrt(photons + 1)


# --- refusals ---


@pytest.mark.parametrize(
    ("frames", "says"),
    [
        ([[1, 2], [3, 4]], "list"),
        (np.zeros((64, 64), np.float64), "float64"),
        (np.zeros((64, 64), np.float16), "float16"),
        (np.zeros((64, 64), np.int16), "int16"),
        (np.zeros((64, 64), np.uint32), "uint32"),
        (np.zeros((64, 64), bool), "bool"),
        (np.zeros((64, 64), complex), "complex"),
        (np.zeros((64, 64), object), "object"),
        (np.uint8(3), "uint8"),
        (np.zeros((), np.uint8), r"\(\)"),
        (np.zeros(64, np.uint8), r"\(64,\)"),
        (np.zeros((2, 3, 64, 64), np.uint8), r"\(2, 3, 64, 64\)"),
        (np.zeros((0, 64, 64), np.uint8), r"\(0, 64, 64\)"),
        (np.zeros((64, 0), np.uint8), r"\(64, 0\)"),
        (np.zeros((15, 64), np.uint8), "15x64"),
        (np.zeros((64, 3), np.uint8), "64x3"),
        (np.zeros((64, 64, 3), np.uint8), r"\(64, 64, 3\), which looks like colours"),
        (np.zeros((64, 64)), r"float64.*astype\(numpy.float32\)"),
        (np.zeros((64, 64), np.int16), r"int16.*astype\(numpy.uint16\)"),
        (np.broadcast_to(np.uint8(0), (16, 8193)), "16x8193"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_is_no_frame_is_a_shape_error_with_its_value(restorer, frames, says):
    with pytest.raises(ShapeError, match=says):
        restorer(frames, camera=CAMERA)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"steps": 0}, PlanError, "steps is 0"),
        ({"steps": -1}, PlanError, "steps is -1"),
        ({"steps": 1001}, PlanError, "1001"),
        ({"steps": 1.5}, PlanError, "1.5"),
        ({"steps": True}, PlanError, "True"),
        ({"steps": "4"}, PlanError, "'4'"),
        ({"sampler": "euler"}, PlanError, "'euler'.*ddim"),
        ({"output": "volts"}, PlanError, "'volts'"),
        ({"seed": -1}, PlanError, "seed is -1"),
        ({"seed": "lucky"}, PlanError, "'lucky'"),
        ({"tile_px": 8}, PlanError, "tile_px is 8"),
        ({"tile_px": 99.5}, PlanError, "99.5"),
        ({"camera": {"offset_adu": 3}}, CameraError, "dict"),
        ({"camera": Camera(offset_adu=np.zeros((9, 9)))}, ShapeError, r"offset_adu map is \(9, 9\)"),
    ],
)
def test_plans_and_cameras_that_do_not_exist_are_refused(restorer, confocal, options, error, says):
    with pytest.raises(error, match=says):
        restorer.restore(confocal.raw, **{"camera": CAMERA, **options})


def test_a_frame_too_small_to_estimate_from_says_what_to_do(restorer):
    with pytest.raises(CameraError, match=r"\(16, 20\).*32x32"):
        restorer(np.random.default_rng(0).poisson(9, (16, 20)).astype(np.uint8))


@pytest.mark.parametrize(
    ("bundle", "options", "error", "says"),
    [
        ("nothing", {}, BundleError, "'nothing'.*base"),
        ("/", {}, BundleError, "regular file"),
        (None, {}, BundleError, "bundle is a NoneType"),
        ("base", {"device": "tpu"}, BackendError, "device is 'tpu'"),
        ("base", {"backend": "abacus"}, BackendError, "backend is 'abacus'.*openvino"),
        ("base", {"precision": "fp64"}, BackendError, "precision is 'fp64'"),
        ("base", {"threads": 0}, BackendError, "threads is 0"),
        ("base", {"threads": -2}, BackendError, "threads is -2"),
        ("base", {"threads": "all"}, BackendError, "'all'"),
        (
            "base",
            {"device": "cuda"},
            BackendError,
            "'cuda' cannot be used: tensorrt_rtx: .*tensorrt: .*python -m pip install.*onnxruntime: .*onnxruntime-gpu",
        ),
        ("base", {"device": "cuda", "backend": "openvino"}, BackendError, "OpenVINO on the CPU only"),
        ("base", {"precision": "bf16", "backend": "onnxruntime"}, BackendError, "fp32 and int8 networks, not bf16"),
    ],
)
def test_bundles_and_devices_that_cannot_be_had_are_errors_that_name_the_cause(bundle, options, error, says):
    with pytest.raises(error, match=says):
        ps.load(bundle, **options)


# --- stacks, tiles, samplers ---


def test_a_stack_is_its_planes(restorer, confocal):
    frame = real_frame(confocal, (96, 128))
    stack = restorer(np.stack([frame] * 3), camera=CAMERA)
    single = restorer(frame, camera=CAMERA)
    np.testing.assert_array_equal(stack[0], single)
    for plane in stack[1:]:  # the tracked range differs by its rounding alone
        assert counts_apart(plane, single) <= 1


def test_a_stack_is_tracked_and_still_near_to_single_frames(restorer, confocal):
    """A scene that brightens: the model's range follows with a delay, the restored counts do not lag."""
    photons = np.maximum(confocal.reference[:128, :160].astype(float) - 3, 0) * 0.25
    rng = np.random.default_rng(1)
    stack = np.stack([rng.poisson(photons * (1 + 0.1 * t) * 4) + 100 for t in range(4)]).astype(np.uint16)
    camera = Camera(offset_adu=100)
    together = restorer(stack, camera=camera)
    apart = np.stack([restorer(frame, camera=camera) for frame in stack])
    assert np.abs(together.astype(float) - apart).mean() < 0.02 * float(stack.mean() - 100)
    np.testing.assert_allclose(together.mean(axis=(1, 2)), stack.mean(axis=(1, 2)), rtol=0.02)
    np.testing.assert_array_equal(together, restorer(stack, camera=camera))


def test_a_stack_equals_its_frames_restored_one_by_one_with_a_shared_memory(restorer, confocal):
    frames = np.stack([real_frame(confocal, (64, 80))[:, k : k + 64] for k in range(0, 16, 4)])
    memory = restorer.tracker()
    one_by_one = [restorer.restore(frame, camera=CAMERA, tracker=memory).image for frame in frames]
    np.testing.assert_array_equal(np.stack(one_by_one), restorer(frames, camera=CAMERA))


@pytest.mark.parametrize(
    ("shape", "tile_px", "steps", "sampler"),
    [
        ((416, 416), 208, 1, "ddim"),
        ((450, 200), 112, 1, "ddim"),
        ((64, 1040), 112, 2, "ddim"),
        ((1040, 50), 112, 2, "ddim"),
        ((48, 1300), 144, 2, "heun"),
        ((48, 1040), 112, 2, "ddpm"),
    ],
)
def test_tiles_do_not_show(restorer, confocal, shape, tile_px, steps, sampler):
    frame = real_frame(confocal, shape, "float32")
    plan = {"camera": CAMERA, "steps": steps, "sampler": sampler, "seed": 5}
    whole = restorer.restore(frame, **plan).image
    tiled = restorer.restore(frame, tile_px=tile_px, **plan).image
    assert counts_apart(tiled, whole) <= 0.05  # counts; float32 sums in another order, not another picture


def test_tiles_do_not_show_in_whole_counts(restorer, confocal):
    frame = real_frame(confocal, (416, 64))
    assert counts_apart(restorer(frame), restorer.restore(frame, tile_px=48).image) <= 1


def test_same_frame_same_plan_same_pixels(restorer, confocal):
    again = ps.load("base", backend="openvino", precision="fp32", threads=1)
    for options in ({}, {"steps": 4}, {"output": "photoelectrons"}):
        first = restorer.restore(confocal.raw, **options).image
        np.testing.assert_array_equal(restorer.restore(confocal.raw, **options).image, first)
        np.testing.assert_array_equal(again.restore(confocal.raw, **options).image, first)
    again.close()


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_more_steps_stay_near_the_mean_and_are_counted(restorer, confocal, steps):
    result = restorer.restore(confocal.raw, steps=steps)
    assert result.steps == result.plan["steps"] == steps
    assert psnr(confocal.reference, result.image, 255) > psnr(confocal.reference, confocal.raw, 255) + 4


def test_more_steps_keep_more_texture(restorer, confocal):
    """K = 4 walks the flow instead of taking its mean: the residual holds less than that of K = 1."""
    mean, detail = (restorer.restore(confocal.raw, steps=k, report=True).report for k in (1, 4))
    assert detail["residual_variance"] < mean["residual_variance"]


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_every_sampler_restores(restorer, confocal, sampler):
    result = restorer.restore(confocal.raw, steps=3, sampler=sampler)
    assert result.plan["sampler"] == sampler
    assert psnr(confocal.reference, result.image, 255) > psnr(confocal.reference, confocal.raw, 255) + 1.5


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_seeds_repeat_and_matter_where_noise_is_added(restorer, confocal, sampler):
    frame = real_frame(confocal, (64, 64), "float32")
    first, again, other = (
        restorer.restore(frame, camera=CAMERA, steps=2, sampler=sampler, seed=s).image for s in (7, 7, 8)
    )
    np.testing.assert_array_equal(again, first)
    assert np.array_equal(other, first) == (sampler not in ("ddpm", "consistency"))


# --- the result ---


def test_photoelectrons_are_the_counts_in_other_units(restorer, confocal):
    frame = confocal.raw.astype(np.float32)
    counts = restorer.restore(frame, camera=CAMERA)
    electrons = restorer.restore(frame.astype(np.uint8), camera=CAMERA, output="photoelectrons")
    assert electrons.image.dtype == np.float32
    assert electrons.image.min() >= 0
    assert electrons.plan["output"] == "photoelectrons"
    np.testing.assert_allclose(electrons.image, (counts.image - 3.0) * 0.25, atol=2e-3)


def test_a_result_says_how_it_came_about(restorer, confocal):
    result = restorer.restore(confocal.raw)
    assert result.camera.source == "estimated"
    assert result.camera.summary() == Camera.estimate(confocal.raw).summary()
    assert 0.002 < result.sigma < 0.3
    assert 0 < result.network_ms <= result.latency_ms
    assert result.flags == ()
    assert result.report == {}
    assert {"steps", "sampler", "output", "seed"} <= result.plan.keys()
    assert result.steps == restorer.bundle.manifest.defaults.steps
    np.testing.assert_array_equal(result.image, restorer(confocal.raw))


def test_the_camera_that_was_given_is_the_one_reported(restorer, confocal):
    assert restorer.restore(confocal.raw, camera=CAMERA).camera is CAMERA


def test_a_pixel_map_camera_restores_like_its_scalars(restorer, confocal):
    shape = confocal.raw.shape
    maps = Camera(
        offset_adu=np.full(shape, 3.0), gain_e_per_adu=np.full(shape, 0.25), readout_noise_e=np.full(shape, 0.5)
    )
    assert counts_apart(restorer(confocal.raw, camera=maps), restorer(confocal.raw, camera=CAMERA)) <= 1


def test_a_restorer_says_what_it_is(restorer):
    assert (restorer.backend_name, restorer.device, restorer.precision) == ("openvino", "cpu", "fp32")
    assert repr(restorer) == "Restorer(base on cpu, openvino fp32)"
    assert restorer.bundle.manifest.name == "base"
    assert "openvino" in restorer.choice.reason


def test_shipped_bundles_load_by_name_path_and_object(restorer, confocal):
    path = ps.shipped_bundles()["base"]
    expected = restorer(confocal.raw)
    for source in (path, str(path), ps.Bundle.load(path)):
        opened = ps.load(source, backend="openvino", precision="fp32", threads=1)
        np.testing.assert_array_equal(opened(confocal.raw), expected)
        opened.close()


def test_a_fill_value_is_a_missing_pixel(restorer, confocal):
    frame = confocal.raw.astype(np.float32)
    frame[5, 7] = 3e38
    result = restorer.restore(frame)
    assert result.image[5, 7] == frame[5, 7]
    assert "non_finite" in result.flags
    others = np.ones(frame.shape, bool)
    others[5, 7] = False
    assert np.isfinite(result.image).all()
    assert result.image[others].max() < 300


def test_a_closed_restorer_says_so(confocal):
    closed = ps.load("base", precision="fp32", threads=1)
    closed.close()
    with pytest.raises(BackendError, match="closed"):
        closed(confocal.raw)
    with pytest.raises(BackendError, match="closed"):
        closed.stream()
