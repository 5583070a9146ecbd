"""The live benchmark: its camera, definitions and marks on made-up numbers, and every part with a few small frames."""

import json
import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import cores, live, live_ladder, live_marks, live_parts, live_tables, trend
from benchmarks.live_frames import CAMERA, simulated_frames
from benchmarks.live_run import ResultLog, outside_share, spread
from benchmarks.live_settings import LiveSettings
from benchmarks.paced import DeliveryLog, PacedCamera
from benchmarks.staleness import staleness
from photonstep.runtime.live_result import FrameTimes

MS = 1_000_000
ROOT = Path(__file__).resolve().parents[1]
TINY = LiveSettings(
    frames=6, fps=50, fast_fps=200, side_px=64, threads=1, precision="fp32", minutes=0.01, sample_s=0.01, pauses=2,
    pause_s=0.02, before_pause=3, turns=2, phase_s=0.15, phases=2, ladder_fps=40, ladder_steps=2,
)  # fmt: skip


def here(function, *arguments, cpus=None):
    """Stands in for a process of its own."""
    del cpus
    return function(*arguments)


# --- the paced camera ---


class FakeTime:
    """A clock that moves when somebody waits, and oversleeps by as much as it is told."""

    def __init__(self, oversleep_ns=0):
        self.now_ns, self.oversleep_ns = 0, oversleep_ns

    def clock_ns(self):
        return self.now_ns

    def wait(self, seconds):
        self.now_ns += round(seconds * 1e9) + self.oversleep_ns


def run_camera(fake, deliver, **settings):
    frames = [np.full((2, 2), i, np.uint16) for i in range(3)]
    camera = PacedCamera(frames, deliver, clock_ns=fake.clock_ns, wait=fake.wait, **settings)
    camera.run()
    return camera.log()


def test_frames_are_due_at_absolute_times_however_late_the_last_one_was():
    fake, seen = FakeTime(oversleep_ns=2 * MS), []

    def deliver(frame, due_ns):
        seen.append((int(frame[0, 0]), due_ns))
        return len(seen) - 1

    log = run_camera(fake, deliver, fps=100, count=8)
    assert [frame for frame, _ in seen] == [0, 1, 2, 0, 1, 2, 0, 1]
    assert np.diff([due for _, due in seen]).tolist() == [10 * MS] * 7
    record = log.record()
    assert record["fps"] == pytest.approx(100)  # a camera that slept for a period from frame to frame would give 83
    assert record["late_ms"] == pytest.approx({"p50": 2, "p99": 2, "p99.9": 2, "max": 2})
    assert record["drift_ms"] == pytest.approx(0)
    assert record["late_by_a_period"] == 0


def test_a_camera_that_was_kept_waiting_catches_up_and_says_so():
    fake = FakeTime()

    def deliver(frame, due_ns):
        del due_ns
        fake.now_ns += 25 * MS if fake.now_ns < 60 * MS else 0  # only the first put is slow
        return int(frame[0, 0])

    record = run_camera(fake, deliver, fps=100, count=6).record()
    assert record["late_ms"]["max"] == pytest.approx(15)  # due 10 ms after the first, put 25 ms after it
    assert record["late_by_a_period"] == 1
    assert record["late_ms"]["p50"] == pytest.approx(0)
    assert record["deliver_ms"]["max"] == pytest.approx(25)


def test_flat_out_nothing_is_due():
    fake, dues = FakeTime(), []

    def deliver(frame, due_ns):
        dues.append(due_ns)
        fake.now_ns += 4 * MS
        return len(dues)

    record = run_camera(fake, deliver, fps=None, count=5).record()
    assert dues == [None] * 5
    assert record["fps"] == pytest.approx(250)
    assert record["asked_fps"] is None
    assert "late_ms" not in record


def test_what_the_receiver_raises_comes_out_of_the_cameras_thread():
    def deliver(frame, due_ns):
        raise OSError("the shutter jams")

    camera = PacedCamera([np.zeros((2, 2), np.uint16)], deliver, fps=None, count=3)
    camera.start()
    with pytest.raises(OSError, match="shutter jams"):
        camera.join(timeout=10)
    assert len(camera.log().ids) == 0


def test_a_stopped_camera_delivers_no_more():
    taken = threading.Event()

    def deliver(frame, due_ns):
        taken.set()
        return 0

    camera = PacedCamera([np.zeros((2, 2), np.uint16)], deliver, fps=1000, count=10**6)
    camera.start()
    assert taken.wait(10)
    camera.stop()
    camera.join(timeout=10)
    assert 0 < camera.delivered < 10**6


# --- staleness ---


def log_of(*puts_ms):
    """A camera whose put of frame i was called at a time and returned 1 ms later."""
    called = np.array(puts_ms) * MS
    return DeliveryLog(np.arange(len(puts_ms)), called, called, called + MS, 10.0)


def stale(results, log):
    ids, started, restored = (np.array(column) for column in zip(*results, strict=True))
    return staleness(ids, started * MS, restored * MS, restored * MS + MS, log)


def test_work_on_the_newest_frame_is_never_stale_though_newer_ones_come_while_it_lasts():
    found = stale([(0, 2, 12), (2, 22, 32), (3, 33, 43)], log_of(0, 10, 20, 30))
    assert (found["violations"], found["within_race"], found["worst_ms"]) == (0, 0, 0.0)
    assert found["age_ms"] == {"p50": 12, "p99": pytest.approx(12.98), "max": 13}
    assert found["outdated_ms"]["max"] == pytest.approx(1)  # frame 1 was in at 11, and frame 0 was done at 12
    assert found["age_at_consumer_ms"]["max"] == 14


def test_work_that_begins_on_an_old_frame_is_a_violation():
    found = stale([(0, 2, 12), (1, 26, 36), (3, 40, 50)], log_of(0, 10, 20, 30))  # frame 2 was in at 21
    assert (found["violations"], found["results"]) == (1, 3)
    assert found["worst_ms"] == pytest.approx(5)


def test_a_put_that_had_not_returned_proves_nothing_and_the_race_is_counted_apart():
    log = log_of(0, 10, 20)
    during = staleness(np.array([1]), np.array([20 * MS + MS // 2]), np.array([30 * MS]), np.array([30 * MS]), log)
    assert (during["violations"], during["within_race"]) == (0, 0)
    race = staleness(np.array([1]), np.array([21 * MS + 50_000]), np.array([30 * MS]), np.array([30 * MS]), log)
    assert (race["violations"], race["within_race"]) == (0, 1)
    assert race["worst_ms"] == pytest.approx(0.05)


# --- memory ---


def test_a_slope_is_found_with_an_interval_and_noise_alone_has_none():
    seconds = np.arange(600.0)
    noise = np.random.default_rng(0).normal(0, 1e5, 600)
    rising = trend.memory_record(seconds, 200e6 + 2000 * seconds + noise)["mb_per_hour"]
    assert rising["low"] < 7.2 < rising["high"]
    assert rising["low"] > 5
    flat = trend.memory_record(seconds, 200e6 + noise)["mb_per_hour"]
    assert flat["low"] < 0 < flat["high"] < 1


def test_growth_while_the_program_settles_is_no_leak_and_few_samples_are_no_trend():
    seconds = np.arange(600.0)
    record = trend.memory_record(seconds, 200e6 - 50e6 * np.exp(-seconds / 10))
    assert abs(record["mb_per_hour"]["slope"]) < 0.5
    assert (record["first_mb"], record["last_mb"]) == (150, pytest.approx(200))
    assert trend.memory_record(seconds[:10], np.ones(10))["mb_per_hour"] is None


def test_resident_memory_is_that_of_this_process():
    # in a process of its own: in this one other tests' memory may be given back meanwhile
    code = (
        "import numpy as np; from benchmarks import trend; before = trend.resident_bytes(); "
        "held = np.ones(40_000_000, np.uint8); print(trend.resident_bytes() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 36_000_000 < int(done.stdout) < 60_000_000


def test_the_memory_log_samples_while_it_runs():
    log = trend.MemoryLog(every_s=0.002, longest_s=10)
    log.start()
    time.sleep(0.05)
    seconds, rss = log.stop()
    assert len(seconds) > 2
    assert np.all(np.diff(seconds) > 0)
    assert np.all(rss > 1e6)


# --- what is written down of a run ---


class Made:
    """A result whose numbers are known."""

    error, flags = None, ()

    def __init__(self, frame_id, plan, *, captured_ms, took_ms, steps=1):
        self.frame_id, self.plan, self.steps = frame_id, plan, steps
        start = round(captured_ms * MS)
        done = start + round(took_ms * MS)
        self.times = FrameTimes(
            capture_ns=start,
            put_ns=start,
            started_ns=start,
            restored_ns=done,
            delivered_ns=done,
            network_ms=took_ms / 2,
        )


def made_log(*results):
    log = ResultLog(len(results))
    for result in results:
        log.add(result)
    return log


def test_a_full_log_keeps_counting_flags_and_writes_no_more():
    log = ResultLog(1)
    for index in range(3):
        result = Made(index, "raw", captured_ms=0, took_ms=1)
        result.flags, result.error = ("late",), "it broke"
        log.add(result)
    assert log.count == 1
    assert (log.flags["late"], log.errors["it broke"]) == (3, 3)


def test_shares_and_spreads():
    log = made_log(*(Made(i, "K=1", captured_ms=30 * i, took_ms=10) for i in range(4)))
    assert outside_share(log.between_ms("started_ns", "restored_ns"), log.network_ms) == pytest.approx(0.5)
    assert spread(np.arange(1001.0)) == {
        "p50": 500, "p95": 950, "p99": 990, "p99.9": pytest.approx(999), "max": 1000
    }  # fmt: skip
    assert spread(np.array([])) is None


def test_plans_are_counted_by_what_the_other_core_did_when_the_frame_was_taken():
    log = made_log(
        Made(0, "K=4", captured_ms=0, took_ms=30),
        Made(1, "K=4", captured_ms=900, took_ms=60),  # taken while idle
        Made(2, "K=1", captured_ms=1100, took_ms=40),
        Made(3, "live K=1", captured_ms=1900, took_ms=20),
        Made(4, "K=4", captured_ms=2100, took_ms=30),
    )
    found = live_ladder.phases(log, [(0, False), (1000 * MS, True), (2000 * MS, False)], deadline_ms=50)
    assert found["idle"]["plans"] == {"K=4": 3}
    assert found["busy"]["plans"] == {"K=1": 1, "live K=1": 1}
    assert (found["idle"]["late"], found["busy"]["late"]) == (1, 0)
    assert found["busy"]["capture_to_result_ms"]["max"] == 40
    assert [(t["second"], t["busy"], sum(t["plans"].values()), t["late"]) for t in found["timeline"]] == [
        (0, False, 2, 1), (1, True, 2, 0), (2, False, 1, 0)
    ]  # fmt: skip


# --- marks ---


def run_record(**changes):
    stage = {"p50": 10.0, "p95": 12.0, "p99": 14.0, "p99.9": 15.0, "max": 16.0}
    record = {
        "fps": 30.0, "put": 100, "dropped": {}, "accounts_balance": True, "errors": {}, "outside_network_share": 0.09,
        "network_share_of_wall": 0.91,
        "stages": dict.fromkeys(live_tables.STAGES, stage), "camera": {"asked_fps": 30.0},
        "staleness": {"results": 100, "violations": 0, "within_race": 0, "worst_ms": 0.0, "race_ms": 0.1},
    }  # fmt: skip
    return record | changes


def parts_of(**changes):
    hour = {"slope": 1.0, "low": -2.0, "high": 4.0}
    pause = {"worst_first_ms": 19.0, "first_ms": [12.0, 19.0], "running_ms": {"p50": 10.0}, "pause_s": 10.0}
    parts = {
        "paced": run_record(),
        "flatout": {"preview": run_record(), "no_preview": run_record()},
        "stale": run_record(),
        "jitter": {"one_core": run_record(), "all_cores": run_record()},
        "pause": {"kept_warm": pause, "left_alone": pause},
        "memory": {"mb_per_hour": hour, "seconds": 600.0, "settled_mb": 200.0, "last_mb": 200.1},
    }
    return parts | changes


def missed(parts):
    return [mark.name for mark in live_marks.judge(parts) if mark.passed is False]


def total(p50, p99):
    return {"stages": {"total": {"p50": p50, "p99": p99}}}


def test_all_marks_pass_on_numbers_within_them():
    marks = live_marks.judge(parts_of())
    assert {mark.passed for mark in marks} == {True}
    assert len(marks) == 12


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"paced": run_record(dropped={"replaced": 1})}, "a paced camera: every frame is shown"),
        ({"paced": run_record(fps=29.0)}, "a paced camera: every frame is shown"),
        ({"paced": run_record(outside_network_share=0.101)}, "time outside the network, paced"),
        (
            {"flatout": {"preview": run_record(outside_network_share=0.2), "no_preview": run_record()}},
            "time outside the network, flat out",
        ),
        (
            {"flatout": {"preview": run_record(), "no_preview": run_record(outside_network_share=0.2)}},
            "time outside the network, flat out, no preview",
        ),
        (
            {"flatout": {"preview": run_record(network_share_of_wall=0.85), "no_preview": run_record()}},
            "time outside the network, flat out, of the wall clock",
        ),
        (
            {"stale": run_record(staleness=run_record()["staleness"] | {"violations": 1, "worst_ms": 3.0})},
            "`latest` shows nothing older than one processing time, a camera faster than the restoration",
        ),
        (
            {"stale": run_record(staleness=run_record()["staleness"] | {"results": 0})},
            "`latest` shows nothing older than one processing time, a camera faster than the restoration",
        ),
        (
            {"memory": parts_of()["memory"] | {"mb_per_hour": {"slope": 1.0, "low": -9.0, "high": 10.1}}},
            "memory flat over an hour",
        ),
        (
            {"jitter": {"one_core": run_record(**total(10.0, 15.1)), "all_cores": run_record()}},
            "p99 of capture to consumer, one core, network on one thread, the other core idle",
        ),
        (
            {"jitter": {"one_core": run_record(), "all_cores": run_record(**total(4.0, 6.1))}},
            "p99 of capture to consumer, all cores",
        ),
        (
            {"pause": {"kept_warm": parts_of()["pause"]["kept_warm"] | {"worst_first_ms": 20.1}}},
            "first frame after a pause",
        ),
        ({"cameras": {"apart": [run_record(accounts_balance=False)]}}, "no frame lost in silence, none failed"),
        ({"deadline": run_record(errors={"it broke": 2})}, "no frame lost in silence, none failed"),
    ],
)  # fmt: skip
def test_each_mark_is_missed_by_what_it_is_about_and_by_nothing_else(changes, name):
    assert missed(parts_of(**changes)) == [name]


def test_the_marks_are_reached_at_their_very_limits():
    limits = parts_of(
        jitter={"one_core": run_record(**total(10.0, 15.0)), "all_cores": run_record(**total(10.0, 15.0))},
        paced=run_record(outside_network_share=0.1),
        memory=parts_of()["memory"] | {"mb_per_hour": {"slope": 1.0, "low": -9.0, "high": 10.0}},
        pause={"kept_warm": parts_of()["pause"]["kept_warm"] | {"worst_first_ms": 20.0}},
    )
    assert missed(limits) == []


def test_marks_of_absent_parts_are_not_measured():
    marks = live_marks.judge({})
    assert {(mark.passed, mark.measured) for mark in marks} == {(None, "not measured")}
    assert len(marks) == 12
    few = parts_of(memory=parts_of()["memory"] | {"mb_per_hour": None})
    assert [mark.name for mark in live_marks.judge(few) if mark.passed is None] == ["memory flat over an hour"]


# --- cores ---


def affinity():
    return sorted(os.sched_getaffinity(0))


def fail():
    raise ValueError("on purpose")


def test_a_case_runs_in_a_process_of_its_own_on_its_core_alone():
    before = cores.available()
    assert cores.isolated(affinity, cpus=before[-1:]) == before[-1:]
    assert cores.available() == before
    assert cores.isolated(os.getpid) != os.getpid()


def die():
    os._exit(3)


def test_a_case_that_fails_brings_its_traceback_and_one_that_dies_its_exit_code():
    with pytest.raises(RuntimeError, match="die died with exit code 3"):
        cores.isolated(die)
    with pytest.raises(RuntimeError, match=r"(?s)fail failed in its own process.*on purpose"):
        cores.isolated(fail)


def process(pid):
    """State of a process ("R" running, "T" stopped) and the processor time that it took, seconds."""
    state, *fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return state, (int(fields[10]) + int(fields[11])) / os.sysconf("SC_CLK_TCK")


def until(true, seconds=10):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_the_burner_burns_only_while_it_is_switched_on_and_ends():
    with cores.Burner(cores.available()[-1]) as burner:
        pid = burner.pid
        assert os.sched_getaffinity(pid) == {burner.cpu}
        burner.switch(True)
        until(lambda: process(pid)[1] > 0.05)
        burner.switch(False)
        until(lambda: process(pid)[0] == "T")
    assert burner.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


# --- frames, settings, and the parts themselves ---


def test_simulated_frames_have_the_cameras_noise_and_move_if_told():
    frames = simulated_frames(6, 600)
    assert {(frame.shape, frame.dtype) for frame in frames} == {((600, 600), np.dtype(np.uint16))}
    electrons = (np.stack(frames).astype(float) - CAMERA.offset_adu) * CAMERA.gain_e_per_adu
    variance = electrons.var(0, ddof=1).mean()
    assert variance == pytest.approx(electrons.mean() + CAMERA.readout_noise_e**2, rel=0.05)
    still, moved = (simulated_frames(2, 512, drift_px=px)[1].astype(float) for px in (0, 40))
    first = simulated_frames(1, 512)[0].astype(float)
    assert np.corrcoef(first.ravel(), still.ravel())[0, 1] > np.corrcoef(first.ravel(), moved.ravel())[0, 1] + 0.2
    back = np.roll(moved, -40, axis=1)
    assert np.corrcoef(first.ravel(), back.ravel())[0, 1] > np.corrcoef(first.ravel(), moved.ravel())[0, 1] + 0.2


def test_a_setting_that_must_be_positive_is_checked(capsys):
    with pytest.raises(ValueError, match="fps is 0; expected a number above 0"):
        LiveSettings(fps=0)
    with pytest.raises(SystemExit):
        live.parse(["--frames", "-3"])
    assert "frames is -3" in capsys.readouterr().err


def test_every_part_is_measured_and_the_page_is_made_of_it(tmp_path, capsys):
    results = tmp_path / "live.json"
    document = live.measure(TINY, list(live.PARTS), command="python -m benchmarks.live", path=results, run=here)
    assert json.loads(results.read_text()) == json.loads(json.dumps(document))
    parts = {name: entry["found"] for name, entry in document["parts"].items()}
    assert set(parts) == set(live.PARTS)
    assert {"cpu", "commit", "utc"} <= set(document["parts"]["paced"]["machine"])
    for record in live_marks._runs(parts):
        assert record["accounts_balance"]
        assert record["errors"] == {}
        assert record["put"] == record["camera"]["frames"]
        assert 0 < record["outside_network_share"] < 1
    assert parts["flatout"]["preview"]["delivered"] == TINY.frames  # nothing is dropped where put waits for room
    assert parts["jitter"]["one_core"]["network_threads"] == 1
    assert [len(parts["pause"][case]["first_ms"]) for case in ("kept_warm", "left_alone")] == [2, 2]
    assert parts["pause"]["left_alone"]["kept_warm"] == 0
    assert (set(parts["cost"]["variants"]), parts["cost"]["not_measured"]) == ({"plain", "preview", "temporal"}, {})
    assert parts["cost"]["variants"]["preview"]["runs"] == TINY.turns
    assert [len(parts["cameras"][case]["cameras"]) for case in ("shared", "apart")] == [2, 2]
    assert parts["deadline"]["idle"]["results"] + parts["deadline"]["busy"]["results"] == parts["deadline"]["results"]
    assert any(on for _, on in parts["deadline"]["switched_s"])
    assert parts["memory"]["put"] == round(TINY.minutes * 60 * TINY.fps)
    page = live_tables.render(document)
    for heading in ("Marks", "Latency", "Staleness", "After a pause", "Memory", "The deadline ladder under load"):
        assert f"\n## {heading}\n" in page
    assert {m.name for m in live_marks.judge(parts) if m.passed is None} <= {"memory flat over an hour"}


def test_parts_of_an_earlier_run_stay_until_they_are_measured_anew(tmp_path, monkeypatch, capsys):
    results, report = tmp_path / "live.json", tmp_path / "live.md"
    calls = []

    def made_up(settings, run):
        calls.append(settings.frames)
        return run_record(stages=dict.fromkeys(live_tables.STAGES), camera={"asked_fps": 30.0}, fps=None)

    monkeypatch.setattr(live, "PARTS", {"stale": made_up, "cameras": made_up})
    monkeypatch.setattr(live_tables, "_SECTIONS", {})
    arguments = ["--precision", "fp32", "--frames", "5000", "--json", str(results), "--markdown", str(report)]
    live.main([*arguments, "--parts", "stale"], run=here)
    first = json.loads(results.read_text())["parts"]["stale"]
    monkeypatch.setattr(live_tables, "_runs", lambda parts: iter(()))
    live.main([*arguments, "--parts", "cameras"], run=here)
    document = json.loads(results.read_text())
    assert document["parts"]["stale"] == first
    assert calls == [5000, live.SHORTER["cameras"]]
    assert document["parts"]["cameras"]["settings"]["frames"] == live.SHORTER["cameras"]
    assert report.read_text().strip() in capsys.readouterr().out


def test_auto_precision_is_chosen_once_for_all_parts(monkeypatch):
    seen = []
    monkeypatch.setattr(live, "PARTS", {"paced": lambda settings, run: seen.append(settings.precision) or {}})
    document = live.measure(LiveSettings(threads=1), ["paced"], command="", run=here)
    assert document["choice"]["precision"] == seen[0] != "auto"
    assert document["settings"]["precision"] == seen[0]
    assert document["choice"]["reason"]


def test_a_frame_that_fails_is_an_error_in_the_record_and_not_a_silent_raw_frame(monkeypatch):
    monkeypatch.setattr(live_parts, "CAMERA", live_parts.CAMERA.__class__(offset_adu=np.zeros((8, 8), np.float32)))
    frames = simulated_frames(1, 64)
    with live_parts.loaded(TINY) as restorer, restorer.stream(camera=live_parts.CAMERA) as stream:
        done = live_parts.watch(stream, live_parts.Source(frames=frames, fps=None, count=1))
    record = live_parts.record(done)
    assert sum(record["errors"].values()) == record["put"] == 1
    assert math.isfinite(record["stages"]["compute"]["p50"])
    assert (
        live_marks.judge({"paced": record | {"camera": {"asked_fps": 1.0}, "staleness": run_record()["staleness"]}})[
            -1
        ].passed
        is False
    )
