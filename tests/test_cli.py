"""The command line on real bundles and real frames; doubles stand in only where something must go wrong on time."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from PIL import Image
from typer.testing import CliRunner

import photonstep as ps
from photonstep import demo, restore_files
from photonstep.cli import app
from photonstep.runtime.camera import Camera
from photonstep.runtime.errors import BackendError, ImageError
from photonstep.runtime.images import open_image
from photonstep.runtime.samplers import SAMPLERS

ROOT = Path(__file__).resolve().parent.parent
BUNDLE = "live"
CAMERA = ("--offset-adu", "0", "--gain-e-per-adu", "0.25", "--readout-noise-e", "1")


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="photonstep")


@pytest.fixture(scope="module")
def live():
    return ps.load(BUNDLE, precision="fp32")  # auto goes by a timed run, which may end either way


@pytest.fixture(scope="module")
def raw():
    return tifffile.imread(demo.DEMO_FRAME)[0][200:328, 250:410]


@pytest.fixture
def stack_file(tmp_path, raw):
    """A (T, C, Y, X) OME-TIFF of real frames: channel 1 is channel 0 with four times the counts per photoelectron."""
    tcyx = np.stack([np.stack([np.roll(raw, 7 * t), 4 * np.roll(raw.astype(np.uint16), -5 * t)]) for t in range(3)])
    path = tmp_path / "in" / "cells.ome.tif"
    path.parent.mkdir()
    metadata = {"axes": "TCYX", "PhysicalSizeX": 0.2, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.2}
    tifffile.imwrite(path, tcyx, ome=True, photometric="minisblack", metadata=metadata)
    return path


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from photonstep.cli import app; from typer.main import get_command; get_command(app)\n"
        "heavy = {'numpy', 'openvino', 'tifffile', 'PIL', 'pydantic', 'torch', 'onnxruntime'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)


@pytest.mark.parametrize("command", ["demo", "restore", "calibrate", "info", "doctor", "bench"])
def test_every_command_is_in_the_help_and_has_its_own(command):
    assert command in run("--help").output
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "Usage: photonstep" in result.output


def test_version():
    result = run("--version")
    assert (result.exit_code, result.output.startswith("photonstep ")) == (0, True)


def test_python_m_is_the_command():
    command = [sys.executable, "-m", "photonstep", "--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == run("--version").output


def test_restore_keeps_everything_and_equals_the_library(tmp_path, stack_file, live):
    options = ("-o", tmp_path / "out.ome.tif", "--bundle", BUNDLE, "--precision", "fp32", "--steps", "2")
    result = run("restore", stack_file, *options)
    assert result.exit_code == 0, result.output
    with open_image(stack_file) as source, open_image(tmp_path / "out.ome.tif") as copy:
        assert (copy.shape, copy.axes, copy.dtype) == (source.shape, "TCYX", np.uint16)
        assert copy.pixel_size_um == pytest.approx((0.2, 0.2))
        record = copy.provenance
        for channel in (0, 1):
            planes = np.stack([source.plane((t, channel)) for t in range(3)])
            camera = Camera.estimate(planes)
            assert record["camera"][channel] == json.loads(json.dumps(camera.summary()))
            # one camera and one memory of its brightness for every plane of a channel: nothing flickers
            expected = live.restore(planes, camera=camera, steps=2).image
            for t in range(3):
                np.testing.assert_array_equal(copy.plane((t, channel)), expected[t])
    assert record["camera"][0]["gain_e_per_adu"] == pytest.approx(4 * record["camera"][1]["gain_e_per_adu"], rel=0.2)
    assert record["bundle"] == {
        "name": BUNDLE,
        "version": live.bundle.manifest.version,
        "sha256": live.bundle.sha256,
    }
    assert record["plan"]["steps"] == 2
    assert result.stderr.count("camera estimated") == 2
    assert "6 planes restored, 1 of 1 files written" in result.stderr


def test_restore_with_a_given_camera_in_photoelectrons(tmp_path, raw, live):
    Image.fromarray(raw).save(tmp_path / "in.png")
    options = ("-o", tmp_path / "out", "--bundle", BUNDLE, "--precision", "fp32", "--unit", "photoelectrons")
    options += (*CAMERA, "--quiet")
    result = run("restore", tmp_path / "in.png", *options)
    assert (result.exit_code, result.output) == (0, "")
    camera = Camera(offset_adu=0, gain_e_per_adu=0.25, readout_noise_e=1)
    with open_image(tmp_path / "out" / "in.tif") as copy:
        assert copy.dtype == np.float32
        expected = live.restore(raw, camera=camera, output="photoelectrons").image
        np.testing.assert_array_equal(copy.plane(()), expected)
        assert copy.provenance["camera"][0]["source"] == "given"


def test_restore_takes_folders_wildcards_and_a_camera_file(tmp_path, raw):
    source = tmp_path / "in"
    source.mkdir()
    for name in ("a.tif", "b.tif"):
        tifffile.imwrite(source / name, raw)
    (source / "notes.txt").write_text("not an image")
    Camera(offset_adu=0, gain_e_per_adu=0.25, readout_noise_e=1).save(tmp_path / "camera.json")
    for given, folder in ((source, "one"), (source / "*.tif", "two")):
        result = run(
            "restore", given, "-o", tmp_path / folder, "--bundle", BUNDLE, "--camera", tmp_path / "camera.json"
        )
        assert result.exit_code == 0, result.output
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == ["a.tif", "b.tif"]


def test_one_bad_file_is_reported_and_the_others_go_on(tmp_path, raw):
    source = tmp_path / "in"
    source.mkdir()
    tifffile.imwrite(source / "a.tif", raw)
    (source / "bad.tif").write_bytes((source / "a.tif").read_bytes()[:2000])
    tifffile.imwrite(source / "rgb.tif", np.zeros((32, 32, 3), np.uint8))
    tifffile.imwrite(source / "z.tif", raw)
    result = run("restore", source, tmp_path / "absent.tif", "-o", tmp_path / "out", "--bundle", BUNDLE, *CAMERA)
    assert result.exit_code == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.tif", "z.tif"]
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert [name in line for name, line in zip(("bad.tif", "rgb.tif", "absent.tif"), errors, strict=True)] == [True] * 3
    assert "2 of 5 files written" in result.stderr


def test_restore_refuses_what_would_do_harm(tmp_path, stack_file, raw):
    before = stack_file.read_bytes()
    (tmp_path / "out.ome.tif").write_bytes(b"precious")
    other = tmp_path / "other"
    other.mkdir()
    tifffile.imwrite(other / stack_file.name, raw)
    cases = [
        ([stack_file, "-o", tmp_path / "out.ome.tif"], "exists already.*--overwrite"),
        ([stack_file, "-o", stack_file, "--overwrite"], "input itself"),
        ([stack_file, "-o", stack_file.parent, "--overwrite"], "input itself"),
        ([stack_file, other, "-o", tmp_path / "new"], "both become"),
        ([stack_file, other, "-o", tmp_path / "one.tif"], "is one file"),
        ([stack_file, "-o", tmp_path / "a.png"], "PNG holds one"),
        ([stack_file, "-o", tmp_path / "out.ome.tif" / "deeper"], "cannot be made a folder"),
        ([tmp_path / "out", "-o", tmp_path / "new"], "no such file"),
        ([stack_file, "-o", tmp_path / "new", "--offset-adu", "100"], "--gain-e-per-adu, --readout-noise-e missing"),
        ([stack_file, "-o", tmp_path / "new", "--camera", "c.json", *CAMERA], "one or the other"),
        ([stack_file, "-o", tmp_path / "new", "--bundle", tmp_path / "no.photonstep"], r"no\.photonstep"),
        ([stack_file, "-o", tmp_path / "new", "--sampler", "magic", "--bundle", BUNDLE], "magic"),
    ]
    for arguments, message in cases:
        result = run("restore", *arguments)
        lines = result.stderr.splitlines()
        assert result.exit_code == 2, (arguments, result.output)
        assert re.search(message, lines[-1]), (message, lines)
        assert lines[-1].startswith("error: ")
        assert "Traceback" not in result.output
    assert stack_file.read_bytes() == before
    assert (tmp_path / "out.ome.tif").read_bytes() == b"precious"
    assert list(tmp_path.rglob("*.partial")) == []


def test_debug_shows_the_traceback(tmp_path):
    result = run("--debug", "restore", tmp_path / "no.tif", "-o", tmp_path / "out")
    assert isinstance(result.exception, ImageError)


class FailingRestorer:
    """Restores two planes as they are, then fails: what a full GPU or an impatient user does at a bad moment."""

    backend_name, precision, device = "double", "fp32", "cpu"
    bundle = SimpleNamespace(sha256="0" * 64, manifest=SimpleNamespace(name="double", version="1.0.0", scale=1))

    def __init__(self, error):
        self.error, self.calls = error, 0

    def tracker(self):
        return None

    def restore(self, frame, **_):
        self.calls += 1
        if self.calls == 3:
            raise self.error
        return SimpleNamespace(image=frame, flags=("saturated",), plan={})


@pytest.mark.parametrize(("error", "exit_code"), [(KeyboardInterrupt(), 130), (BackendError("out of memory"), 2)])
def test_an_interruption_leaves_no_half_written_output(tmp_path, stack_file, monkeypatch, error, exit_code):
    monkeypatch.setattr(ps, "load", lambda *_, **__: FailingRestorer(error))
    result = run("restore", stack_file, "-o", tmp_path / "out.ome.tif", *CAMERA)
    assert result.exit_code == exit_code
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_failure_in_the_middle_costs_one_file_only(tmp_path, stack_file, raw, monkeypatch):
    tifffile.imwrite(tmp_path / "in" / "z.tif", raw)
    monkeypatch.setattr(ps, "load", lambda *_, **__: FailingRestorer(BackendError("out of memory")))
    result = run("restore", tmp_path / "in", "-o", tmp_path / "out", *CAMERA)
    assert result.exit_code == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["z.tif"]
    assert "error: out of memory" in result.stderr
    assert "saturated on 3 of 3 planes" in result.stderr


def test_ctrl_c_removes_the_unfinished_output(tmp_path, raw):
    tifffile.imwrite(tmp_path / "in.tif", np.tile(raw, (400, 4, 4)), photometric="minisblack")
    options = ("-o", "out.tif", "--bundle", BUNDLE, *CAMERA)
    command = [sys.executable, "-m", "photonstep.cli", "restore", "in.tif", *options]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    deadline = time.monotonic() + 60
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        while not list(tmp_path.glob(".out.tif.*.partial")):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline, "no output was begun"
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, messages = process.communicate(timeout=60)
    assert (process.returncode, "interrupted" in messages) == (130, True)
    assert [path.name for path in tmp_path.iterdir()] == ["in.tif"]


def test_one_file_under_two_names_is_restored_once(tmp_path, raw):
    plan = restore_files.Plan()
    outcome = restore_files.Outcome()
    tifffile.imwrite(tmp_path / "a.tif", raw)
    (tmp_path / "link.tif").symlink_to(tmp_path / "a.tif")
    pairs = [(tmp_path / name, tmp_path / f"out-{name}") for name in ("a.tif", "link.tif")]
    assert [job.source.name for job in restore_files.inspect(pairs, plan, outcome)] == ["a.tif"]


@pytest.mark.parametrize("name", ["out.jpg", "out.zarr"])
def test_restore_does_not_take_a_foreign_format_for_a_folder(tmp_path, raw, name):
    Image.fromarray(raw).save(tmp_path / "in.png")
    result = run("restore", tmp_path / "in.png", "-o", tmp_path / name)
    assert result.exit_code == 2
    assert f"cannot write {Path(name).suffix}" in " ".join(result.stderr.split())
    assert not (tmp_path / name).exists()


def test_a_wrong_sampler_is_told_before_any_work(tmp_path, raw):
    Image.fromarray(raw).save(tmp_path / "in.png")
    result = run("restore", tmp_path / "in.png", "-o", tmp_path / "out.png", "--sampler", "dpmpp_2m")
    assert result.exit_code == 2
    assert "dpm_solver_pp_2m" in result.stderr
    assert "camera estimated" not in result.stderr


def test_every_sampler_that_help_names_exists():
    text = " ".join(run("restore", "--help").output.replace("│", " ").split())
    named = re.search(r"(ddim, .*?) or (consistency)", text)
    assert named is not None
    assert {*named[1].split(", "), named[2]} <= set(SAMPLERS)


def test_calibrate_finds_the_camera(tmp_path):
    random = np.random.default_rng(3)
    offset_adu, gain, readout_e = 100.0, 0.5, 2.0

    def frames(photons):
        electrons = random.poisson(photons, (40, 64, 64)) + random.normal(0, readout_e, (40, 64, 64))
        return np.clip(np.round(electrons / gain + offset_adu), 0, 65535).astype(np.uint16)

    for name, photons in (("dark", 0), ("flat1", 50), ("flat2", 400)):
        tifffile.imwrite(tmp_path / f"{name}.tif", frames(photons), photometric="minisblack")
    arguments = (
        "calibrate",
        "--dark",
        tmp_path / "dark.tif",
        "--flat",
        tmp_path / "flat1.tif",
        "--flat",
        tmp_path / "flat2.tif",
    )
    result = run(*arguments, "-o", tmp_path / "camera.json")
    assert result.exit_code == 0, result.output
    assert "95 % interval" in result.output
    camera = Camera.load(tmp_path / "camera.json")
    low, high = camera.gain_interval_e_per_adu
    assert low < gain < high < 1.05 * low
    assert camera.summary()["offset_adu"] == pytest.approx(offset_adu, abs=1)
    again = run(*arguments, "-o", tmp_path / "camera.json")
    assert (again.exit_code, "--overwrite" in again.stderr) == (2, True)
    tifffile.imwrite(tmp_path / "one.tif", frames(5)[0])
    single = run(
        "calibrate", "--dark", tmp_path / "one.tif", "--flat", tmp_path / "flat1.tif", "-o", tmp_path / "c.json"
    )
    assert (single.exit_code, "one.tif: has one frame" in single.stderr) == (2, True)


@pytest.mark.parametrize("name", ["base", "live"])
def test_info_shows_what_the_bundle_holds(name):
    result = run("info", name)
    assert result.exit_code == 0, result.output
    for text in (name, "sha256", "Networks", "fp32", "Training data", "licence"):
        assert text in result.output


def test_doctor_says_what_auto_chose_and_why():
    result = run("doctor", "--bundle", BUNDLE)
    assert result.exit_code == 0, result.output
    for text in ("openvino", "onnxruntime", "numpy", "auto chose"):
        assert text in result.output


def test_bench_writes_rows_with_machine_and_versions(tmp_path):
    arguments = ("bench", "--bundle", BUNDLE, "--size", "64", "--size", "64x96", "--steps", "1", "--seconds", "0.2")
    result = run(*arguments, "--json", tmp_path / "bench.json")
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "bench.json").read_text())
    assert [(row["height_px"], row["width_px"], row["steps"]) for row in record["rows"]] == [(64, 64, 1), (64, 96, 1)]
    for row in record["rows"]:
        latency = row["latency"]
        assert 0 < latency["p50_ms"] <= latency["p99_ms"] <= latency["max_ms"]
        assert 0 < latency["outside_network_share"] < 1
        assert latency["runs"] >= 5
    assert record["machine"]["cpu_count"] >= 1
    assert record["machine"]["packages"]["numpy"] == np.__version__
    assert run(*arguments, "--json", tmp_path / "bench.json").exit_code == 2
    assert run("bench", "--size", "7").exit_code == 2


def test_demo_restores_measures_and_draws(tmp_path):
    result = run("demo", "-o", tmp_path / "demo.png", "--bundle", BUNDLE)
    assert result.exit_code == 0, result.output
    for text in ("PSNR", "SSIM", "p50", "p99", BUNDLE):
        assert text in result.output
    restored = next(line for line in result.output.splitlines() if line.startswith("restored")).split()
    raw_row = next(line for line in result.output.splitlines() if line.startswith("raw frame")).split()
    assert float(restored[1]) > float(raw_row[2]) + 6  # dB
    with Image.open(tmp_path / "demo.png") as picture:
        assert picture.size[0] > 1600
    assert run("demo", "-o", tmp_path / "demo.png", "--bundle", BUNDLE).exit_code == 0  # its own picture, made anew
    Image.new("L", (8, 8)).save(tmp_path / "mine.png")
    refused = run("demo", "-o", tmp_path / "mine.png")
    assert (refused.exit_code, "no demo picture" in refused.stderr) == (2, True)
