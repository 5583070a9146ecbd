"""The commands of the training side, one after another on a tiny network: what one writes the next one takes."""

import json
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner

from photonstep.bundle_commands import _bundle_name
from photonstep.cli import app
from photonstep.export import bioimageio, detail, distil, prune, quantize, tensorrt
from photonstep.models import data as clean_data
from photonstep.models.network import TIERS, NetworkConfig
from photonstep.runtime.bundle import Bundle
from photonstep.runtime.errors import TrainingError

COMMANDS = ("train", "distill", "prune", "quantize", "export", "validate")


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def few_fields():
    """Eight simulated fields instead of thousands, and a network of a few thousand weights."""
    patch = pytest.MonkeyPatch()
    full = clean_data.simulated_fields
    patch.setattr(clean_data, "simulated_fields", lambda cache, count, seed: full(cache, min(count, 8), seed, 128))
    patch.setitem(TIERS, "tiny", NetworkConfig(widths=(16, 16)))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def trained(few_fields, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    result = run("train", "--tier", "tiny", "--steps", 2, "-o", folder / "teacher")
    assert result.exit_code == 0, result.output
    assert "weights.pt" in result.output
    return folder


@pytest.fixture
def calls(monkeypatch):
    """What the commands ask the training side for; nothing is done."""
    seen = []

    def double(module, name, result="done"):
        monkeypatch.setattr(module, name, lambda *given, **named: seen.append((given, named)) or result)

    for module, name in ((distil, "distill"), (detail, "distill_detail"), (prune, "prune"), (bioimageio, "write")):
        double(module, name)
    double(quantize, "quantize", SimpleNamespace(entries={}))
    double(tensorrt, "build", SimpleNamespace(cached=True, path="engine"))
    return seen


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_its_help(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "Usage: " in result.output


def test_a_student_is_distilled_pruned_quantised_and_exported(trained, few_fields):
    distilled = run("distill", trained / "teacher", "-o", trained / "distilled", "--training-steps", 2)
    assert distilled.exit_code == 0, distilled.output
    assert "dB" in distilled.output
    pruned = run(
        "prune", trained / "distilled", "-o", trained / "student", "--target-macs", 0.9, "--multiple", 8,
        "--training-steps", 2,
    )  # fmt: skip
    assert pruned.exit_code == 0, pruned.output
    halved = run("quantize", trained / "student", "--precision", "fp16")
    assert halved.exit_code == 0, halved.output
    bundle = trained / "student.photonstep"
    exported = run("export", trained / "student", "-o", bundle, "--frame-steps", 1)
    assert exported.exit_code == 0, exported.output
    loaded = Bundle.load(bundle)
    assert set(loaded.networks) == {"fp32", "fp16"}
    assert "distilled" in loaded.read("model_card.md").decode()
    again = run("export", trained / "student", "-o", bundle)
    assert again.exit_code == 2
    assert "exists" in again.output


def test_a_bundle_passes_its_gates_against_itself_and_fails_against_a_better_one(trained, few_fields, tmp_path):
    bundle = tmp_path / "untrained.photonstep"
    assert run("export", trained / "teacher", "-o", bundle, "--frame-steps", 1).exit_code == 0
    quick = ("--scenes", 1, "--size", 64, "--blank-frames", 1, "--seed", 5, "--threads", 2)
    same = run("validate", bundle, "--against", bundle, *quick, "--json", tmp_path / "same.json")
    assert same.exit_code == 0, same.output
    found = json.loads((tmp_path / "same.json").read_text())
    assert found["passed"] is True
    assert (found["settings"]["seed"], found["settings"]["threads"]) == (5, 2)
    worse = run("validate", bundle, "--against", "live", *quick)
    assert worse.exit_code == 1, worse.output


def test_what_is_wrong_is_said_in_one_line(trained, tmp_path):
    teacher, bundle = trained / "teacher", tmp_path / "a.photonstep"
    broken, foreign = tmp_path / "broken.json", tmp_path / "foreign.json"
    broken.write_text("{")
    foreign.write_text("[]")
    for arguments, says in (
        (("prune", teacher, "-o", tmp_path / "a"), "target"),
        (("prune", teacher, "--target-macs", 0.5, "--latency-table", broken), "broken.json cannot be read"),
        (("prune", tmp_path / "typo", "--target-macs", 0.5), "nothing at"),
        (("distill", tmp_path / "nothing", "-o", tmp_path / "a"), "nothing"),
        (("distill", teacher, "--heun-steps", 8), "--heun-steps: no effect without --detail"),
        (("distill", teacher, "--steps", 2, "--teacher-steps", 2), "--teacher-steps: no effect with --steps 2"),
        (("quantize", teacher, "--precision", "fp16", "--in-float", "stem"), "--in-float: no effect"),
        (("export", teacher), "--output"),
        (("export", tmp_path / "typo", "-o", bundle), "no such run folder"),
        (("export", teacher / "weights.pt", "-o", bundle), "give the folder"),
        (("export", tmp_path / "typo.photonstep", "--tensorrt", "rtx"), "no bundle"),
        (("export", "live"), "--bioimageio FILE.zip or --tensorrt rtx"),
        (("export", "live", "-o", bundle, "--tensorrt", "rtx"), "--output: no effect on live, a bundle already"),
        (("export", teacher, "-o", bundle, "--engine-max", 64, 64), "--engine-max: no effect without --tensorrt"),
        (("export", teacher, "-o", bundle, "--camera", broken), "--camera: no effect without --bioimageio"),
        (("export", teacher, "-o", bundle, "--name", "My Run"), "--name is 'My Run'"),
        (("export", teacher, "-o", bundle, "--validation", tmp_path / "absent.json"), "absent.json cannot be read"),
        (("export", teacher, "-o", bundle, "--validation", broken), "broken.json cannot be read"),
        (("export", teacher, "-o", bundle, "--validation", foreign), "foreign.json cannot be read"),
        (("export", teacher, "-o", bundle, "--test-frame", tmp_path / "absent.tif"), "absent.tif cannot be read"),
        (("export", teacher, "-o", bundle, "--test-frame", broken), "broken.json cannot be read"),
        (("validate", "nowhere", "--against", "live"), "nowhere"),
        (("train", tmp_path / "absent", "--from", "live", "-o", tmp_path / "b"), "absent"),
        (("train", "--tier", "tiny", "--steps", 1, "-o", broken), "broken.json"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2, (arguments, result.output)
        assert says in result.output, (arguments, result.output)
        assert result.output.splitlines()[-1].startswith("error: ")
        assert "Traceback" not in result.output
    assert not bundle.exists()


def test_the_recipe_of_the_shipped_weights_can_be_asked_for(calls, tmp_path):
    shared = ("--truth-share", 0.4, "--seed", 21, "-o", tmp_path / "out")
    distilled = run("distill", "live", "--teacher-steps", 2, "--measured-share", 0.9, *shared)
    detailed = run(
        "distill", "live", "--detail", "--teacher-steps", 2, "--heun-steps", 8, "--cached-batches", 3, *shared
    )
    measured = ("--latency-table", tmp_path / "ms.json", "--frame-px", 256, "--backend-precision", "fp32")
    pruned = run("prune", "live", "--target-macs", 0.6, *measured, *shared)
    lower = ("--in-float", "a", "--in-float", "b", "--percentiles", 99.9, "--percentiles", 100)
    halved = run("quantize", "live", *lower, "-o", tmp_path)
    for result in (distilled, detailed, pruned, halved):
        assert result.exit_code == 0, result.output
    asked = [named["settings"] for _, named in calls]
    assert {(s.truth_share, s.seed) for s in asked[:3]} == {(0.4, 21)}
    assert (asked[0].teacher_steps, asked[0].measured_share) == (2, 0.9)
    assert (asked[1].teacher_steps, asked[1].heun_steps, asked[1].cached_batches) == (2, 8, 3)
    assert (asked[2].frame_px, asked[2].backend_precision) == (256, "fp32")
    assert calls[2][1]["latency_table"] == tmp_path / "ms.json"
    assert (asked[3].in_float, asked[3].percentiles) == (("a", "b"), (99.9, 100.0))


def test_formats_of_a_bundle_take_their_options(calls, tmp_path):
    sides = ("--engine-min", 64, 128, "--engine-opt", 128, 256, "--engine-max", 256, 512)
    zoo = ("--bioimageio", tmp_path / "a.zip", "--bioimageio-steps", 2)
    result = run("export", "live", "--tensorrt", "rtx", *sides, *zoo)
    assert result.exit_code == 0, result.output
    (written, zoo_options), (_, engine_options) = calls
    assert (written, zoo_options["steps"]) == (("live", tmp_path / "a.zip"), 2)
    profile = tensorrt.Profile(smallest=(64, 128), usual=(128, 256), largest=(256, 512))
    assert (engine_options["profile"], engine_options["precision"]) == (profile, "fp16")


def test_without_an_output_a_student_goes_beside_its_run(calls, tmp_path, monkeypatch):
    (tmp_path / "runs" / "big").mkdir(parents=True)
    (tmp_path / "runs" / "big" / "weights.pt").touch()
    (tmp_path / "my.photonstep").touch()
    for here, source, place in (
        (tmp_path, "runs/big/", "runs/big-distilled"),
        (tmp_path, "runs/big/weights.pt", "runs/big-distilled"),
        (tmp_path / "runs", tmp_path / "my.photonstep", "my-distilled"),
        (tmp_path, "live", "live-distilled"),
        (tmp_path / "runs" / "big", ".", tmp_path / "runs" / "big-distilled"),
    ):
        monkeypatch.chdir(here)
        result = run("distill", source)
        assert (result.exit_code, f"run folder: {place}" in result.output) == (0, True), result.output
        assert calls[-1][0][1] == Path(place)
    assert run("prune", "live", "--target-macs", 0.5).exit_code == 0
    assert calls[-1][0][1] == Path("live-pruned")


def test_ctrl_c_in_training_says_that_the_run_goes_on(tmp_path, monkeypatch):
    def interrupted(run, output, **_):
        output.mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(distil, "distill", interrupted)
    result = run("distill", "live", "-o", tmp_path / "student")
    assert result.exit_code == 130
    assert f"the run folder {tmp_path / 'student'} is kept, and the same command goes on" in result.output


def test_a_bundle_is_named_after_its_folder(tmp_path):
    for folder, name in (("My Run", "my-run"), ("_x.1", "x-1"), ("a" * 70, "a" * 63), ("été", "t")):
        assert _bundle_name(None, tmp_path / folder) == name
    assert _bundle_name("given", tmp_path) == "given"
    with pytest.raises(TrainingError, match="--name"):
        _bundle_name(None, tmp_path / "???")


@pytest.mark.parametrize("module", ["distil", "detail", "prune", "quantize", "qat"])
def test_modules_of_the_stages_say_what_is_wrong_in_one_line(module, tmp_path, monkeypatch, capsys):
    target = ("--target-macs", "1.5") if module == "prune" else ()
    monkeypatch.setattr(sys, "argv", [module, str(tmp_path / "typo"), "-o", str(tmp_path / "out"), *target])
    assert import_module(f"photonstep.export.{module}").main() == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_without_the_extra_the_error_names_it(monkeypatch, tmp_path):
    for name in [name for name in sys.modules if name.startswith(("photonstep.models", "photonstep.export"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((32, 32), np.uint16))
    result = run("train", tmp_path, "-o", tmp_path / "run")
    assert result.exit_code == 2
    assert "photonstep[train]" in result.output
