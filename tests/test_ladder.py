"""The ladder: rungs from bundles and runs, the loop in PyTorch, losses over the same images, goals of speed."""

import json

import numpy as np
import pytest
import tifffile

import photonstep as ps
from benchmarks import ladder, ladder_tables, rungs, students
from benchmarks.ladder import LadderRow
from benchmarks.summary import Group
from photonstep.models.checkpoint import network_of_bundle
from photonstep.runtime.bundle import Bundle
from photonstep.runtime.restore import find_bundle

VAL, TEST = (Group(set_name="fmd_fov1", split="val"), Group(set_name="fmd_testmix", split="test"))


def row(method, psnr_db, *, group=VAL, frame="a", ssim=0.9, bias=0.1, error=None):
    return LadderRow(
        frame=f"{group.set_name}/{group.split}/{frame}/0", set_name=group.set_name, split=group.split, field=frame,
        modality=None, method=method, psnr_db=psnr_db, ssim=ssim, seconds=0.1, fingerprint="0", error=error,
        bias_percent=bias,
    )  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory, confocal):
    """Two fields of one set in the published layout: captures, then the reference."""
    folder = tmp_path_factory.mktemp("data")
    place = folder / "paired" / "fmd_fov1" / "val"
    place.mkdir(parents=True)
    for index, name in enumerate(("confocal_a", "confocal_b")):
        cut = np.s_[64 * index : 64 * index + 64, :64]
        tifffile.imwrite(place / f"{name}.tif", np.stack([confocal.raw[cut], confocal.reference[cut]]))
    return folder


@pytest.fixture(scope="module")
def document(data, tmp_path_factory):
    """The whole ladder on 64x64 px, with a loop on one frame only."""
    path = tmp_path_factory.mktemp("ladder") / "ladder.json"
    arguments = [
        "--data",
        str(data),
        "--teacher",
        "live",
        "--distilled",
        "live",
        "--sets",
        "fmd_fov1",
        "--splits",
        "val",
    ]
    arguments += ["--loop-limit", "1", "--threads", "1", "--no-speed", "--json", str(path)]
    return ladder.run(ladder.parse(arguments)), arguments, path


def test_every_rung_restores_every_image_but_the_loop(document):
    found, _, path = document
    assert [r["name"] for r in found["rungs"]] == ["loop", "teacher_k1", "teacher_k2", "teacher_k4", "distilled"]
    counts = {name: sum(r["method"] == name for r in found["rows"]) for name in ("loop", "teacher_k1", "distilled")}
    assert counts == {"loop": 1, "teacher_k1": 2, "distilled": 2}
    assert all(r["error"] is None and r["psnr_db"] > 25 and abs(r["bias_percent"]) < 5 for r in found["rows"])
    assert json.loads(path.read_text())["rows"] == found["rows"]
    loop, one = found["rungs"][:2]
    assert loop["kmac_per_px"] == pytest.approx(50 * one["kmac_per_px"])
    assert loop["backend"] == "pytorch"


def test_the_same_network_loses_nothing_and_the_report_says_what_was_limited(document):
    found = document[0]
    rows = ladder.rows_of(found)
    same = ladder_tables.losses(rows, VAL, "teacher_k1", "distilled")
    assert same["psnr_db"] == same["ssim"] == same["bias_percent"] == 0
    text = ladder_tables.render(found, rows)
    assert "only the first 1 frames of each set and split" in text
    assert "chosen on the `val` splits alone" in text
    assert "Times were not measured" in text


def test_a_resumed_ladder_restores_nothing_again(document, monkeypatch):
    found, arguments, _ = document

    def refuse(*_):
        raise AssertionError("restored again")

    monkeypatch.setattr(ladder, "_score", refuse)
    again = ladder.run(ladder.parse([*arguments, "--resume"]))
    assert sorted(r["frame"] + r["method"] for r in again["rows"]) == sorted(
        r["frame"] + r["method"] for r in found["rows"]
    )


def test_pytorch_inside_the_runtimes_path_gives_the_runtimes_pixels(confocal):
    bundle = Bundle.load(find_bundle("live"))
    frame = confocal.raw[:64, :64]
    camera = ps.Camera.estimate(frame)
    in_torch = rungs.torch_restorer(bundle, "live", 1)
    openvino = ps.load(bundle, backend="openvino", precision="fp32", threads=1)
    for steps in (1, 3):
        a, b = (
            r.restore(frame, camera=camera, steps=steps, output="photoelectrons").image for r in (in_torch, openvino)
        )
        assert np.abs(a - b).max() < 1e-3 * b.max()
    openvino.close()
    assert network_of_bundle(bundle).config.planes == 4


# --- tables ---


def test_the_best_k_is_chosen_on_val_alone():
    rows = [row("teacher_k1", 30.0), row("teacher_k2", 30.5), row("teacher_k4", 30.2)]
    rows += [row("teacher_k1", 40.0, group=TEST), row("teacher_k2", 20.0, group=TEST)]
    assert ladder_tables.best_teacher(rows) == "teacher_k2"
    assert ladder_tables.best_teacher([r for r in rows if r.split == "test"]) is None


def test_losses_are_over_images_that_both_restored():
    rows = [row("teacher_k1", 30.0, frame="a"), row("teacher_k1", 40.0, frame="b")]
    rows += [
        row("loop", 30.2, frame="a"),
        row("int8", 29.9, frame="a", bias=-0.4),
        row("int8", None, frame="b", error="x"),
    ]
    assert ladder_tables.losses(rows, VAL, "loop", "teacher_k1")["psnr_db"] == pytest.approx(0.2)
    loss = ladder_tables.losses(rows, VAL, "teacher_k1", "int8")
    assert (loss["images"], loss["psnr_db"], loss["bias_percent"]) == (1, pytest.approx(0.1), pytest.approx(0.3))
    assert ladder_tables.losses(rows, TEST, "teacher_k1", "int8") is None


def test_stages_are_judged_by_the_gates():
    names = ["loop", "teacher_k1", "distilled", "pruned", "int8"]
    document = {"rungs": [{"name": n, "title": n} for n in names]}
    psnr = {"loop": 30.0, "teacher_k1": 30.0, "distilled": 29.95, "pruned": 29.8, "int8": 29.75}
    lines = ladder_tables.stages_table(document, [row(n, p) for n, p in psnr.items()], "teacher_k1").splitlines()

    def verdict(above, below):
        return next(line for line in lines if line.startswith(f"| {above} | {below} "))

    assert "stage: passed" in verdict("teacher_k1", "distilled")
    assert "stage: **missed** (PSNR)" in verdict("distilled", "pruned")
    assert "stage: passed" in verdict("pruned", "int8")
    assert "total: passed" in verdict("teacher_k1", "int8")
    assert "stage" not in verdict("loop", "int8")


# --- speed ---


def test_rivals_take_turns_and_slow_ones_fewer():
    calls, now = [], [0.0]

    def rival(name, seconds):
        def call():
            calls.append(name)
            now[0] += seconds

        return call

    found = students.alternate(
        {"loop": rival("loop", 10), "fast": rival("fast", 0.01)}, rounds=5, rare=["loop"], rare_rounds=2,
        clock=lambda: now[0],
    )  # fmt: skip
    assert (found["loop"]["runs"], found["fast"]["runs"]) == (2, 5)
    assert found["loop"]["median_ms"] == pytest.approx(10_000)
    assert found["fast"]["p95_ms"] == pytest.approx(10)
    assert calls == ["loop", "fast", "loop", "fast", "fast", "fast", "fast", "loop", "fast"]


def test_students_are_timed_against_the_loop():
    speed = students.measure("live", ["live"], threads=1, rounds=2, loop_rounds=1, side_px=64, loop_steps=20)
    by_name = {r["name"]: r for r in speed["rows"]}
    assert {"loop", "live fp32"} <= set(by_name)
    assert by_name["loop"]["times_faster_than_the_loop"] == 1
    assert by_name["live fp32"]["times_faster_than_the_loop"] > 1
    assert "| live fp32 | openvino | 1 |" in students.table(speed)


def test_goals_are_judged_for_int8():
    common = {"times_faster_than_the_loop": 120.0}
    rows = [{"name": "live int8", "fps": 89.0, **common}, {"name": "base int8", "fps": 33.0, **common}]
    live, base = students.verdicts({"rows": [*rows, {"name": "live fp32", "fps": 1.0, **common}]})
    assert "**missed**" in live and "120x" in live
    assert "**missed**" not in base
