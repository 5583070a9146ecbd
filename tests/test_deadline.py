"""The ladder on numbers, then in a stream whose clock stands still but for what the network is said to take."""

import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
from fault_injection import ManualClock, accounts_balance, simulated_frame, tampered, within

import photonstep as ps
from photonstep import DeadlineMissed, StreamError
from photonstep.runtime.deadline import RAW, RETRY_FRAMES, Ladder, Rung, rungs_of

SHAPE = (512, 512)
MAIN = rungs_of("", 4)
NANO = rungs_of("nano", 1)
CAMERA = ps.Camera(offset_adu=100.0, readout_noise_e=0.5)


def test_rungs_go_down_from_what_was_asked():
    assert [r.name for r in MAIN] == ["K=4", "K=2", "K=1"]
    assert [r.steps for r in rungs_of("", 3)] == [3, 2, 1]
    assert [r.steps for r in rungs_of("", 8)] == [8, 4, 2, 1]
    assert [r.name for r in (*NANO, RAW)] == ["nano K=1", "raw"]


def taught(**costs_ms):
    """A ladder with one run of each named rung; a tenth of the time is outside the network."""
    ladder = Ladder()
    for name, ms in costs_ms.items():
        rung = {"k4": MAIN[0], "k2": MAIN[1], "k1": MAIN[2], "nano": NANO[0]}[name]
        ladder.record(rung, SHAPE, total_ms=ms, network_ms=0.9 * ms)
    return ladder


@pytest.mark.parametrize(
    ("budget_ms", "name"),
    [(100, "K=4"), (40, "K=4"), (39, "K=2"), (20, "K=2"), (19, "K=1"), (9, "nano K=1"), (4, "raw"), (0, "raw")],
)
def test_the_largest_plan_that_fits_is_chosen(budget_ms, name):
    ladder = taught(k4=40, k2=20, k1=10, nano=5)
    assert ladder.choose((*MAIN, *NANO), SHAPE, budget_ms).name == name


def test_without_a_deadline_the_first_is_chosen():
    assert taught(k4=40).choose(MAIN, SHAPE, math.inf).name == "K=4"
    assert Ladder().choose(MAIN, SHAPE, math.inf).name == "K=4"


def test_a_rung_that_never_ran_is_predicted():
    """1 ms outside and 9 ms inside the network for one step: 19 and 37 ms for two and four."""
    ladder = taught(k1=10)
    assert ladder.cost_ms(MAIN[1], SHAPE) == pytest.approx(19)
    assert ladder.cost_ms(MAIN[0], SHAPE) == pytest.approx(37)
    assert ladder.choose(MAIN, SHAPE, 36).name == "K=2"
    assert ladder.cost_ms(NANO[0], SHAPE) is None  # another restorer tells nothing about this one


def test_costs_belong_to_a_shape():
    ladder = taught(k4=40)
    assert ladder.cost_ms(MAIN[0], (64, 64)) is None
    assert ladder.choose(MAIN, (64, 64), 1.0) == MAIN[2]  # nothing known: the smallest step, to learn


def test_cost_is_a_high_percentile_of_recent_runs():
    ladder = Ladder()
    for ms in (*[10.0] * 30, 50.0, 30.0):
        ladder.record(MAIN[0], SHAPE, total_ms=ms, network_ms=ms)
    assert ladder.cost_ms(MAIN[0], SHAPE) == 30.0  # one outlier in 32 is let go, the next one is not
    for _ in range(32):
        ladder.record(MAIN[0], SHAPE, total_ms=12.0, network_ms=12.0)
    assert ladder.cost_ms(MAIN[0], SHAPE) == 12.0


def run_frames(ladder, rungs, budget_ms, true_cost_ms, count):
    """Frames through the ladder, with the true cost of each rung by name; the names of what was run."""
    chosen = []
    for _ in range(count):
        ladder.next_frame()
        rung = ladder.choose(rungs, SHAPE, budget_ms)
        ms = true_cost_ms.get(rung.name, 0.0)
        ladder.record(rung, SHAPE, total_ms=ms, network_ms=0.9 * ms)
        chosen.append(rung.name)
    return chosen


def test_a_rung_that_was_slow_for_a_while_comes_back():
    ladder = taught(k4=40, k2=20, k1=10)
    busy = {"K=4": 90, "K=2": 45, "K=1": 22}
    assert run_frames(ladder, MAIN, 45, busy, 10)[-1] == "K=2"
    free = {"K=4": 40, "K=2": 20, "K=1": 10}
    assert run_frames(ladder, MAIN, 45, free, 16 * RETRY_FRAMES)[-1] == "K=4"


def test_from_the_raw_frame_there_is_a_way_back():
    ladder = taught(k1=10)
    assert run_frames(ladder, rungs_of("", 1), 15, {"K=1": 60}, 3) == ["K=1", "raw", "raw"]
    chosen = run_frames(ladder, rungs_of("", 1), 15, {"K=1": 10}, RETRY_FRAMES + 1)
    assert chosen[0] == "raw"
    assert chosen[-1] == "K=1"


def test_what_never_fits_is_tried_ever_more_rarely():
    chosen = run_frames(taught(k1=60), rungs_of("", 1), 15, {"K=1": 60}, 1000)
    tries = [i for i, name in enumerate(chosen) if name == "K=1"]
    assert 5 <= len(tries) <= 9
    assert [b - a for a, b in pairwise(tries)] == [2 * RETRY_FRAMES << i for i in range(len(tries) - 1)]


def test_a_rung_back_in_favour_is_tried_soon_again_after_its_next_fall():
    ladder, only, slow, fast = taught(k1=60), rungs_of("", 1), {"K=1": 60}, {"K=1": 10}
    run_frames(ladder, only, 15, slow, 500)  # tries 4, 8, 16... frames apart
    assert run_frames(ladder, only, 15, fast, 600)[-1] == "K=1"
    run_frames(ladder, only, 15, slow, 2)
    assert "K=1" in run_frames(ladder, only, 15, fast, RETRY_FRAMES + 2)


def test_a_prediction_that_does_not_fit_saves_the_try():
    ladder = taught(k2=20, k1=10)
    ladder.record(MAIN[0], SHAPE, total_ms=40, network_ms=36)
    assert set(run_frames(ladder, MAIN, 25, {"K=2": 20, "K=4": 40}, 300)) == {"K=2"}


# --- in a stream ---


class Machine:
    """A stream's clock, and how long a run of the main and of the fallback network takes, ms."""

    def __init__(self, main_ms):
        self.clock = ManualClock()
        self.main_ms, self.fallback_ms = main_ms, 0.0

    def main(self, _):
        self.clock.advance(self.main_ms)

    def fallback(self, _):
        self.clock.advance(self.fallback_ms)


@pytest.fixture
def machine(monkeypatch):
    """Its clock also times the network; tests set what a run takes."""
    machine = Machine(10.0)
    stopwatch = SimpleNamespace(perf_counter=lambda: machine.clock() / 1e9)
    monkeypatch.setattr("photonstep.runtime.denoiser.time", stopwatch)
    return machine


@pytest.fixture(scope="module")
def nano():
    with ps.load("live", device="cpu", backend="openvino", precision="fp32", threads=1) as opened:
        yield opened


def restored_plans(live, machine, count, *, waited_ms=0.0):
    results = []
    for number in range(count):
        captured_ns = machine.clock()
        machine.clock.advance(waited_ms)
        live.put(simulated_frame(number), capture_ns=captured_ns)
        with live.get(timeout=10) as result:
            results.append((result.plan, result.steps, result.flags))
    return results


@within(30)
@pytest.mark.parametrize(
    ("deadline_ms", "plan", "steps"),
    [(45, "K=4", 4), (25, "K=2", 2), (15, "K=1", 1), (5, "live K=1", 1), (1, "raw", 0)],
)
def test_the_plan_fits_the_deadline(machine, restorer, nano, deadline_ms, plan, steps):
    machine.fallback_ms = 3.0
    settings = {"camera": CAMERA, "keep_warm_ms": None, "fallback": nano, "steps": 4, "clock_ns": machine.clock}
    with (
        tampered(restorer, machine.main),
        tampered(nano, machine.fallback),
        restorer.stream(deadline_ms=deadline_ms, warm_up=simulated_frame(), **settings) as live,
    ):
        for got_plan, got_steps, flags in restored_plans(live, machine, 3):
            assert (got_plan, got_steps) == (plan, steps)
            assert ("deadline_raw" in flags) == (plan == "raw")
            assert "late" not in flags
        assert live.stats().plans == {plan: 3}
        assert live.stats().late == 0


@within(30)
def test_time_since_capture_counts(machine, nano):
    with tampered(nano, machine.main):
        settings = {"camera": CAMERA, "keep_warm_ms": None, "clock_ns": machine.clock, "warm_up": simulated_frame()}
        with nano.stream(deadline_ms=45, steps=4, **settings) as live:
            assert restored_plans(live, machine, 1, waited_ms=0)[0][0] == "K=4"
            assert restored_plans(live, machine, 1, waited_ms=20)[0][0] == "K=2"
            assert restored_plans(live, machine, 1, waited_ms=34)[0][0] == "K=1"
            plan, _, flags = restored_plans(live, machine, 1, waited_ms=60)[0]
            assert (plan, flags) == ("raw", ("deadline_raw", "late"))


@within(30)
def test_a_sudden_slowness_is_late_once_and_then_the_plan_shrinks(machine, nano):
    with tampered(nano, machine.main):
        settings = {"camera": CAMERA, "keep_warm_ms": None, "clock_ns": machine.clock, "warm_up": simulated_frame()}
        with nano.stream(deadline_ms=45, steps=4, **settings) as live:
            assert restored_plans(live, machine, 1)[0][0] == "K=4"
            machine.main_ms = 20.0
            first, *others = restored_plans(live, machine, 4)
            assert first[0] == "K=4"
            assert "late" in first[2]
            assert [o[0] for o in others] == ["K=2"] * 3
            assert all("late" not in o[2] for o in others)
            assert live.stats().late == 1
            live.update(deadline_ms=None)
            assert restored_plans(live, machine, 1)[0][0] == "K=4"
            assert accounts_balance(live.stats())


@within(30)
@pytest.mark.parametrize(("waited_ms", "plan"), [(20, "K=2"), (34, "K=1"), (40, "live K=1"), (44, "raw")])
def test_time_spent_waiting_for_a_shared_restorer_counts(machine, restorer, nano, waited_ms, plan):
    """Another stream has the restorer: what fitted when the frame was taken may not fit when its turn comes."""
    machine.fallback_ms = 3.0
    settings = {"camera": CAMERA, "keep_warm_ms": None, "fallback": nano, "steps": 4, "clock_ns": machine.clock}
    with (
        tampered(restorer, machine.main),
        tampered(nano, machine.fallback),
        restorer.stream(deadline_ms=45, warm_up=simulated_frame(), **settings) as live,
    ):
        with restorer.turn:
            live.put(simulated_frame())
            while not restorer.turn._queue:
                pass
            machine.clock.advance(waited_ms)
        result = live.get(timeout=10)
        assert result.plan == plan
        assert "late" not in result.flags
        assert "device_lost" not in result.flags


@within(30)
def test_a_late_result_can_be_refused(machine, nano):
    with tampered(nano, machine.main):
        settings = {"camera": CAMERA, "keep_warm_ms": None, "clock_ns": machine.clock, "warm_up": simulated_frame()}
        with nano.stream(deadline_ms=15, **settings) as live:
            live.put(simulated_frame())
            live.get(timeout=10).raise_if_late()
            machine.main_ms = 30.0
            live.put(simulated_frame())
            with pytest.raises(DeadlineMissed, match=r"frame 1 \(K=1\) is late: done 30.0 ms after its capture"):
                live.get(timeout=10).raise_if_late()


@within(30)
def test_the_raw_rung_is_the_raw_frame(machine, nano):
    with tampered(nano, machine.main):
        settings = {"camera": CAMERA, "keep_warm_ms": None, "clock_ns": machine.clock, "warm_up": simulated_frame()}
        with nano.stream(deadline_ms=1, **settings) as live:
            frame = simulated_frame(7)
            live.put(frame)
            with live.get(timeout=10) as result:
                assert (result.image == frame).all()
                assert math.isnan(result.sigma)
                assert result.error is None


@within(30)
def test_auto_opens_the_live_bundle_when_a_deadline_asks_for_it(machine, restorer):
    with restorer.stream(camera=CAMERA, keep_warm_ms=None, clock_ns=machine.clock) as live:
        assert not live._restoring.has_fallback
        live.update(deadline_ms=1000)
        assert live._restoring.has_fallback
        assert live._own_fallback.bundle.manifest.name == "live"
    assert live._own_fallback._closed


def test_a_fallback_must_give_images_of_the_same_shape(restorer, nano):
    class Doubled:
        def __getattr__(self, name):
            return getattr(nano, name)

        bundle = ps.load("sr2", precision="fp32", threads=1).bundle

    with pytest.raises(StreamError, match="scale 2; expected another restorer of scale 1"):
        restorer.stream(fallback=Doubled())
    with pytest.raises(StreamError, match="expected another restorer"):
        restorer.stream(fallback=restorer)


@within(20)
def test_a_capture_time_on_another_clock_is_refused(machine, nano):
    with nano.stream(camera=CAMERA, clock_ns=machine.clock, keep_warm_ms=None) as live:
        for capture_ns in (0, machine.clock() + 2 * 10**9, 1.5):
            with pytest.raises(StreamError, match="perf_counter_ns"):
                live.put(simulated_frame(), capture_ns=capture_ns)
        assert live.put(simulated_frame(), capture_ns=machine.clock() - 10**6) == 0


def test_rung_names_are_labels():
    assert Rung(source="live", steps=1).name == "live K=1"
