"""Super-resolution x2: optics that shift nothing, a runtime that doubles the side, files whose pixels halve."""

import json

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

import photonstep as ps
from benchmarks import super_resolution as benchmark
from photonstep import Camera, PlanError, ShapeError
from photonstep.cli import app
from photonstep.export.package import package
from photonstep.kernels import ops, reference
from photonstep.metrics import psnr
from photonstep.models import optics, super_resolution
from photonstep.models.checkpoint import load_network, run_record
from photonstep.models.data import Field, FieldPool
from photonstep.models.network import Denoiser, NetworkConfig
from photonstep.runtime import pixel_integration
from photonstep.runtime.image_metadata import finer_resolution
from photonstep.runtime.images import open_image

TINY = NetworkConfig(widths=(16, 16), unshuffle=4)
CAMERA = Camera(offset_adu=3.0, gain_e_per_adu=0.25, readout_noise_e=0.5)


def centroid(image):
    """(y, x) in pixels of the image's own grid."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    return np.array([(image * y).sum(), (image * x).sum()]) / image.sum()


def spot(shape, y, x, sigma):
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * sigma**2))


# --- the kernel ---


@given(height=st.integers(1, 9), width=st.integers(1, 9), seed=st.integers(0, 99))
def test_upsampling_is_its_oracle(height, width, seed):
    image = np.random.default_rng(seed).normal(size=(height, width))
    wanted = reference.upsample2(image)
    assert np.abs(ops.upsample2(image.astype(np.float32)) - wanted).max() < 1e-6 * (1 + np.abs(image).max())
    torch_image = torch.from_numpy(image.astype(np.float32))[None]
    assert np.abs(optics.upsample2(torch_image)[0].numpy() - wanted).max() < 1e-6 * (1 + np.abs(image).max())


def test_upsampling_is_the_bicubic_filter_of_other_programs():
    image = np.random.default_rng(0).normal(size=(24, 31)).astype(np.float32)
    pillow = np.asarray(Image.fromarray(image).resize((62, 48), Image.Resampling.BICUBIC))
    inside = (slice(4, -4),) * 2  # at the edges Pillow leaves out what it does not know, we repeat it
    np.testing.assert_allclose(ops.upsample2(image)[inside], pillow[inside], atol=1e-5)


def test_upsampling_keeps_planes_and_where_things_are():
    rows = np.arange(20.0, dtype=np.float32)[:, None] + np.zeros(16, np.float32)
    fine = ops.upsample2(rows)
    np.testing.assert_allclose(fine[6:-6, 5], (np.arange(6, 34) - 0.5) / 2, atol=1e-5)
    coarse = spot((32, 32), 13.3, 17.8, 2.0).astype(np.float32)
    assert centroid(ops.upsample2(coarse)) == pytest.approx(2 * centroid(coarse) + 0.5, abs=1e-3)


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4), (0, 4)])
def test_upsampling_refuses_what_is_no_plane(shape):
    with pytest.raises(ops.FrameError, match="expected two axes"):
        ops.upsample2(np.zeros(shape, np.float32))


# --- optics ---


@given(seed=st.integers(0, 50), sigma=st.floats(0.5, 2.0), skirt=st.floats(0.0, 0.3))
def test_optics_keep_light_and_place(seed, sigma, skirt):
    rng = np.random.default_rng(seed)
    y, x = rng.uniform(30, 34, 2)
    fine = torch.from_numpy(spot((64, 64), y, x, 1.0).astype(np.float32))[None]
    blurred = optics.through_the_microscope(fine, torch.tensor([sigma]), torch.tensor([skirt]), 2.0)
    coarse = optics.integrate(blurred)
    assert coarse.shape == (1, 32, 32)
    assert float(coarse.mean()) == pytest.approx(float(fine.mean()), rel=1e-4)
    assert 2 * centroid(coarse[0].double().numpy()) + 0.5 == pytest.approx([y, x], abs=0.01)


def test_blur_widens_by_its_sigma_image_by_image():
    fine = torch.from_numpy(np.stack([spot((64, 64), 31, 31, 1.5)] * 3).astype(np.float32))
    blurred = optics.blur(fine, torch.tensor([0.0, 1.0, 2.0])).double().numpy()
    offsets = np.arange(64) - 31
    variances = [(image.sum(1) * offsets**2).sum() / image.sum() for image in blurred]
    assert variances == pytest.approx([2.25, 3.25, 6.25], rel=0.01)
    torch.testing.assert_close(optics.blur(fine, torch.zeros(3)), fine)


# --- training ---


@pytest.fixture(scope="module")
def pool():
    rng = np.random.default_rng(3)
    fields = [Field.of(spot((128, 128), *rng.uniform(30, 90, 2), 9.0).astype(np.float32)) for _ in range(4)]
    return FieldPool({"simulated": fields}, {"simulated": 1.0})


def settings(**changes):
    plain = {"steps": 3, "batch": 4, "patch_px": 64, "simulated_fields": 2, "validate_every": 2, "device": "cpu"}
    return super_resolution.SuperResolutionConfig(**{**plain, **changes})


def test_batches_are_states_of_a_bridge_from_the_upsampled_frame(pool):
    config = settings(measured_share=1.0)
    batch = super_resolution.make_batch(super_resolution.coarse_levels(pool), config, 5)
    again = super_resolution.make_batch(super_resolution.coarse_levels(pool), config, 5)
    assert batch.x.shape == batch.x0.shape == batch.sigma.shape == (4, 1, 64, 64)
    assert torch.equal(batch.x, again.x)
    assert torch.equal(batch.x0, again.x0)
    assert float(batch.sigma.min()) >= config.degradation_sigma
    # on average neither shifted nor rescaled: the bridge's two ends agree where the light is smooth
    assert float((batch.x - batch.x0).mean()) == pytest.approx(0, abs=0.05)
    early = super_resolution.make_batch(super_resolution.coarse_levels(pool), settings(measured_share=0.0), 5)
    assert float((early.x - early.x0).square().mean()) < float((batch.x - batch.x0).square().mean())


def test_the_measured_degradation_is_that_of_the_optics_alone(pool):
    found = super_resolution.measure_degradation(super_resolution.coarse_levels(pool), settings(), batches=2)
    assert 0 < found < 0.05  # smooth spots lose little


def test_a_body_is_taken_over_and_stem_and_head_are_not():
    network, denoiser = Denoiser(TINY), Denoiser(NetworkConfig(widths=(16, 16)))
    torch.nn.init.ones_(denoiser.middle[0].conv2.weight)
    torch.nn.init.ones_(denoiser.head.weight)
    assert (
        super_resolution.take_body(network, denoiser) == len(network.state_dict()) - 3
    )  # stem and head (and its bias)
    assert torch.equal(network.middle[0].conv2.weight, denoiser.middle[0].conv2.weight)
    assert not network.head.weight.any()


def test_a_run_leaves_a_folder_of_its_task(pool, tmp_path, monkeypatch, single_threaded_torch):
    monkeypatch.setattr(super_resolution, "load_pool", lambda *_, **__: pool)
    monkeypatch.setattr(super_resolution, "BODY", TINY)
    weights = super_resolution.train(settings(steps=2), None, tmp_path / "run")
    assert weights == tmp_path / "run" / "weights.pt"
    record = run_record(tmp_path / "run")
    assert (record["task"], record["settings"]["degradation_sigma"]) == ("super_resolution", 0.05)
    assert load_network(tmp_path / "run").config == TINY


# --- the runtime ---


def write_run(run, seed=0, wild=True):
    """A run folder with an untrained network; ``wild`` ones do something, the others only shrink towards the mean."""
    torch.manual_seed(seed)
    network = Denoiser(TINY)
    if wild:
        for name, parameter in network.named_parameters():
            if name.startswith("head") or "conv2" in name:
                torch.nn.init.normal_(parameter, std=0.03)
    run.mkdir()
    settings = {"steps": 1, "seed": seed, "degradation_sigma": 0.05}
    record = {"task": "super_resolution", "settings": settings, "network": TINY.as_dict(), "started_from": "base"}
    (run / "config.json").write_text(json.dumps(record))
    torch.save({"network": TINY.as_dict(), "state": network.state_dict(), "step": 1}, run / "weights.pt")
    return run


@pytest.fixture(scope="module")
def bundles(tmp_path_factory, confocal):
    folder = tmp_path_factory.mktemp("sr2")
    tifffile.imwrite(folder / "frame.tif", confocal.raw[:96, :80])
    return {
        name: package(
            write_run(folder / name, wild=name == "wild"), folder / f"{name}.photonstep",
            name=name, version="0.1.0", test_frame=folder / "frame.tif",
        )
        for name in ("wild", "plain")
    }  # fmt: skip


@pytest.fixture(scope="module")
def wild(bundles):
    opened = ps.load(bundles["wild"], device="cpu", backend="openvino", precision="fp32", threads=1)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def plain(bundles):
    opened = ps.load(bundles["plain"], device="cpu", backend="openvino", precision="fp32", threads=1)
    yield opened
    opened.close()


def test_a_packaged_run_says_what_it_is(bundles, wild):
    manifest = bundles["wild"].manifest
    assert (manifest.task, manifest.scale, manifest.model.degradation_sigma) == ("super_resolution", 2, 0.05)
    assert manifest.test_frame.expected.shape == (192, 160)
    restored = wild(
        bundles["wild"].read_array(manifest.test_frame.input), camera=Camera(**manifest.test_frame.camera.model_dump())
    )
    np.testing.assert_array_equal(restored, bundles["wild"].read_array(manifest.test_frame.expected))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("steps", [1, 2])
def test_twice_the_side_in_the_same_dtype_and_units(wild, confocal, dtype, steps):
    frames = np.stack([confocal.raw[:48, :67], confocal.raw[50:98, :67]]).astype(dtype)
    result = wild.restore(frames, camera=CAMERA, steps=steps)
    assert result.image.shape == (2, 96, 134)
    assert result.image.dtype == frames.dtype
    assert result.image.mean() == pytest.approx(frames.mean(), rel=0.05)
    np.testing.assert_array_equal(result.image, wild.restore(frames, camera=CAMERA, steps=steps).image)


def test_photons_are_per_measured_pixel(plain, confocal):
    result = plain.restore(confocal.raw, camera=CAMERA, output="photoelectrons", report=True)
    measured = (confocal.raw.astype(np.float64) - 3.0) * 0.25
    assert result.image.mean() == pytest.approx(measured.mean(), rel=0.03)
    assert 0.9 <= result.report["balance_gain"] <= 1.1


@pytest.mark.parametrize("steps", [1, 4])
def test_tiled_is_whole(wild, confocal, steps):
    whole = wild(confocal.raw, camera=CAMERA, steps=steps).astype(int)
    tiled = wild.restore(confocal.raw, camera=CAMERA, steps=steps, tile_px=160).image.astype(int)
    assert np.abs(whole - tiled).max() <= 1


@pytest.mark.parametrize(("y", "x"), [(20.0, 24.0), (23.25, 20.5)])
def test_nothing_is_shifted(plain, y, x):
    """The start on the fine grid, the network's shuffles and the inverse: a spot stays where it was measured."""
    frame = (100 + 4000 * spot((48, 48), y, x, 2.0)).astype(np.float32)
    restored = plain(frame, camera=Camera(offset_adu=100.0))
    light = np.maximum(restored.astype(np.float64) - 400, 0)
    coarse = np.maximum(frame.astype(np.float64) - 400, 0)
    assert centroid(light) == pytest.approx(2 * centroid(coarse) + 0.5, abs=0.02)


def test_missing_pixels_come_back_missing(wild, confocal):
    frame = confocal.raw[:64, :64].astype(np.float32)
    frame[10, 20] = np.nan
    result = wild.restore(frame, camera=CAMERA)
    assert "non_finite" in result.flags
    gaps = np.argwhere(np.isnan(result.image))
    assert {tuple(g) for g in gaps} == {(20, 40), (20, 41), (21, 40), (21, 41)}


def test_camera_maps_belong_to_the_measured_pixels(wild, confocal):
    offset = np.full((64, 64), 3.0, np.float32)
    scalar = wild(confocal.raw[:64, :64].astype(np.float32), camera=CAMERA)
    maps = Camera(offset_adu=offset, gain_e_per_adu=0.25, readout_noise_e=0.5)
    np.testing.assert_allclose(wild(confocal.raw[:64, :64].astype(np.float32), camera=maps), scalar, atol=1e-3)
    assert maps.enlarged(2).map_shape == (128, 128)
    offset[5, 7] += 9
    fine = Camera(offset_adu=offset).enlarged(2).offset_adu
    assert np.argwhere(fine == 12).tolist() == [[10, 14], [10, 15], [11, 14], [11, 15]]


def test_a_result_beyond_what_is_allowed_is_refused(wild):
    with pytest.raises(ShapeError, match="16 to 4096 px"):
        wild(np.zeros((64, 4097), np.uint16), camera=CAMERA)


def test_detail_needs_a_bundle_with_a_knob(wild, confocal):
    with pytest.raises(PlanError, match="no detail knob"):
        wild.restore(confocal.raw, camera=CAMERA, detail=0.5)
    for wrong in (-0.1, 1.5, True, "much", float("nan")):
        with pytest.raises(PlanError, match="detail is"):
            wild.restore(confocal.raw, camera=CAMERA, detail=wrong)
    assert wild.restore(confocal.raw, camera=CAMERA, detail=0.0).plan["detail"] == 0.0


def test_the_residual_forgives_the_optics_and_nothing_else():
    """A sharp truth behind a point-spread function leaves white noise; other light leaves more."""
    rng = np.random.default_rng(2)
    points = np.where(rng.random((256, 256)) < 0.02, 2000.0, 20.0).astype(np.float32)
    fine = optics.blur(torch.from_numpy(points)[None], torch.tensor([0.7]))
    seen = optics.integrate(optics.blur(fine, torch.tensor([1.6])))[0].numpy()
    camera = Camera()
    z = camera.stabilise(rng.poisson(seen).astype(np.float32))
    coarse = pixel_integration.coarse(fine[0].numpy(), 2)
    assert np.var(z - pixel_integration.as_measured(z, coarse, camera)) < 1.6
    assert np.var(z - camera.stabilise(coarse)) > 20
    assert np.var(z - pixel_integration.as_measured(z, np.roll(coarse, 5, 0), camera)) > 20


# --- files ---


def restored_file(tmp_path, bundle, source, *options):
    result = CliRunner().invoke(
        app, ["restore", str(source), "-o", str(tmp_path / "out"), "--bundle", str(bundle.path), "--offset-adu", "3",
              "--gain-e-per-adu", "0.25", "--readout-noise-e", "0.5", *options],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return tmp_path / "out" / source.name


@pytest.mark.parametrize("dialect", ["ome", "imagej", "plain"])
def test_pixel_sizes_halve_in_every_dialect(tmp_path, bundles, confocal, dialect):
    stack = np.stack([confocal.raw[:48, :64]] * 3)
    source = tmp_path / ("cells.ome.tif" if dialect == "ome" else "cells.tif")
    if dialect == "ome":
        size = {"PhysicalSizeX": 0.2, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.3, "PhysicalSizeYUnit": "µm"}
        tifffile.imwrite(
            source, stack, photometric="minisblack", metadata={"axes": "TYX", "PhysicalSizeZ": 1.5, **size}
        )
    elif dialect == "imagej":
        tifffile.imwrite(
            source, stack, imagej=True, resolution=(1 / 0.2, 1 / 0.3),
            metadata={"axes": "TYX", "unit": "um", "finterval": 0.5, "Overlays": [b"roi"]},
        )  # fmt: skip
    else:
        tifffile.imwrite(source, stack, photometric="minisblack", resolution=(1e4 / 0.2, 1e4 / 0.3), resolutionunit=3)
    with open_image(source) as before, open_image(restored_file(tmp_path, bundles["plain"], source)) as after:
        assert after.shape == (3, 96, 128)
        assert after.axes == before.axes
        assert after.dtype == before.dtype
        assert before.pixel_size_um == pytest.approx((0.3, 0.2), rel=1e-3)
        assert after.pixel_size_um == pytest.approx((0.15, 0.1), rel=1e-3)
        assert after.metadata.dialect == before.metadata.dialect
        assert after.provenance["scale"] == 2
        assert after.provenance["plan"]["detail"] == 0.0
        assert "Overlays" not in after.metadata.imagej
        if dialect == "imagej":
            assert after.metadata.imagej["finterval"] == 0.5
        if dialect == "ome":
            assert 'PhysicalSizeZ="1.5"' in after.metadata.description
            assert after.metadata.resolution == before.metadata.resolution or after.metadata.resolution is not None


def test_a_png_holds_twice_as_many_dots_per_inch(tmp_path, bundles, confocal):
    source = tmp_path / "cells.png"
    Image.fromarray(confocal.raw[:48, :64]).save(source, dpi=(25400, 25400))
    with open_image(restored_file(tmp_path, bundles["plain"], source)) as after:
        assert after.shape == (96, 128)
        assert after.pixel_size_um == pytest.approx((0.5, 0.5), rel=1e-3)


def test_resolution_tags_stay_within_their_bits():
    finer = finer_resolution(((2**32 - 2, 1000), (300, 7), 3), 2)
    assert finer == ((2**32 - 2, 500), (600, 7), 3)


# --- the benchmark ---


def test_the_benchmark_runs_on_a_few_frames(tmp_path, bundles, confocal, capsys):
    for split in ("val", "test"):
        (tmp_path / "paired/w2s8" / split).mkdir(parents=True)
        (tmp_path / "clean/dsb2018" / split).mkdir(parents=True)
        for k in range(2):
            frame = np.roll(confocal.reference[:96, :96], 20 * k, axis=0)
            tifffile.imwrite(tmp_path / "paired/w2s8" / split / f"fov{k}.tif", np.stack([frame[None]] * 2))
            tifffile.imwrite(tmp_path / "clean/dsb2018" / split / f"cell{k}.tif", frame)
    benchmark.main(
        ["--data", str(tmp_path), "--sr2", str(bundles["plain"].path), "--base", "live", "--light", "40",
         "--threads", "1", "--json", str(tmp_path / "out.json"), "--markdown", str(tmp_path / "out.md")]
    )  # fmt: skip
    document = json.loads((tmp_path / "out.json").read_text())
    assert len(document["rows"]) == 2 * 2 * len(benchmark.TITLES)
    assert {row["method"] for row in document["rows"]} == set(benchmark.TITLES)
    assert set(document["iterations"]["40"]) == set(benchmark.DECONVOLUTIONS)
    assert (tmp_path / "out.md").read_text() in capsys.readouterr().out
    benchmark_again = benchmark.render(document)
    assert "2 fields of view" in benchmark_again
    assert "(+" in benchmark_again or "(-" in benchmark_again


def test_known_optics_are_centred_and_sum_to_one():
    for pixel in (False, True):
        kernel = benchmark.psf(1.2, pixel)
        assert kernel.sum() == pytest.approx(1)
        assert centroid(kernel) == pytest.approx([(n - 1) / 2 for n in kernel.shape])


def test_a_deconvolution_that_knows_the_optics_helps_where_there_is_light(confocal):
    scene = benchmark.Scene(group="clean", field="a", plane=0, frame=confocal.reference)
    exposure = benchmark.expose(scene, 5000.0, 1.2)
    again = benchmark.expose(scene, 5000.0, 1.2)
    np.testing.assert_array_equal(exposure.counts, again.counts)
    methods = benchmark.Methods(None, None, 1.2)
    images = dict(methods.restored(exposure.counts, ["bicubic", "bicubic_rl"], {"bicubic_rl": 5}))
    scores = {name: benchmark.score(exposure, name, image) for name, image in images.items()}
    assert scores["bicubic_rl"].psnr_db > scores["bicubic"].psnr_db + 0.5
    assert psnr(exposure.truth, images["bicubic"], float(np.ptp(exposure.truth))) > 25


# --- the shipped bundle ---


@pytest.mark.parametrize(("light", "gain_db"), [(20.0, 2.0), (200.0, 0.6)])
def test_the_shipped_bundle_beats_interpolation(confocal, light, gain_db):
    """A floor well under what it was measured at; the frame is the mean of 50 captures that no training saw."""
    scene = benchmark.Scene(group="clean", field="confocal", plane=0, frame=confocal.reference)
    exposure = benchmark.expose(scene, light, 1.2)
    sr2 = ps.load("sr2", device="cpu", backend="openvino", precision="fp32", threads=1)
    images = dict(benchmark.Methods(sr2, None, 1.2).restored(exposure.counts, ["bicubic", "sr2_k1", "sr2_k2"], {}))
    scores = {name: benchmark.score(exposure, name, image) for name, image in images.items()}
    assert scores["sr2_k1"].psnr_db > scores["bicubic"].psnr_db + gain_db
    assert scores["sr2_k2"].psnr_db > scores["bicubic"].psnr_db + gain_db - 0.3
    assert scores["sr2_k1"].ssim > scores["bicubic"].ssim
    assert sr2.restore(exposure.counts, camera=benchmark.CAMERA).flags == ()
    sr2.close()
