"""The commands of the training side, one after another on a tiny network: what one writes the next one takes."""

import json
import sys

import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner

from photonstep.cli import app
from photonstep.models import data as clean_data
from photonstep.models.network import TIERS, NetworkConfig
from photonstep.runtime.bundle import Bundle

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
    quick = ("--scenes", 1, "--size", 64, "--blank-frames", 1)
    same = run("validate", bundle, "--against", bundle, *quick, "--json", tmp_path / "same.json")
    assert same.exit_code == 0, same.output
    assert json.loads((tmp_path / "same.json").read_text())["passed"] is True
    worse = run("validate", bundle, "--against", "live", *quick)
    assert worse.exit_code == 1, worse.output


def test_what_is_wrong_is_said_in_one_line(trained, tmp_path):
    for arguments, says in (
        (("prune", trained / "teacher", "-o", tmp_path / "a"), "target"),
        (("distill", tmp_path / "nothing", "-o", tmp_path / "a"), "nothing"),
        (("export", trained / "teacher"), "--output"),
        (("validate", "nowhere", "--against", "live"), "nowhere"),
        (("train", tmp_path / "absent", "--from", "live", "-o", tmp_path / "b"), "absent"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2, result.output
        assert says in result.output
        assert "Traceback" not in result.output


def test_without_the_extra_the_error_names_it(monkeypatch, tmp_path):
    for name in [name for name in sys.modules if name.startswith(("photonstep.models", "photonstep.export"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((32, 32), np.uint16))
    result = run("train", tmp_path, "-o", tmp_path / "run")
    assert result.exit_code == 2
    assert "photonstep[train]" in result.output
