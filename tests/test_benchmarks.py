"""The benchmarks measure what they say: protocols, oracles, intervals, marks, and a run that resumes."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import tifffile
from scipy import ndimage

from benchmarks import baselines, bias, datasets, machine, methods, oracle, quality, speed, tables
from benchmarks.datasets import Pair
from benchmarks.marks import Mark, judge
from benchmarks.summary import Group, Row, best_gaussian, gain_of, groups, interval_95, mean_of, reporting_groups
from photonstep import Camera

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
GROUP = Group(set_name="fmd_testmix", split="test")
needs_data = pytest.mark.skipif(not (DATA / "paired").is_dir(), reason="the paired sets (../shared/data) are not here")


def clean_field(size_px=96, seed=0):
    noise = np.random.default_rng(seed).normal(size=(size_px, size_px))
    smooth = ndimage.gaussian_filter(noise, 6)
    return 30 + 120 * (smooth - smooth.min()) / np.ptp(smooth)


def make_pair(frame, reference, protocol="A", set_name="fmd_fov1", reference_frames=None):
    return Pair(
        set_name=set_name,
        split="val",
        field="confocal_x",
        plane=0,
        protocol=protocol,
        reference_frames=reference_frames,
        frame=frame,
        reference=reference,
    )


def row(method, psnr_db, *, field="f1", plane=0, modality=None, set_name="fmd_testmix", split="test", error=None):
    return Row(
        frame=f"{set_name}/{split}/{field}/{plane}",
        set_name=set_name,
        split=split,
        field=field,
        modality=modality,
        method=method,
        psnr_db=psnr_db,
        ssim=None if psnr_db is None else 0.9,
        seconds=0.1,
        fingerprint="0",
        error=error,
    )


# --- data and protocols ---


def test_protocol_b_ignores_the_candidates_gain_and_offset_and_protocol_a_does_not():
    reference = clean_field()
    image = reference + np.random.default_rng(1).normal(0, 5, reference.shape)
    b = make_pair(image, reference, protocol="B")
    assert datasets.score(b, 3.5 * image - 40) == pytest.approx(datasets.score(b, image), rel=1e-9)
    a = make_pair(image, reference)
    assert datasets.score(a, image + 40)[0] < datasets.score(a, image)[0] - 10
    assert datasets.score(a, image)[0] == pytest.approx(20 * math.log10(255 / 5), abs=0.2)


def test_protocol_b_scales_the_reference_by_its_percentiles():
    reference = clean_field()
    low, high = np.percentile(reference, (0.1, 99.9))
    checker = np.indices(reference.shape).sum(0) % 2 * 2.0 - 1.0  # uncorrelated with the field
    image = reference + 0.02 * (high - low) * checker
    signal, noise = np.var(reference) / (high - low) ** 2, 0.02**2
    left = signal * noise / (signal + noise)  # the least-squares slope shrinks the image a little
    psnr_db = datasets.score(make_pair(image, reference, protocol="B"), image)[0]
    assert psnr_db == pytest.approx(-10 * math.log10(left), abs=1e-3)


@needs_data
@pytest.mark.parametrize(
    ("set_name", "split", "count", "raw", "gaussian"),
    [
        ("fmd_fov1", "val", 5, (29.643, 0.694), (36.153, 0.914)),
        ("flim2p", "val", 1, (26.5, 0.571), (30.655, 0.781)),
        ("sem_brain", "test", 1, (28.988, 0.719), (31.076, 0.823)),
    ],
)
def test_the_sets_own_table_is_reproduced(set_name, split, count, raw, gaussian):
    pairs = list(datasets.pairs(DATA, set_name, split))
    assert len(pairs) == count
    blurred = [baselines.gaussian(pair.frame, None, sigma_px=1.0) for pair in pairs]
    for images, expected in (([pair.frame for pair in pairs], raw), (blurred, gaussian)):
        scores = [datasets.score(pair, image) for pair, image in zip(pairs, images, strict=True)]
        assert np.mean(scores, axis=0) == pytest.approx(expected, abs=6e-4)


@needs_data
def test_a_limit_spreads_over_the_fields_and_the_rest_follow_capture_by_capture():
    spread = [pair.modality for pair in datasets.pairs(DATA, "fmd_testmix", "test", limit=3)]
    assert spread == ["Confocal", "TwoPhoton", "WideField"]
    many = list(datasets.pairs(DATA, "fmd_testmix", "test", limit=15))
    assert [pair.plane for pair in many] == [0] * 12 + [1] * 3
    assert len({pair.key for pair in datasets.pairs(DATA, "w2s8", "val")}) == 39


def test_an_absent_set_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="w2s8"):
        next(datasets.pairs(tmp_path, "w2s8", "test"))


# --- cameras and peers ---


@pytest.mark.parametrize(("gain", "offset", "readout"), [(0.2, 0.0, 2.0), (0.5, 20.0, 0.0)])
def test_the_oracle_finds_the_variance_line_of_the_ground_truth(gain, offset, readout):
    rng = np.random.default_rng(2)
    mean = clean_field(384)
    electrons = rng.poisson((mean - offset) * gain) + rng.normal(0, readout, mean.shape)
    camera = oracle.fit_camera(make_pair((electrons / gain + offset).astype(np.float32), mean))
    for level in (40.0, 140.0):
        expected = (level - offset) / gain + (readout / gain) ** 2
        found = (level - camera.offset_adu) / camera.gain_e_per_adu
        found += (camera.readout_noise_e / camera.gain_e_per_adu) ** 2
        assert found == pytest.approx(expected, rel=0.06)
    assert camera.noise_correlation == pytest.approx((0, 0), abs=0.01)


def test_the_oracle_measures_correlation_and_corrects_a_reference_that_holds_the_frame():
    rng = np.random.default_rng(3)
    noise = rng.normal(0, 6, (5, 256, 256))
    noise[:, :, 1:] = (noise[:, :, 1:] + noise[:, :, :-1]) / np.sqrt(2)  # lag-1 correlation 1/2 along x
    frames = clean_field(256) + noise
    pair = make_pair(frames[0].astype(np.float32), frames.mean(0), reference_frames=5)
    camera = oracle.fit_camera(pair)
    variance = (90 - camera.offset_adu) / camera.gain_e_per_adu
    variance += (camera.readout_noise_e / camera.gain_e_per_adu) ** 2
    assert variance == pytest.approx(36, rel=0.05)
    assert camera.noise_correlation == pytest.approx((0, 0.5), abs=0.02)


@pytest.mark.parametrize("photons", [3.0, 10.0, 100.0])
def test_the_peers_inverse_is_unbiased(photons):
    rng = np.random.default_rng(4)
    camera = Camera(offset_adu=100.0, gain_e_per_adu=0.5, readout_noise_e=1.2)
    electrons = rng.poisson(photons, (700, 700)) + rng.normal(0, 1.2, (700, 700))
    z = camera.stabilise((electrons / 0.5 + 100).astype(np.float32))
    restored = baselines.from_stabilised(np.full((4, 4), z.mean()), camera)
    assert (restored - 100) * 0.5 == pytest.approx(np.full((4, 4), photons), rel=0.01)


@pytest.mark.parametrize("name", ["nlm", "tv", "wavelet", "oidn_fast", "oidn_high", "bm3d"])
def test_a_peer_removes_noise(name):
    (method,), absent = methods.build(methods.select(methods.recipes(), ["raw"]))
    assert not absent
    found, absent = methods.build(methods.select(methods.recipes(), [name]))
    if absent:
        pytest.skip(absent[name])
    mean = clean_field(128)
    frame = np.clip(np.random.default_rng(5).poisson(mean * 0.4) / 0.4, 0, 255).astype(np.uint8)
    camera, pair = Camera(gain_e_per_adu=0.4, readout_noise_e=0.2), make_pair(frame, mean)
    restored = found[0](frame, camera)
    assert restored.dtype == np.float32
    assert restored.max() <= 255
    assert datasets.score(pair, restored)[0] > datasets.score(pair, method(frame, None))[0] + 4


# --- summaries ---


def test_intervals_resample_fields_and_not_captures():
    values, fields = np.array([30.0, 31, 33, 36]), ["a", "b", "c", "d"]
    interval = interval_95(values, fields)
    assert interval[0] < values.mean() < interval[1]
    assert interval_95(np.repeat(values, 4), np.repeat(fields, 4)) == pytest.approx(interval)
    assert interval_95(values, ["a"] * 4) is None


def test_the_best_gaussian_is_the_best_on_average_and_modalities_have_their_own():
    rows = [
        row("gaussian_1", 35, field="a", modality="Confocal"),
        row("gaussian_3", 33, field="a", modality="Confocal"),
        row("gaussian_1", 29, field="b", modality="WideField"),
        row("gaussian_3", 30, field="b", modality="WideField"),
    ]
    assert best_gaussian(rows, GROUP) == "gaussian_1"
    wide = Group(set_name="fmd_testmix", split="test", modality="WideField")
    assert best_gaussian(rows, wide) == "gaussian_3"
    assert [group.title for group in groups(rows)] == [
        "fmd_testmix test",
        "fmd_testmix test Confocal",
        "fmd_testmix test WideField",
    ]


def test_no_mean_of_a_method_that_failed_or_missed_an_image():
    rows = [row("raw", 20), row("raw", 22, field="f2"), row("tv", 30), row("nlm", 30)]
    rows.append(row("nlm", None, field="f2", error="cannot"))
    assert mean_of(rows, GROUP, "raw").psnr_db == 21
    assert mean_of(rows, GROUP, "tv") is None
    assert mean_of(rows, GROUP, "nlm") is None
    assert gain_of(rows, GROUP, "tv", "raw") is None


def test_gains_are_paired_by_image():
    rows = [row("raw", 20), row("raw", 30, field="f2"), row("tv", 31, field="f2"), row("tv", 23)]
    assert gain_of(rows, GROUP, "tv", "raw")[0] == pytest.approx(2)


def test_sets_are_reported_by_their_test_split_where_they_have_one():
    rows = [row("raw", 20, set_name=s, split=p) for s, p in (("w2s8", "val"), ("w2s8", "test"), ("fmd_fov1", "val"))]
    assert [group.title for group in reporting_groups(rows)] == ["w2s8 test", "fmd_fov1 val"]


# --- marks and tables ---


def verdict(rows, document, start) -> Mark:
    return next(mark for mark in judge(rows, document) if mark.name.startswith(start))


@pytest.mark.parametrize(("psnr_db", "passed"), [(34.0, True), (33.99, False), (None, None)])
def test_a_quality_mark_passes_misses_or_says_that_it_was_not_measured(psnr_db, passed):
    assert verdict([row("base_k1", psnr_db)], {}, "base_k1 on fmd_testmix test").passed is passed


def test_the_worst_set_decides_where_a_mark_says_every_set():
    rows = [
        row(m, p, set_name="w2s8")
        for m, p in (("base_k1", 33), ("tv", 30), ("live_k1", 32.5), ("base_k1_oracle", 33.2))
    ]
    marks = ("base_k1 above total variation", "live_k1 below", "blind below")
    assert [verdict(rows, {}, name).passed for name in marks] == [True, True, True]
    rows += [row("base_k1", 33), row("tv", 33.1), row("live_k1", 32.3), row("base_k1_oracle", 33.4)]
    assert [verdict(rows, {}, name).passed for name in marks] == [False, False, False]
    rows.append(row("base_k1", 40, set_name="sem_brain"))
    assert [verdict(rows, {}, name).passed for name in marks] == [None, None, None]


def test_speed_bias_and_ratio_marks():
    latency = {"fps": 16.0, "p50_ms": 60.0, "outside_network_share": 0.2}
    case = {"bundle": "base", "field": "flat", "photons": 3.0, "camera": "blind", "steps": 1}
    document = {
        "timing": {"methods": {"base_k1": {"median_ms": 50.0}, "oidn_high_filter_only": {"median_ms": 240.0}}},
        "bias": {"cases": [case | {"bias_percent": 0.4}, case | {"camera": "known", "bias_percent": None}]},
        "speed": {
            "import_s": 0.2,
            "rows": [{"tier": "base", "height_px": 512, "width_px": 512, "steps": 1, "latency": latency}],
        },
    }
    expected = {
        "base_k1 faster than": False,
        "photon bias, 3 to 1000 photons, camera known": False,
        "photon bias, 3 to 1000 photons, camera blind": True,
        "base, 512x512": True,
        "base, share": False,
        "live, 512x512": None,
        "import photonstep": True,
    }
    assert {name: verdict([], document, name).passed for name in expected} == expected


# --- a whole run ---


@pytest.fixture
def data(tmp_path):
    """Two tiny fields in the layout of a paired set."""
    folder = tmp_path / "data" / "paired" / "fmd_fov1" / "val"
    folder.mkdir(parents=True)
    for seed in range(2):
        mean = clean_field(64, seed)
        frame = np.clip(np.random.default_rng(seed).poisson(mean * 0.3) / 0.3, 0, 255)
        tifffile.imwrite(folder / f"confocal_{seed}.tif", np.stack([frame, mean]).astype(np.uint8))
    return tmp_path / "data"


def command(data, *more):
    return ["--data", str(data), "--sets", "fmd_fov1", "--skip", "timing", "bias", "speed", *more]


def test_a_run_writes_every_figure_with_the_machine_and_resumes(data, tmp_path, capsys, monkeypatch):
    results, report = tmp_path / "r.json", tmp_path / "r.md"
    arguments = ["--methods", "raw", "gaussian", "tv", "--json", str(results), "--markdown", str(report)]
    quality.main(command(data, *arguments))
    first = json.loads(results.read_text())
    assert len(first["rows"]) == 2 * 7
    assert {"commit", "cpu", "packages", "utc"} <= set(first["machine"])
    assert set(first["cameras"]) == {r["frame"] for r in first["rows"]}
    assert "best Gaussian (sigma" in report.read_text()
    assert capsys.readouterr().out.strip() == report.read_text().strip()

    scored = []
    monkeypatch.setattr(quality, "_progress", lambda row: scored.append(row.method))
    quality.main(command(data, *arguments, "--resume"))
    assert scored == []
    assert json.loads(results.read_text())["rows"] == first["rows"]
    monkeypatch.setattr(baselines, "TV", baselines.TV | {"weight": 0.5})
    quality.main(command(data, *arguments, "--resume"))
    assert scored == ["tv", "tv"]


def test_an_interrupted_run_keeps_what_it_has(data, tmp_path, monkeypatch):
    results = tmp_path / "r.json"

    def stop(row):
        if row.field == "confocal_1":
            raise KeyboardInterrupt

    monkeypatch.setattr(quality, "_progress", stop)
    with pytest.raises(KeyboardInterrupt):
        quality.main(command(data, "--methods", "raw", "--json", str(results)))
    assert [r["field"] for r in json.loads(results.read_text())["rows"]] == ["confocal_0"]


def test_an_absent_package_gets_its_row_and_the_reason(data, monkeypatch, capsys):
    monkeypatch.setattr(methods, "package_version", lambda name: None)
    quality.main(command(data, "--methods", "raw", "oidn"))
    printed = capsys.readouterr().out
    assert "| Open Image Denoise, fast | not measured (pyoidn is not installed: pip install '.[bench]')" in printed


def test_an_unknown_method_and_resume_without_a_file_are_refused(data, capsys):
    with pytest.raises(ValueError, match="no method 'magic'; choose from raw"):
        quality.main(command(data, "--methods", "magic"))
    with pytest.raises(SystemExit):
        quality.main(command(data, "--resume"))
    assert "--resume needs --json" in capsys.readouterr().err


def test_the_shipped_bundles_are_measured_end_to_end(data, tmp_path, capsys):
    results = tmp_path / "r.json"
    quality.main(command(data, "--methods", "raw", "base", "live", "--json", str(results)))
    document = json.loads(results.read_text())
    assert document["not_measured"] == {}
    psnr_db = {
        name: np.mean([r["psnr_db"] for r in document["rows"] if r["method"] == name]) for name in document["titles"]
    }
    assert set(psnr_db) == {"raw", "base_k1", "base_k2", "base_k4", "base_k1_oracle", "live_k1", "live_k2", "live_k4"}
    assert min(v for name, v in psnr_db.items() if name != "raw") > psnr_db["raw"] + 3
    assert "passed" in capsys.readouterr().out


# --- bias and speed ---


class Scaled:
    """A restorer that returns the frame's signal times a factor."""

    def __init__(self, factor):
        self.factor = factor

    def restore(self, frame, *, camera, steps):
        signal = frame.astype(np.float64) - bias.CAMERA.offset_adu
        return type("Result", (), {"image": self.factor * signal + bias.CAMERA.offset_adu})


def test_bias_is_what_the_restorer_adds():
    measured = bias.measure({"right": Scaled(1.0), "high": Scaled(1.05)}, size_px=128, steps=(1,))
    known = [case for case in measured["cases"] if case["camera"] == "known"]
    assert {case["photons"] for case in known} == set(bias.PHOTONS)
    assert {case["field"] for case in known} >= {"flat", "slope", "structure 1"}
    for case in known:
        factor = {"right": 1.0, "high": 1.05}[case["bundle"]]
        assert case["bias_percent"] == pytest.approx(100 * (factor * (1 + case["raw_percent"] / 100) - 1), abs=1e-6)
        assert abs(case["raw_percent"]) < 2.5  # 128x128 px of 3 photons and readout noise: 0.6 % rms
    assert all(bias.magnitude(case) > 2 for case in bias.worst(measured) if case["bundle"] == "high")
    rows = [line for line in tables.bias_table(measured).splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 4
    assert {line.count("|") for line in rows} == {len(bias.PHOTONS) + 4}


def test_rivals_are_timed_in_turn():
    calls, now = [], [0.0]

    def rival(name, seconds):
        def run():
            calls.append(name)
            now[0] += seconds

        return run

    times = speed.alternate({"a": rival("a", 0.01), "b": rival("b", 0.03)}, rounds=3, clock=lambda: now[0])
    assert calls == ["a", "b"] * 4
    assert times["a"]["median_ms"] == pytest.approx(10)
    assert times["b"] == {"median_ms": pytest.approx(30), "min_ms": pytest.approx(30), "runs": 3}


def test_the_import_probe_times_an_import_and_reports_a_failed_one(monkeypatch):
    assert 0 < speed.import_s(repeats=1) < 60
    monkeypatch.setattr(speed, "IMPORT_PROBE", "import sys; sys.modules['torch'] = None; import torch")
    with pytest.raises(RuntimeError, match="torch"):
        speed.import_s(repeats=1)


def test_the_machine_record_is_json():
    facts = json.loads(json.dumps(machine.record()))
    assert facts["packages"]["numpy"] == np.__version__
    assert {"cpu", "cpu_count", "commit", "utc", "python"} <= set(facts)
