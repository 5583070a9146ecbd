"""What a bundle tells of itself: lineage, data, quantised networks, frame graphs, validations, and the model card."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import tifffile
import torch

import photonstep as ps
from photonstep.export import package as command
from photonstep.export.lineage import built_in_data, lineage_of
from photonstep.export.onnx import to_onnx
from photonstep.export.package import package
from photonstep.export.validate import validate
from photonstep.export.validation import Validation
from photonstep.models.checkpoint import load_network
from photonstep.models.network import Denoiser, NetworkConfig
from photonstep.runtime.bundle import Bundle
from photonstep.runtime.errors import BundleError, TrainingError

CONFIG = NetworkConfig(widths=(16, 16))
OWN = {"name": "mine", "licence": "CC-BY-4.0", "source": "own recordings"}


def make_run(
    folder,
    *,
    stage="train",
    task="denoise",
    started_from=None,
    teacher=None,
    training_data=None,
    config=CONFIG,
    **settings,
):
    """A finished run folder of random weights."""
    folder.mkdir(parents=True)
    torch.manual_seed(len(str(folder.name)))
    network = Denoiser(config)
    torch.nn.init.normal_(network.head.weight, std=0.05)  # training starts it at zero
    record = {
        "stage": stage, "task": task, "settings": {"steps": 40, "seed": 1, **settings},
        "network": config.as_dict(),
        "started_from": started_from, "teacher": teacher, "training_data": training_data or [],
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(record))
    (folder / "log.csv").write_text("step,seconds,train_loss,held_out_loss\n20,60,1.5,1.4\n40,120,1.2,1.1\n")
    torch.save({"network": config.as_dict(), "state": network.state_dict(), "step": 40}, folder / "weights.pt")
    return folder


@pytest.fixture(scope="module")
def test_frame(tmp_path_factory, confocal):
    path = tmp_path_factory.mktemp("frames") / "frame.tif"
    tifffile.imwrite(path, confocal.raw[:128, :128])
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """teacher -> student (distilled) -> small (pruned, learning from the teacher)."""
    folder = tmp_path_factory.mktemp("runs")
    teacher = make_run(folder / "teacher", tier="teacher", training_data=[OWN])
    student = make_run(folder / "student", stage="distill", teacher=str(teacher), student_steps=1)
    small = make_run(folder / "small", stage="prune", started_from=str(student / "weights.pt"), teacher=str(teacher))
    (small / "pruning.json").write_text('{"target": "2 ms"}')
    return {"teacher": teacher, "student": student, "small": small}


@pytest.fixture(scope="module")
def packaged(runs, test_frame, tmp_path_factory):
    path = tmp_path_factory.mktemp("bundles") / "small.photonstep"
    return package(runs["small"], path, name="small", version="1.0.0", test_frame=test_frame, frame_steps=(1, 2))


# --- lineage ---


def test_stages_come_in_the_order_in_which_they_were_run(runs):
    lineage = lineage_of(runs["small"])
    assert [(s["stage"], s["run"]) for s in lineage.stages] == [
        ("train", "teacher"), ("distill", "student"), ("prune", "small")
    ]  # fmt: skip
    assert lineage.teachers == ()  # the teacher is in the line already
    last = lineage.last
    assert last["cost"] == {"steps": 40, "seconds": 120.0}
    assert last["gained"] == {"first_held_out_loss": 1.4, "last_held_out_loss": 1.1}
    assert last["pruning"] == {"target": "2 ms"}
    assert last["configuration"]["started_from"] == "student"
    assert last["configuration"]["teacher"] == "teacher"


def test_a_teacher_beside_the_line_is_told_apart(tmp_path):
    first = make_run(tmp_path / "first", training_data=[OWN])
    teacher = make_run(tmp_path / "teacher", training_data=[OWN | {"name": "theirs"}])
    student = make_run(tmp_path / "student", stage="distill", started_from=str(first), teacher=str(teacher))
    lineage = lineage_of(student)
    assert [s["run"] for s in lineage.stages] == ["first", "student"]
    assert [s["run"] for s in lineage.teachers] == ["teacher"]
    assert {d["name"] for d in lineage.training_data} >= {"mine", "theirs"}


def test_data_of_every_stage_is_told_and_silence_counts_as_everything(runs, tmp_path):
    names = [d["name"] for d in lineage_of(runs["small"]).training_data]
    assert names[0] == "mine"
    assert set(names) == {"mine"} | {d["name"] for d in built_in_data()}
    alone = make_run(
        tmp_path / "alone", training_data=[OWN, {"name": "dsb2018", "licence": "CC0-1.0", "source": "clean/dsb2018"}]
    )
    mine, known = lineage_of(alone).training_data
    assert mine == OWN
    assert "Data Science Bowl" in known["source"]


def test_a_fine_tuned_bundle_tells_the_bundle_that_it_started_from(tmp_path):
    run = make_run(tmp_path / "tuned", started_from="live", training_data=[OWN])
    lineage = lineage_of(run)
    assert [s["stage"] for s in lineage.stages][-2:] == ["bundle", "train"]
    assert lineage.stages[-2]["run"].startswith("live ")
    assert lineage.stages[0]["cost"]["steps"] > 0  # also where the bundle's report is of an older form
    assert {d["name"] for d in lineage.training_data} >= {"mine", "simulated structures"}


def test_runs_that_were_moved_together_find_one_another(runs, tmp_path):
    for name, run in runs.items():
        shutil.copytree(run, tmp_path / "moved" / name)
    for name in runs:
        path = tmp_path / "moved" / name / "config.json"
        path.write_text(path.read_text().replace(str(runs["teacher"].parent), "/elsewhere"))
    assert [s["run"] for s in lineage_of(tmp_path / "moved" / "small").stages] == ["teacher", "student", "small"]
    shutil.rmtree(tmp_path / "moved" / "student")
    cut = lineage_of(tmp_path / "moved" / "small")
    assert [(s["stage"], s["run"]) for s in cut.stages] == [("unknown", "student"), ("prune", "small")]
    assert [s["run"] for s in cut.teachers] == ["teacher"]


def test_runs_in_a_circle_are_refused(tmp_path):
    make_run(tmp_path / "a", started_from=str(tmp_path / "b"))
    make_run(tmp_path / "b", started_from=str(tmp_path / "a"))
    with pytest.raises(TrainingError, match="met twice"):
        lineage_of(tmp_path / "a")


# --- the bundle ---


def test_the_manifest_tells_data_provenance_and_frame_graphs(packaged):
    manifest = packaged.manifest
    assert manifest.provenance.startswith("trained as tier teacher for 40 steps, seed 1, then distilled from teacher")
    assert "pruned" in manifest.provenance
    assert [g.steps for g in manifest.frame_graphs] == [1, 2]
    assert "mine" in [d.name for d in manifest.training_data]
    assert manifest.defaults.steps == 1
    assert not manifest.model.detail_input


def test_no_path_of_the_training_machine_travels(packaged, runs):
    folder = str(runs["teacher"].parent).encode()
    for name in packaged.members:
        assert folder not in packaged.read(name), name


def test_the_model_card_tells_use_data_lineage_costs_and_limits(packaged):
    card = packaged.read(packaged.manifest.model_card).decode()
    for words in (
        "# small 1.0.0", "CC-BY-4.0", "| distill | student | teacher |", "frame graph, K = 2", "Not measured",
        "correlated up to 0.5", "Keep the raw frames", "photonstep validate small.photonstep",
    ):  # fmt: skip
        assert words in card, words


def test_a_detail_network_and_a_few_step_student_are_declared(test_frame, tmp_path):
    config = NetworkConfig(widths=(16, 16), planes=5)
    run = make_run(tmp_path / "runs" / "detail", stage="distill", config=config, student_steps=2)
    bundle = package(run, tmp_path / "d.photonstep", name="d", version="1.0.0", test_frame=test_frame, frame_steps=())
    assert bundle.manifest.model.detail_input
    assert bundle.manifest.defaults.steps == 2
    assert bundle.manifest.frame_graphs == ()
    found = validate(bundle, bundle, scenes=1, size_px=64, photons=(10.0,), blank_frames=0)
    (example,) = found.examples
    assert np.abs(example.student_detail - example.student).max() > 0  # the knob was turned


def test_what_a_stage_does_not_say_is_that_of_the_stage_before(test_frame, tmp_path):
    options = {"version": "1.0.0", "test_frame": test_frame, "frame_steps": ()}
    few = make_run(tmp_path / "few", stage="distill", student_steps=2)
    rounded = make_run(tmp_path / "rounded", stage="quantize", started_from=str(few))
    again = make_run(tmp_path / "again", started_from=str(rounded))  # trained anew: one step
    made = [package(run, tmp_path / f"{run.name}.photonstep", name="a", **options) for run in (rounded, again)]
    assert [bundle.manifest.defaults.steps for bundle in made] == [2, 1]
    sharp = make_run(tmp_path / "sharp", task="super_resolution", degradation_sigma=0.05)
    rounded = make_run(tmp_path / "rounded2", stage="quantize", task="super_resolution", started_from=str(sharp))
    bundle = package(rounded, tmp_path / "sharp.photonstep", name="a", **options)
    assert (bundle.manifest.scale, bundle.manifest.model.degradation_sigma) == (2, 0.05)
    shutil.rmtree(sharp)
    with pytest.raises(BundleError, match="degradation_sigma"):
        package(rounded, tmp_path / "cut.photonstep", name="a", **options)


def test_weights_that_saw_other_recordings_are_not_credited_to_photonstep(runs, packaged, test_frame, tmp_path):
    assert (packaged.manifest.licence, packaged.manifest.authors) == ("NOASSERTION", ("unknown",))
    options = {"name": "a", "version": "1.0.0", "test_frame": test_frame, "frame_steps": ()}
    ours = package(make_run(tmp_path / "ours"), tmp_path / "ours.photonstep", **options)
    assert (ours.manifest.licence, ours.manifest.authors) == ("MIT", ("the photonstep developers",))
    told = package(
        runs["small"], tmp_path / "told.photonstep", licence="CC-BY-4.0", authors=["A. Microscopist"], **options
    )
    assert (told.manifest.licence, told.manifest.authors) == ("CC-BY-4.0", ("A. Microscopist",))


def test_quantised_networks_are_packed_when_they_are_there(runs, test_frame, tmp_path):
    run = tmp_path / "small"
    shutil.copytree(runs["student"], run)
    folder = run / "quantized"
    folder.mkdir()
    graph = to_onnx(load_network(run))  # stands in for a quantised one: the packing is the same
    for precision in ("int8", "fp16"):
        (folder / f"step_{precision}.onnx").write_bytes(graph)
    entry = {"ranges": "99.9", "in_float": ["stem"], "worst_loss_db": 0.05, "passes": True}
    entry["float_sha256"] = hashlib.sha256(graph).hexdigest()
    (folder / "quantization.json").write_text(json.dumps({"networks": {"int8": entry, "fp16": entry}}))
    options = {"name": "q", "version": "1.0.0", "test_frame": test_frame, "frame_steps": ()}
    everything = package(run, tmp_path / "all.photonstep", **options)
    assert set(everything.networks) == {"fp32", "fp16", "int8"}
    assert json.loads(everything.read("report.json"))["quantisation"]["networks"]["int8"] == entry
    assert "| int8 | 99.9 | stem | +0.050 | yes |" in everything.read("model_card.md").decode()
    some = package(run, tmp_path / "some.photonstep", precisions=["fp16"], **options)
    assert set(some.networks) == {"fp32", "fp16"}
    assert "| int8 | 99.9" not in some.read("model_card.md").decode()
    none = package(run, tmp_path / "none.photonstep", precisions=[], **options)
    assert set(none.networks) == {"fp32"}
    with pytest.raises(BundleError, match="no network of int8_symmetric"):
        package(run, tmp_path / "absent.photonstep", precisions=["int8_symmetric"], **options)
    shutil.copy(runs["small"] / "weights.pt", run / "weights.pt")  # trained on since
    with pytest.raises(BundleError, match="made of other weights"):
        package(run, tmp_path / "stale.photonstep", **options)
    assert not (tmp_path / "stale.photonstep").exists()


def test_a_validation_travels_in_report_card_and_picture(packaged, runs, test_frame, tmp_path):
    quick = {"scenes": 1, "size_px": 64, "photons": (10.0,), "blank_frames": 1}
    found = validate(packaged, "live", **quick)
    read_back = Validation.from_dict(json.loads(json.dumps(found.as_dict())))
    assert read_back.as_dict() == found.as_dict()
    options = {"name": "small", "version": "1.0.0", "test_frame": test_frame, "frame_steps": ()}
    bundle = package(runs["small"], tmp_path / "small.photonstep", validation=read_back, **options)
    (told,) = json.loads(bundle.read("report.json"))["validations"]
    assert told["passed"] == found.passed
    assert "| 10 |" in bundle.read("model_card.md").decode()
    assert bundle.manifest.report.pictures == ("validation.png",)
    with pytest.raises(BundleError, match="validate again"):
        package(runs["student"], tmp_path / "other.photonstep", validation=found, **options)


def test_what_is_no_validation_is_refused():
    for bad in ({}, {"student": {}}, {"student": 3}):
        with pytest.raises(TrainingError, match="no results of a validation"):
            Validation.from_dict(bad)


def test_a_test_frame_in_colour_is_refused(runs, tmp_path):
    path = tmp_path / "colour.tif"
    tifffile.imwrite(path, np.zeros((64, 64, 3), np.uint8), photometric="rgb")
    with pytest.raises(BundleError, match=r"\(64, 64, 3\)"):
        package(runs["student"], tmp_path / "x.photonstep", name="x", version="1.0.0", test_frame=path)


def test_the_command_writes_a_bundle_that_restores(runs, test_frame, confocal, tmp_path, capsys):
    output = tmp_path / "x.photonstep"
    arguments = [str(runs["student"]), "-o", str(output), "--test-frame", str(test_frame), "--frame-steps"]
    assert command.main(arguments) == 0
    assert "wrote" in capsys.readouterr().out
    assert Bundle.load(output).manifest.name == "student"
    restorer = ps.load(output, precision="fp32", threads=1)
    assert restorer(confocal.raw).shape == confocal.raw.shape
    restorer.close()
    assert command.main(arguments) == 2
    assert "exists" in capsys.readouterr().err
