"""The comparison with the peers: turns, ratios and marks on made-up numbers, and a small run on real code."""

import json

import numpy as np
import pytest
import tifffile
from test_benchmarks import clean_field, row

from benchmarks import naive, peer_marks, peer_rivals, peers, turns
from benchmarks.methods import package_version
from benchmarks.peer_marks import TARGETS, judge, marks_lines
from photonstep import Camera
from photonstep.demo import DEMO_FRAME
from photonstep.runtime.bundle import Bundle
from photonstep.runtime.restore import find_bundle

OIDN_ABSENT = package_version("pyoidn") is None

# --- turns and ratios ---


def run_turns(rounds, **settings):
    """Three rivals on a made-up clock; the calls in their order, as (name, round)."""
    calls, now = [], [0.0]

    def rival(name, seconds):
        def run(index):
            calls.append((name, index))
            now[0] += seconds * (1 + index)

        return run

    rivals = {"a": rival("a", 0.01), "b": rival("b", 0.03), "slow": rival("slow", 1.0)}
    return turns.take_turns(rivals, rounds=rounds, clock=lambda: now[0], **settings), calls


def test_all_rivals_take_a_turn_in_every_round_after_a_call_that_is_not_counted():
    times, calls = run_turns(4, rare=["slow"], rare_rounds=2)
    assert times["a"] == pytest.approx([10, 20, 30, 40])
    assert times["b"] == pytest.approx([30, 60, 90, 120])
    assert times["slow"] == pytest.approx([1000, 4000])  # the first round and the last
    for index in range(1, 3):
        assert sorted(name for name, i in calls if i == index) == ["a", "a", "b", "b"]
    assert [name for name, i in calls if i == 3].count("slow") == 1


def test_the_order_changes_from_round_to_round():
    _, calls = run_turns(12)
    firsts = {next(name for name, i in calls[3:] if i == index) for index in range(12)}
    assert len(firsts) == 3


def test_a_ratio_is_that_of_the_medians_and_its_interval_knows_that_a_busy_moment_falls_on_both():
    busy = np.array([1.0, 1.0, 5.0, 1.0, 3.0, 1.0, 2.0])
    found = turns.ratio(list(80 * busy), list(10 * busy))
    assert found == {"ratio": pytest.approx(8), "low": pytest.approx(8), "high": pytest.approx(8)}
    apart = turns.ratio([80.0, 90.0, 100.0], [10.0, 9.0, 8.0, 10.0])
    assert apart["ratio"] == pytest.approx(90 / 9.5)
    assert apart["low"] < apart["ratio"] < apart["high"]


# --- marks ---


def made_up(base, live, oidn, base_ms=10.0, live_ms=4.0, filter_ms=80.0, set_names=("w2s8", "fmd_testmix")):
    rows = []
    for index, set_name in enumerate(set_names):
        figures = {"base_k1": base[index], "live_k1": live[index], "oidn_fast": oidn[index], "oidn_high": oidn[index]}
        rows += [row(name, value, set_name=set_name) for name, value in figures.items()]
    times = {"base_k1": [base_ms], "live_k1": [live_ms], "oidn_fast_filter": [filter_ms], "oidn_fast": [2 * filter_ms]}
    return rows, times


def mark(rows, times, tier="base", steps=1, quality="fast"):
    return next(m for m in judge(rows, times) if (m.tier, m.steps, m.quality) == (tier, steps, quality))


def test_a_mark_needs_quality_on_the_mean_and_speed_against_the_bare_filter():
    good = mark(*made_up(base=[31, 35], live=[31, 34], oidn=[32, 33]))
    assert (good.mean_passed, good.sets_passed, good.speed_passed, good.passed) == (True, False, True, True)
    assert good.gains_db == {"w2s8 test": -1, "fmd_testmix test": 2}
    assert good.mean_gain_db == pytest.approx(0.5)
    assert good.filter_ratio["ratio"] == pytest.approx(8)
    assert good.whole_ratio["ratio"] == pytest.approx(16)
    slow = mark(*made_up(base=[31, 35], live=[31, 34], oidn=[32, 33], filter_ms=79.9))
    assert (slow.mean_passed, slow.speed_passed, slow.passed) == (True, False, False)
    equal = mark(*made_up(base=[32, 33], live=[32, 33], oidn=[32, 33]))
    assert (equal.mean_passed, equal.passed) == (False, False)  # as good is not higher
    worse = mark(*made_up(base=[31, 33], live=[31, 33], oidn=[32, 33]))
    assert (worse.mean_passed, worse.passed) == (False, False)


@pytest.mark.parametrize(("live", "passed"), [(31.75, True), (31.6, False)])
def test_live_may_lie_three_tenths_below_and_must_be_twenty_times_as_fast(live, passed):
    found = mark(*made_up(base=[31, 31], live=[live, live], oidn=[32, 32]), tier="live")
    assert found.mean_passed is passed
    assert found.filter_ratio["ratio"] == pytest.approx(20)
    assert found.passed is passed
    assert not mark(*made_up([31, 31], [live] * 2, [32, 32], live_ms=4.1), tier="live").passed


def test_what_was_not_measured_is_no_verdict():
    rows, times = made_up(base=[33, 33], live=[33, 33], oidn=[32, 32])
    assert mark(rows, times, quality="high").speed_passed is None
    assert mark(rows, times, quality="high").passed is None
    assert mark(rows, times, steps=2).mean_passed is None
    missing = [r for r in rows if (r.method, r.set_name) != ("oidn_fast", "w2s8")]
    assert mark(missing, times).mean_passed is None  # a mean over fewer sets would be another mark
    assert "not measured" in marks_lines([mark(missing, times).as_dict()])[1][-1]


def test_the_targets_are_those_of_the_release():
    assert {(t.tier, t.gain_db, t.may_equal, t.ratio) for t in TARGETS} == {
        ("base", 0.0, False, 8.0),
        ("live", -0.3, True, 20.0),
    }


def test_ratios_are_between_rivals_and_ours():
    found = peer_marks.ratios({"loop": [5000.0], "base_k1": [16.0], "live_k1": [10.0]}, ["base_k1", "live_k1"])
    assert set(found) == {"loop"}
    assert found["loop"]["live_k1"]["ratio"] == pytest.approx(500)


# --- ONNX Runtime by hand ---


@pytest.fixture(scope="module")
def live_bundle():
    return Bundle.load(find_bundle("live"))


@pytest.mark.parametrize("crop", [(96, 96), (83, 101)])
def test_the_network_by_hand_gives_what_the_runtime_gives_but_for_the_photon_balance(live_bundle, crop):
    pytest.importorskip("onnxruntime")
    from photonstep import load

    frame = tifffile.imread(DEMO_FRAME)[0][: crop[0], : crop[1]].astype(np.float32)
    camera = Camera(gain_e_per_adu=0.2, readout_noise_e=1.0, noise_correlation=(0.1, 0.05))
    by_hand = naive.StepNetwork(live_bundle, "fp32")(frame, camera)
    with load("live", backend="openvino", precision="fp32", threads=1) as restorer:
        ours = restorer.restore(frame, camera=camera, report=True)
    electrons = np.maximum(by_hand * camera.gain_e_per_adu, 0)
    balanced = np.maximum(ours.report["balance_gain"] * electrons + ours.report["balance_shift_e"], 0)
    assert by_hand.shape == frame.shape
    assert ours.report["balance_gain"] != 1
    assert balanced / camera.gain_e_per_adu == pytest.approx(ours.image, abs=0.05)


def test_counts_come_back_as_counts(live_bundle):
    pytest.importorskip("onnxruntime")
    from photonstep import load

    frame = tifffile.imread(DEMO_FRAME)[0][:64, :64].astype(np.uint16) * 16
    camera = Camera(gain_e_per_adu=0.02, readout_noise_e=1.0)
    whole = naive.FrameGraph(live_bundle)(frame, camera)
    with load("live", backend="openvino", precision="fp32", threads=1) as restorer:
        ours = restorer.restore(frame, camera=camera).image
    assert whole.dtype == np.uint16
    assert np.abs(whole.astype(int) - ours).max() <= 1
    network = naive.StepNetwork(live_bundle, "fp32")
    assert network(frame, camera).dtype == np.uint16
    assert np.array_equal(network(frame, camera), np.rint(network(frame.astype(np.float32), camera)))


# --- a whole run ---


@pytest.fixture
def data(tmp_path):
    """Two tiny fields in the layout of a paired set."""
    folder = tmp_path / "data" / "paired" / "fmd_testmix" / "test"
    folder.mkdir(parents=True)
    for seed in range(2):
        mean = clean_field(64, seed)
        frame = np.clip(np.random.default_rng(seed).poisson(mean * 0.3) / 0.3, 0, 255)
        tifffile.imwrite(folder / f"confocal_{seed}.tif", np.stack([frame, mean]).astype(np.uint8))
    return tmp_path / "data"


def arguments(data, *more):
    tiny = ["--rounds", "2", "--loop-rounds", "1", "--loop-steps", "2", "--side", "64", "--threads", "1"]
    return ["--data", str(data), "--sets", "fmd_testmix", *tiny, *more]


def test_a_run_scores_and_times_all_of_them(data, tmp_path, capsys, single_threaded_torch):
    results, report = tmp_path / "peers.json", tmp_path / "peers.md"
    peers.main(arguments(data, "--json", str(results), "--markdown", str(report)))
    document = json.loads(results.read_text())
    assert {"cpu", "commit", "packages", "utc"} <= set(document["machine"])
    rivals = document["timing"]["rivals"]
    wanted = set(peer_rivals.TIMED_TITLES) - set(document["timing"]["not_timed"])
    assert set(rivals) == wanted >= {"base_k1", "base_k2", "live_k1", "live_k2", "loop"}
    assert {len(entry["times_ms"]) for name, entry in rivals.items() if name != "loop"} == {2}
    assert rivals["loop"]["runs"] == 1
    assert set(document["ratios"]) == wanted - set(peers.OURS)
    assert document["not_measured"]["loop"].startswith("not measured (no trained teacher")
    by_method = {}
    for entry in document["rows"]:
        by_method.setdefault(entry["method"], []).append(entry["psnr_db"])
    assert {len(values) for values in by_method.values()} == {2}
    assert np.mean(by_method["base_k1"]) > np.mean(by_method["raw"]) + 3
    assert np.mean(by_method["ort_live_fp32"]) == pytest.approx(np.mean(by_method["live_k1"]), abs=1.0)
    assert len(document["marks"]) == 8
    if not OIDN_ABSENT:
        assert all(m["passed"] is (m["mean_passed"] and m["speed_passed"]) for m in document["marks"])
    text = report.read_text()
    assert capsys.readouterr().out.strip() == text.strip()
    assert "Its weights are untrained: time only." in text
    assert f"Open Image Denoise, fast | more than +0.0 dB, {TARGETS[0].ratio:g} times as fast" in text


def test_a_trained_teacher_is_scored_on_a_few_frames(data, tmp_path, capsys, single_threaded_torch):
    results = tmp_path / "peers.json"
    peers.main(arguments(data, "--teacher", "live", "--json", str(results)))
    document = json.loads(results.read_text())
    scored = [entry for entry in document["rows"] if entry["method"] == "loop"]
    assert [entry["frame"] for entry in scored] == ["fmd_testmix/test/confocal_0/0"]
    same = next(r for r in document["rows"] if (r["frame"], r["method"]) == (scored[0]["frame"], "live_k2"))
    assert scored[0]["psnr_db"] == pytest.approx(same["psnr_db"], abs=0.3)  # the same weights, and as many steps
    assert "untrained" not in capsys.readouterr().out


def test_an_absent_peer_is_named_and_leaves_the_rest_alone(data, monkeypatch):
    import photonstep as ps

    def absent(quality, threads):
        raise ImportError(f"no {quality} here")

    monkeypatch.setattr(peer_rivals.baselines, "OpenImageDenoise", absent)
    frames = list(peers.timing_frames(data, ["fmd_testmix"], ["test"], 64, 1).values())
    with ps.load("live", precision="fp32", threads=1) as live:
        runs, not_timed = peer_rivals.timed(frames, {"base": live, "live": live}, threads=1, loop=live, loop_steps=1)
    assert not_timed["oidn_fast"] == "not measured (no fast here)"
    assert set(runs) == set(peer_rivals.TIMED_TITLES) - set(not_timed)
    assert {name.split("_")[0] for name in not_timed} == {"oidn"}


def test_frames_of_another_size_or_in_floating_point_are_not_timed(data):
    with pytest.raises(ValueError, match="no frame of 512x512 whole counts in fmd_testmix"):
        peers.timing_frames(data, ["fmd_testmix"], ["test"], 512, 4)
    found = peers.timing_frames(data, ["fmd_testmix"], ["test"], 64, 4)
    assert {frame.dtype for frame in found.values()} == {np.dtype(np.uint16)}
    assert max(frame.max() for frame in found.values()) > 255
