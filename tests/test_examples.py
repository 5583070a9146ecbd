"""The examples run, each in a fresh folder; so does the Python in the documents, and their links lead somewhere."""

import ast
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

import photonstep as ps
from photonstep.runtime import samplers, schedule

REPOSITORY = Path(__file__).resolve().parent.parent
EXAMPLES = REPOSITORY / "examples"
DOCUMENTS = ("README.md", "CHANGELOG.md", *sorted(f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md")))
SIGNPOST = re.compile(r"`((?:[a-z_]+/)+[a-z_]+\.py):([A-Za-z_.]+)`")
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]+)?\)")
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run_python(arguments, folder):
    """Run Python in ``folder`` against this source tree, on one thread; its stdout, or a failure that shows stderr."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", *map(str, arguments)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def load_example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def python_blocks(document):
    return PYTHON_BLOCK.findall((REPOSITORY / document).read_text())


def test_every_example_is_tested_here():
    tested = {n.value for n in ast.walk(ast.parse(Path(__file__).read_text())) if isinstance(n, ast.Constant)}
    missing = {path.name for path in EXAMPLES.glob("*.py")} - tested
    assert not missing


def test_restore_folder_writes_a_restored_copy_with_its_provenance(tmp_path):
    said = run_python([EXAMPLES / "restore_folder.py", "-o", "restored"], tmp_path)
    assert "demo.tif: written" in said
    raw, truth = tifffile.imread(REPOSITORY / "photonstep" / "demo_data" / "demo.tif")
    with tifffile.TiffFile(tmp_path / "restored" / "demo.tif") as file:
        restored, description = file.asarray()[0], file.pages[0].description
    assert restored.shape == raw.shape
    assert restored.dtype == raw.dtype
    assert error(restored, truth) < 0.5 * error(raw, truth)
    assert ps.load("base").bundle.sha256 in description


def test_restore_folder_skips_a_damaged_file_and_says_why(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "broken.tif").write_bytes(b"II*\0 not much of a TIFF")
    said = run_python([EXAMPLES / "restore_folder.py", "in", "-o", "out"], tmp_path)
    assert "broken.tif: skipped: " in said
    assert list((tmp_path / "out").iterdir()) == []


def test_wrap_diffusers_makes_a_bundle_that_restores(tmp_path):
    said = run_python([EXAMPLES / "wrap_diffusers.py", "-o", "mine.photonstep"], tmp_path)
    assert "tiles are refused" in said
    assert "restored (128, 128) uint8" in said
    assert ps.Bundle.load(tmp_path / "mine.photonstep").manifest.authors == ("me",)


def test_calibrate_camera_finds_the_simulated_camera(tmp_path):
    said = run_python([EXAMPLES / "calibrate_camera.py"], tmp_path)
    assert "gain: " in said
    camera = ps.Camera.load(tmp_path / "camera.json")
    low, high = camera.gain_interval_e_per_adu
    assert low < 0.46 < high
    assert camera.map_shape == (96, 128)
    assert abs(np.median(camera.offset_adu) - 100) < 0.3
    assert abs(np.median(camera.readout_noise_e) - 1.6) < 0.05


def test_in_the_loop_restores_or_replaces_every_frame(tmp_path):
    frames = 8
    said = run_python([EXAMPLES / "in_the_loop.py", "--frames", frames, "--fps", 20], tmp_path)
    restored, replaced = (int(number) for number in re.search(r"restored (\d+), replaced .* (\d+)", said).groups())
    assert restored >= 1
    assert restored + replaced == frames
    preview = tifffile.imread(tmp_path / "preview.tif")
    assert preview.dtype == np.uint16
    assert preview.min() >= 99  # the camera's offset: light is never negative


def test_live_loop_accounts_for_every_frame(tmp_path):
    frames = 12
    said = run_python([EXAMPLES / "live_loop.py", "--frames", frames, "--fps", 40, "--deadline-ms", 5000], tmp_path)
    put, delivered, dropped = re.search(r"put (\d+), delivered (\d+), dropped (none|{.*?})", said).groups()
    lost = {} if dropped == "none" else ast.literal_eval(dropped)
    assert int(put) == frames == int(delivered) + sum(lost.values())
    assert "plans {'K=2'" in said
    with Image.open(tmp_path / "preview.png") as preview:
        assert preview.mode == "L"
        assert np.asarray(preview).std() > 20


def test_control_loop_follows_the_bead_and_is_made_safe_once_the_camera_stalls(tmp_path):
    arguments = ["--frames", 60, "--fps", 100, "--deadline-ms", 5000]
    said = run_python([EXAMPLES / "control_loop.py", *arguments], tmp_path)
    assert "shutter closed: stalled: no action for" in said
    drifted_px, off_px = map(float, re.search(r"drifted ([\d.]+) px and is ([\d.]+) px", said).groups())
    assert drifted_px > 10
    assert off_px < 3


def test_python_in_the_page_on_live_streams_runs(tmp_path):
    """The blocks of docs/live.md, word for word and one after the other."""
    blocks = python_blocks("docs/live.md")
    assert len(blocks) >= 3
    said = run_python(["-c", "\n".join(blocks)], tmp_path)
    assert "K=1" in said


def test_own_sampler_prints_all_samplers_above_the_raw_frame(tmp_path):
    said = run_python([EXAMPLES / "own_sampler.py"], tmp_path)
    _, table = said.split("sampler   ")
    psnr_db = [float(line.split()[-1]) for line in table.splitlines()[1:]]
    assert len(psnr_db) == 1 + 4 * 3 + 2 + 1
    assert min(psnr_db[1:]) > psnr_db[0] + 3


def test_own_sampler_walks_as_the_restorer_does(restorer, confocal):
    own = load_example("own_sampler")
    camera = ps.Camera.estimate(confocal.raw)
    rows = samplers.table("ddim", schedule.measured(2))
    assert np.array_equal(
        own.walk(restorer, confocal.raw, camera, rows), restorer(confocal.raw, camera=camera, steps=2)
    )


def test_own_sampler_is_of_second_order():
    """On an ODE with a known end: halving the steps divides the error by four, for DDIM by two."""
    own = load_example("own_sampler")
    variance = 0.3**2

    def gaussian_denoiser(x, sigma):
        return x * variance / (variance + sigma**2)

    start, end = 1.0, 0.05
    exact = math.sqrt((variance + end**2) / (variance + start**2))

    def miss(sampler, steps):
        rows = sampler(schedule.log_linear(steps, start, end, to_zero=False))
        return abs(float(samplers.sample(np.ones(1), rows, gaussian_denoiser)[0]) - exact)

    assert 1.8 < miss(samplers.ddim, 32) / miss(samplers.ddim, 64) < 2.2
    assert 3.6 < miss(own.dpm_solver_pp_2s, 32) / miss(own.dpm_solver_pp_2s, 64) < 4.4


def test_plain_onnxruntime_restores_as_the_runtime_does(tmp_path, framed_bundle, lysosome):
    tifffile.imwrite(tmp_path / "raw.tif", lysosome)
    script = (EXAMPLES / "plain_onnxruntime.py").read_text()
    assert "photonstep" not in {name.split(".")[0] for name in imported(script)}
    run_python([EXAMPLES / "plain_onnxruntime.py", framed_bundle.path, "raw.tif", "restored.tif"], tmp_path)
    [numbers] = re.findall(r"^numbers = ({.*})", script, re.MULTILINE)
    restorer = ps.load(framed_bundle, backend="onnxruntime", precision="fp32", threads=1)
    wanted = restorer(lysosome, camera=ps.Camera(**ast.literal_eval(numbers)), steps=1)
    restorer.close()
    restored = tifffile.imread(tmp_path / "restored.tif")
    assert restored.dtype == np.uint16
    assert np.abs(restored.astype(int) - wanted).max() <= 1
    (tmp_path / "my.photonstep").write_bytes(framed_bundle.path.read_bytes())
    of_bundle, plain = python_blocks("docs/embedding.md")
    run_python(["-c", f"{of_bundle}\nassert content\n{plain}\ntifffile.imwrite('documented.tif', restored)"], tmp_path)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "documented.tif"), restored)


def test_make_pictures_draws_every_frame(tmp_path):
    run_python([EXAMPLES / "make_pictures.py", "-o", "images"], tmp_path)
    names = {path.stem for path in (tmp_path / "images").glob("*.png")}
    assert names == {"mouse_brain", "actin", "two_photon", "widefield", "steps"}
    for name in names:
        with Image.open(tmp_path / "images" / f"{name}.png") as picture:
            grey = np.asarray(picture.convert("L"))
        assert grey.shape[1] > 1500
        assert grey.std() > 30  # something is drawn on it


def test_readme_example_runs(tmp_path):
    """The README's Python, word for word, on a stack that a camera with its numbers might have taken."""
    code = "\n".join(python_blocks("README.md"))
    rng = np.random.default_rng(0)
    _, scene = tifffile.imread(REPOSITORY / "photonstep" / "demo_data" / "demo.tif")
    photons = scene[128:384, 128:384] * 0.2
    electrons = rng.poisson(photons) + rng.normal(0, 1.6, photons.shape)
    raw = np.clip(np.rint(electrons / 0.46 + 100), 0, 65535).astype(np.uint16)
    tifffile.imwrite(tmp_path / "cells.tif", raw)
    said = run_python(["-c", code], tmp_path)
    assert re.search(r"^0 (K=\d|live K=1|raw) ", said, re.MULTILINE)  # the live block: any plan, by its name
    assert "StageTimes(count=1" in said
    restored = tifffile.imread(tmp_path / "restored.tif")
    truth = photons / 0.46 + 100
    assert restored.dtype == np.uint16
    assert error(restored, truth) < 0.5 * error(raw, truth)


def test_python_in_the_page_on_fusion_runs_and_fuses(tmp_path):
    [code] = python_blocks("docs/temporal.md")
    code += "\nprint(result.sigma, restorer.restore(frame, camera=camera).sigma)"
    fused, single = map(float, run_python(["-c", code], tmp_path).split())
    assert 0.4 * single < fused < 0.6 * single  # a mean over four frames


def test_python_in_the_design_runs_and_prints_its_table(tmp_path):
    [code] = python_blocks("docs/design.md")
    rows = [line.split() for line in run_python(["-c", code], tmp_path).splitlines()]
    text = (REPOSITORY / "docs" / "design.md").read_text()
    for readout in sorted({float(row[0]) for row in rows}):
        printed = [f"{float(row[2]):.2f}" for row in rows if float(row[0]) == readout]
        assert f"| {' | '.join(printed)} |" in text


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    path = REPOSITORY / document
    relative = [target for target, _ in LINK.findall(path.read_text()) if "://" not in target]
    broken = [target for target in relative if not (path.parent / target).exists()]
    assert not broken


@pytest.mark.parametrize("document", DOCUMENTS)
def test_signposts_name_what_is_there(document):
    """``runtime/restore.py:load`` in a document: the file is there and defines that name."""
    for file, name in SIGNPOST.findall((REPOSITORY / document).read_text()):
        scope = ast.parse((REPOSITORY / file).read_text())
        for part in name.split("."):
            found = [node for node in scope.body if part in defined_names(node)]
            assert found, f"{document} points to {file}:{name}, which is not there"
            scope = found[0]


def test_readme_has_signposts():
    assert len(SIGNPOST.findall((REPOSITORY / "README.md").read_text())) >= 20


def test_loss_curve_draws_a_run(tmp_path):
    (tmp_path / "log.csv").write_text("step,seconds,train_loss,held_out_loss\n2000,60,0.4,0.3\n4000,120,0.3,0.25\n")
    settings = {"tier": "live", "steps": 30000, "learning_rate": 0.002, "seed": 7}
    (tmp_path / "config.json").write_text(json.dumps({"train": settings, "network": {}}))
    run_python(["-m", "photonstep.models.loss_curve", ".", ".", "-o", "pictures/loss.png"], tmp_path)
    with Image.open(tmp_path / "pictures" / "loss.png") as picture:
        assert picture.width > 800


def test_loss_curve_says_what_is_wrong_with_a_log(tmp_path):
    from photonstep.models.loss_curve import read_run

    with pytest.raises(ValueError, match="no such file"):
        read_run(tmp_path)
    (tmp_path / "log.csv").write_text("step,loss\n1,2\n")
    with pytest.raises(ValueError, match="expected rows of step, seconds, train_loss, held_out_loss"):
        read_run(tmp_path)


def defined_names(node):
    """Names that a statement defines: a function, a class, or a constant."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def imported(script):
    """Names that a script imports."""
    nodes = list(ast.walk(ast.parse(script)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module for node in nodes if isinstance(node, ast.ImportFrom)}


def error(image, truth):
    """Root mean square difference."""
    return float(np.sqrt(np.mean((image.astype(np.float64) - truth) ** 2)))
