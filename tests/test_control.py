"""The control loop: acts in time on restored frames, and is made safe once per incident, with the right reason."""

import json
import math
import threading

import numpy as np
import pytest
from fault_injection import ManualClock, simulated_frame, tampered, within

import photonstep as ps
from photonstep import BackendError, StreamError
from photonstep.runtime.control_report import CAUSES

CAMERA = ps.Camera(offset_adu=100.0, readout_noise_e=0.5)


@pytest.fixture(scope="module")
def engine():
    with ps.load("live", device="cpu", backend="openvino", precision="fp32", threads=1) as opened:
        yield opened


class Rig:
    """A stream and a loop on a clock that stands still; the watchdog only looks when asked (`loop.check`)."""

    def __init__(self, engine, *, measure=np.mean, act=None, safe=None, deadline_ms=50.0, watchdog_ms=60_000.0, **more):
        self.clock = ManualClock()
        self.acted, self.safe = [], []
        self.live = engine.stream(
            camera=CAMERA, policy="all", keep_warm_ms=None, warm_up=simulated_frame(), clock_ns=self.clock
        )
        self.loop = ps.ControlLoop(
            self.live,
            measure=measure,
            act=act or (lambda value, result: self.acted.append((value, result.frame_id))),
            safe_action=safe or self.safe.append,
            deadline_ms=deadline_ms,
            watchdog_ms=watchdog_ms,
            **more,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.loop.close()
        self.live.close()

    def frame(self, *, age_ms=0.0, number=0):
        self.live.put(simulated_frame(number), capture_ns=self.clock() - int(age_ms * 1e6))
        assert self.live.drain(10)

    def causes(self):
        return [incident.cause for incident in self.safe]


@within(20)
def test_every_restored_frame_is_measured_and_acted_on(engine):
    with Rig(engine) as rig:
        for number in range(3):
            rig.frame(number=number)
            rig.clock.advance(10)
        assert [frame_id for _, frame_id in rig.acted] == [0, 1, 2]
        wanted = engine.restore(simulated_frame(0), camera=CAMERA).image.mean()
        assert rig.acted[0][0] == wanted
        report = rig.loop.report()
    assert (report.actions, report.late, report.safe_actions) == (3, 0, {})
    assert rig.safe == []


@within(20)
def test_jitter_is_what_the_clock_says(engine):
    with Rig(engine) as rig:
        for pause_ms in (10, 10, 10, 30):
            rig.frame(age_ms=5)
            rig.clock.advance(pause_ms)
        rig.frame(age_ms=5)
        report = rig.loop.report()
    assert report.interval.count == 4
    assert report.interval.p50_ms == pytest.approx(10, rel=0.01)
    assert report.interval.max_ms == pytest.approx(30)
    assert report.frame_to_action.p99_ms == pytest.approx(5, rel=0.01)
    assert json.loads(json.dumps(report.as_dict()))["interval"]["count"] == 4


@within(20)
def test_late_frames_are_not_acted_on_and_make_it_safe_once(engine):
    with Rig(engine) as rig:
        rig.frame(age_ms=0)
        for _ in range(3):
            rig.frame(age_ms=60)
        assert [frame_id for _, frame_id in rig.acted] == [0]
        assert rig.causes() == ["late"]
        assert rig.safe[0].message == "frame 1 is 60.0 ms old, deadline_ms is 50"
        rig.frame(age_ms=0)  # ends the incident
        rig.frame(age_ms=60)  # begins another one
        assert rig.causes() == ["late", "late"]
        report = rig.loop.report()
    assert (report.late, report.troubles, report.safe_actions) == (4, {"late": 4}, {"late": 2})
    assert [i.frame_id for i in report.incidents] == [1, 5]


@within(20)
def test_a_measure_that_takes_too_long_makes_its_frame_late(engine):
    rig = Rig(engine, measure=lambda image: rig.clock.advance(60))
    with rig:
        rig.frame()
        assert rig.acted == []
        assert rig.causes() == ["late"]


@within(20)
@pytest.mark.parametrize("kind", [ZeroDivisionError, SystemExit])
@pytest.mark.parametrize("broken", ["measure", "act"])
def test_a_crash_is_made_safe_and_the_loop_goes_on(engine, broken, kind):
    crash = threading.Event()
    crash.set()

    def check(value):
        if crash.is_set():
            raise kind("no light")
        return value

    crashing = {"measure": check} if broken == "measure" else {"act": lambda value, result: check(value)}
    with Rig(engine, **crashing) as rig:
        for _ in range(10):  # more than the stream lets a callback crash: the loop catches its own
            rig.frame()
        assert rig.causes() == [f"{broken}_failed"]
        assert f"{kind.__name__}: no light" in rig.safe[0].message
        crash.clear()
        rig.frame()
        report = rig.loop.report()
    assert report.actions == 1
    assert report.troubles == {f"{broken}_failed": 10}


@within(20)
@pytest.mark.parametrize("act_on_raw", [False, True])
def test_raw_frames_are_only_acted_on_when_asked_for(engine, act_on_raw):
    def lost(_):
        raise BackendError("the device is gone")

    with Rig(engine, act_on_raw=act_on_raw) as rig, tampered(engine, lost):
        rig.frame()
        assert len(rig.acted) == act_on_raw
        assert rig.causes() == ([] if act_on_raw else ["unrestored"])
        if not act_on_raw:
            assert rig.safe[0].message == "frame 0 is raw: the device is gone"


@within(20)
def test_a_stalled_camera_makes_it_safe_once(engine):
    with Rig(engine, watchdog_ms=100) as rig:
        # the watchdog's thread looks too, at the same clock: whoever comes first, it is one incident
        rig.frame()
        rig.clock.advance(99)
        rig.loop.check()
        assert rig.safe == []
        for _ in range(3):
            rig.clock.advance(101)
            rig.loop.check()
        assert rig.causes() == ["stalled"]
        assert "no result came" in rig.safe[0].message
        rig.frame()
        rig.clock.advance(101)
        rig.loop.check()
        assert rig.causes() == ["stalled", "stalled"]


@within(20)
def test_an_action_that_hangs_is_told_from_a_stalled_camera(engine):
    entered, free = threading.Event(), threading.Event()

    def hang(value, result):
        entered.set()
        free.wait(15)

    with Rig(engine, act=hang, watchdog_ms=100) as rig:
        rig.live.put(simulated_frame())
        entered.wait(10)
        rig.clock.advance(101)
        rig.loop.check()
        assert rig.causes() == ["hung"]
        assert rig.safe[0].frame_id == 0
        free.set()


@within(20)
def test_the_watchdog_looks_by_itself(engine):
    safe = threading.Event()
    with Rig(engine, watchdog_ms=20, safe=lambda _: safe.set()) as rig:
        rig.clock.advance(21)
        assert safe.wait(10)


@within(20)
def test_a_stream_that_ends_makes_it_safe(engine):
    with Rig(engine, watchdog_ms=100) as rig:
        rig.live.close()
        rig.clock.advance(101)
        rig.loop.check()
        assert rig.causes() == ["stream_failed"]


@within(20)
@pytest.mark.parametrize("kind", [OSError, SystemExit])
def test_a_crash_in_the_safe_action_is_counted(engine, kind):
    def broken(_):
        raise kind("no shutter")

    with Rig(engine, safe=broken) as rig:
        rig.frame(age_ms=60)
        rig.frame()
        assert len(rig.acted) == 1
        assert rig.loop.report().safe_action_crashes == 1


@within(20)
def test_nothing_is_done_after_close(engine):
    with Rig(engine, watchdog_ms=100) as rig:
        rig.loop.close()
        rig.frame()
        rig.clock.advance(1000)
        rig.loop.check()
        assert (rig.acted, rig.safe) == ([], [])


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"measure": 1}, "measure is a int"),
        ({"watchdog_ms": 0}, "watchdog_ms is 0"),
        ({"deadline_ms": math.inf}, "inf"),
    ],
)
def test_wrong_settings_are_refused(engine, wrong, told):
    with engine.stream(camera=CAMERA) as live, pytest.raises(StreamError, match=told):
        good = {"measure": np.mean, "act": print, "safe_action": print, "watchdog_ms": 100}
        ps.ControlLoop(live, **{**good, **wrong})


def test_every_cause_is_explained():
    seen = {"late", "unrestored", "measure_failed", "act_failed", "hung", "stalled", "stream_failed"}
    assert set(CAUSES) == seen
