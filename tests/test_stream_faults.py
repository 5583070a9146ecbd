"""Each fault: what was injected, what came out. Every test fails where the stream would hang."""

import contextlib
import random
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
from fault_injection import Gate, ManualClock, accounts_balance, simulated_frame, tampered, within

import photonstep as ps
from photonstep import BackendError, ShapeError, StreamError, StreamFull

ROOT = Path(__file__).resolve().parents[1]
CAMERA = ps.Camera(offset_adu=100.0, readout_noise_e=0.5)


@pytest.fixture(scope="module")
def engine():
    with ps.load("live", device="cpu", backend="openvino", precision="fp32", threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def spare():
    with ps.load("live", device="cpu", backend="openvino", precision="fp32", threads=1) as opened:
        yield opened


def open_stream(engine, **settings):
    return engine.stream(**{"camera": CAMERA, "keep_warm_ms": None, "warm_up": simulated_frame(), **settings})


def take(live):
    result = live.get(timeout=10)
    assert result is not None
    return result


def restored(live, number=0, **settings):
    """One frame through the stream, and its image copied."""
    live.put(simulated_frame(number, **settings))
    with take(live) as result:
        return result, result.image.copy()


# --- callbacks ---


@within(20)
def test_a_crash_in_a_callback_is_reported_and_isolated(engine, caplog):
    """Injected: a callback that raises on every second frame. Out: the other callback gets everything."""
    seen = []

    def broken(result):
        if result.frame_id % 2:
            raise ValueError("no screen")

    with open_stream(engine, policy="all", callback_crashes=2) as live:
        subscription = live.subscribe(broken)
        live.subscribe(lambda r: seen.append(r.frame_id))
        for number in range(8):
            live.put(simulated_frame(number), timeout=10)
        assert live.drain(10)
        assert seen == list(range(8))
        assert subscription.active  # never twice in a row
        stats = live.stats()
        assert stats.error_count == 4
        assert "broken raised ValueError: no screen" in stats.errors[0]
    assert "no screen" in caplog.text


@within(20)
def test_a_callback_that_always_crashes_is_dropped_and_says_so(engine):
    calls = []

    def broken(result):
        calls.append(result.frame_id)
        raise ValueError("no screen")

    with open_stream(engine, policy="all", callback_crashes=3) as live:
        subscription = live.subscribe(broken)
        for number in range(6):
            live.put(simulated_frame(number), timeout=10)
            assert live.drain(10)
        assert calls == [0, 1, 2]
        assert not subscription.active
        assert "raised 3 times in a row and is called no more" in live.stats().errors[-1]
        assert accounts_balance(live.stats())


@within(20)
def test_a_callback_that_exits_holds_nothing_back(engine):
    """Injected: sys.exit() in a callback, which ends a thread in silence. Out: told, dropped, the stream goes on."""
    with open_stream(engine, policy="all", buffers=2, ring=2, callback_crashes=3) as live:
        subscription = live.subscribe(lambda result: sys.exit(3))
        for number in range(8):  # more than ring and buffers hold
            live.put(simulated_frame(number), timeout=10)
            assert live.drain(10)
            if result := live.get(timeout=0):
                result.release()
        assert not subscription.active
        assert any("raised SystemExit: 3" in e for e in live.stats().errors)


@within(20)
def test_a_crash_in_on_drop_is_isolated(engine):
    def broken(drop):
        raise RuntimeError(f"lost {drop.frame_id}")

    live = open_stream(engine, on_drop=broken)
    for number in range(3):
        live.put(simulated_frame(number))
        assert live.drain(10)
    live.close()
    assert any("on_drop raised RuntimeError: lost 0" in e for e in live.stats().errors)


@within(20)
def test_a_stalled_callback_does_not_stall_close(engine, monkeypatch):
    monkeypatch.setattr("photonstep.runtime.stream.CALLBACK_S", 0.05)
    stuck = threading.Event()
    live = open_stream(engine)
    live.subscribe(lambda _: stuck.wait(15))
    live.put(simulated_frame())
    assert not live.drain(0.1)
    live.close()
    stuck.set()
    assert accounts_balance(live.stats())


# --- poisoned frames ---


@within(20)
@pytest.mark.parametrize(
    "poison",
    [
        np.zeros((64, 64), np.float64),
        np.zeros((64, 64), np.int32),
        np.zeros((3, 64, 64), np.uint16),
        np.zeros((8, 8), np.uint16),
        np.zeros((0, 64), np.uint16),
        [[1, 2], [3, 4]],
        None,
    ],
    ids=["float64", "int32", "stack", "tiny", "empty", "list", "none"],
)
def test_a_frame_of_the_wrong_kind_is_refused_and_uses_no_id(engine, poison):
    with open_stream(engine) as live:
        assert live.put(simulated_frame()) == 0
        take(live)
        with pytest.raises(ShapeError):
            live.put(poison)
        assert live.put(simulated_frame()) == 1
        take(live)
        assert live.stats().put == 2


@within(20)
def test_pixels_that_are_not_numbers_are_bridged_and_flagged(engine):
    frame = simulated_frame(dtype=np.float32)
    frame[10:12, 10:12] = np.nan
    with open_stream(engine, warm_up=None) as live:
        live.put(frame)
        result = take(live)
        assert "non_finite" in result.flags
        assert (result.steps, result.error) == (1, None)
        assert np.isnan(result.image[10:12, 10:12]).all()
        assert np.isfinite(result.image).sum() == 64 * 64 - 4


@within(20)
def test_a_frame_without_one_number_comes_back_raw_with_its_error(engine):
    frame = np.full((64, 64), np.nan, np.float32)
    with open_stream(engine, warm_up=None, policy="all") as live:
        live.put(frame)
        result = take(live)
        assert (result.plan, result.steps, result.flags) == ("raw", 0, ("restore_failed",))
        assert "no finite pixel" in result.error
        assert np.isnan(result.image).all()
        assert result.preview_u8.max() == 0
        good, image = restored(live, dtype=np.float32)
        assert good.plan == "K=1"
        assert np.array_equal(image, engine.restore(simulated_frame(dtype=np.float32), camera=CAMERA).image)


@within(20)
@pytest.mark.parametrize("fill", [1e18, 3e38, -1e38])
def test_a_frame_of_fill_values_only_comes_back_raw(engine, fill):
    """Injected: a flat frame so bright that a count above and below it is the same number."""
    with open_stream(engine, warm_up=None) as live:
        live.put(np.full((64, 64), fill, np.float32))
        result = take(live)
        assert (result.plan, result.flags) == ("raw", ("restore_failed",))
        assert (result.preview_u8 == (255 if fill > 0 else 0)).all()
        assert restored(live, dtype=np.float32)[0].plan == "K=1"


@within(20)
def test_fill_values_do_not_darken_the_preview(engine):
    frame = simulated_frame(dtype=np.float32)
    frame[:8] = 1e30
    with open_stream(engine, warm_up=None) as live:
        live.put(frame)
        shown = take(live).preview_u8[8:]
        assert (shown.min(), shown.max()) == (0, 255)


@within(20)
def test_a_preview_that_cannot_be_drawn_is_black_and_told(engine, monkeypatch):
    def broken(*_, **__):
        raise MemoryError("no room")

    with open_stream(engine) as live:
        monkeypatch.setattr("photonstep.runtime.preview_maker.ops.preview_u8", broken)
        live.put(simulated_frame())
        result = take(live)
        assert (result.plan, result.preview_u8.max()) == ("K=1", 0)
        assert live.stats().errors == ("a preview could not be drawn: MemoryError: no room",)
        monkeypatch.undo()
        live.put(simulated_frame())
        assert take(live).preview_u8.max() == 255


@within(20)
def test_camera_maps_of_another_shape_are_told_with_every_frame(engine):
    maps = ps.Camera(offset_adu=np.full((32, 32), 100.0))
    with open_stream(engine, camera=maps, warm_up=None) as live:
        frame = simulated_frame()
        live.put(frame)
        result = take(live)
        assert result.flags == ("restore_failed",)
        assert "(32, 32)" in result.error
        assert np.array_equal(result.image, frame)
        live.update(camera=CAMERA)
        assert restored(live)[0].plan == "K=1"


@within(20)
def test_any_exception_that_a_frame_raises_is_that_frames_alone(engine):
    """Injected: a ValueError of a library inside the second of three runs."""

    def broken(run):
        if run == 1:
            raise ValueError("numbers do not add up")

    with open_stream(engine) as live, tampered(engine, broken):
        results = [restored(live, number)[0] for number in range(3)]
    assert [r.plan for r in results] == ["K=1", "raw", "K=1"]
    assert results[1].flags == ("restore_failed",)
    assert results[1].error == "ValueError: numbers do not add up"
    assert live.stats().errors == ("a frame could not be restored: ValueError: numbers do not add up",)


@within(20)
def test_super_resolution_gives_raw_frames_in_the_results_shape():
    with ps.load("sr2", precision="fp32", threads=1) as doubled:
        frame = np.full((32, 48), np.nan, np.float32)
        frame[0, 0] = np.nan
        with doubled.stream(camera=CAMERA, keep_warm_ms=None) as live:
            live.put(frame)
            assert take(live).image.shape == (64, 96)
            good = simulated_frame(shape=(32, 48), dtype=np.float32)
            live.put(good)
            result = take(live)
            assert result.plan == "K=1"
            assert result.image.shape == (64, 96)


# --- a lost device ---


def lost_from(first):
    def before(run):
        if run >= first:
            raise BackendError("the device is gone")

    return before


@within(30)
def test_a_lost_device_gives_labelled_raw_frames_and_recovers(engine, monkeypatch):
    """Injected: every run fails from the third on, the first reopening too. Out: raw frames, then the real network."""
    clock = ManualClock()
    reopened = []
    real_reopen = ps.Restorer.reopen

    def reopen(self):
        reopened.append(clock())
        if len(reopened) == 1:
            raise BackendError("still gone")
        real_reopen(self)

    monkeypatch.setattr(ps.Restorer, "reopen", reopen)
    wanted = engine.restore(simulated_frame(9), camera=CAMERA).image
    with open_stream(engine, clock_ns=clock) as live, tampered(engine, lost_from(2)):
        assert [restored(live, n)[0].plan for n in range(2)] == ["K=1", "K=1"]
        for number in range(2, 5):
            result, image = restored(live, number)
            assert (result.plan, result.flags) == ("raw", ("device_lost",))
            assert result.error == "the device is gone"
            assert np.array_equal(image, simulated_frame(number))
        assert not reopened  # not with every frame: it takes long
        clock.advance(600)
        assert restored(live, 5)[0].error == "the device is gone; opened anew: still gone"
        clock.advance(600)
        assert restored(live, 6)[0].plan == "raw"  # the second try waits longer
        assert len(reopened) == 1
        clock.advance(600)
        live.event("exposure_changed")
        result, image = restored(live, 9)
        assert (result.plan, result.flags, result.error) == ("K=1", (), None)
        assert np.array_equal(image, wanted)
        errors = live.stats().errors
        assert errors[0] == "live fails: the device is gone"
        assert errors[-1] == "live was opened anew"


@within(30)
def test_two_streams_open_their_restorer_anew_once(engine, monkeypatch):
    clock, reopened = ManualClock(), []
    real_reopen = ps.Restorer.reopen

    def reopen(self):
        reopened.append(self)
        real_reopen(self)

    monkeypatch.setattr(ps.Restorer, "reopen", reopen)
    with (
        open_stream(engine, clock_ns=clock) as one,
        open_stream(engine, clock_ns=clock) as two,
        tampered(engine, lost_from(0)),
    ):
        assert [restored(live)[0].plan for live in (one, two)] == ["raw", "raw"]
        clock.advance(600)
        assert [restored(live)[0].plan for live in (one, two)] == ["K=1", "K=1"]
    assert len(reopened) == 1


@within(30)
def test_a_lost_device_falls_to_the_fallback(engine, spare):
    with open_stream(engine, fallback=spare) as live, tampered(engine, lost_from(1)):
        assert restored(live)[0].plan == "K=1"
        result, image = restored(live, 1)
        assert (result.plan, result.steps) == ("live K=1", 1)
        assert "device_lost" in result.flags
        assert result.error == "the device is gone"
        assert np.array_equal(image, spare.restore(simulated_frame(1), camera=CAMERA).image)


@within(30)
def test_when_both_are_lost_raw_frames_go_on(engine, spare):
    with open_stream(engine, fallback=spare) as live:
        with tampered(engine, lost_from(0)), tampered(spare, lost_from(0)):
            result, image = restored(live)
            assert (result.plan, result.flags) == ("raw", ("device_lost",))
            assert np.array_equal(image, simulated_frame())
        assert live.stats().error_count == 2


@within(30)
def test_a_device_lost_while_idle_does_not_end_the_stream(engine):
    with open_stream(engine, keep_warm_ms=2, clock_ns=ManualClock()) as live, tampered(engine, lost_from(0)):
        while not live.stats().error_count:
            pass
        assert restored(live)[0].flags == ("device_lost",)


@within(20)
def test_a_restorer_closed_under_the_stream_gives_raw_frames():
    restorer = ps.load("live", precision="fp32", threads=1)
    with restorer.stream(camera=CAMERA, keep_warm_ms=None, warm_up=simulated_frame()) as live:
        restorer.close()
        result, image = restored(live)
        assert result.flags == ("device_lost",)
        assert "closed" in result.error
        assert np.array_equal(image, simulated_frame())


# --- the engine itself ---


class Killed(BaseException):
    """Not an Exception: nothing in the engine expects it."""


@within(20)
@pytest.mark.parametrize("policy", ["latest", "all"])
def test_a_killed_worker_is_an_error_not_a_hang(engine, policy):
    def killer(run):
        if run == 1:
            raise Killed("out of the blue")

    live = open_stream(engine, policy=policy)
    with tampered(engine, killer):
        live.put(simulated_frame(0))
        assert live.drain(10)
        waiting = threading.Thread(target=lambda: live.put(simulated_frame(1)))
        waiting.start()
        waiting.join()
        assert take(live).frame_id == 0  # what was made before is still given out
        with pytest.raises(StreamError, match="Killed: out of the blue") as caught:
            live.get(timeout=10)
        assert isinstance(caught.value.__cause__, Killed)
        with pytest.raises(StreamError, match="out of the blue"):
            live.put(simulated_frame(2))
        stats = live.stats()
        assert stats.dropped == {"engine_failed": 1}
        assert accounts_balance(stats)
    live.close()
    assert accounts_balance(live.stats())


@within(20)
def test_a_killed_worker_wakes_who_waits(engine):
    """Injected: the worker dies while one thread waits in get, one in put, one in a coroutine and a callback sleeps."""
    import asyncio

    gate, ends = Gate(), []
    live = open_stream(engine, policy="all", ring=1)

    def killer(run):
        gate(run)
        raise Killed("now")

    async def read():
        async for _ in live.results():
            raise AssertionError("nothing can come")

    def ending(name, wait):
        try:
            wait()
        except StreamError:
            ends.append(name)

    live.subscribe(lambda _: None)
    with tampered(engine, killer):
        live.put(simulated_frame(0))
        gate.entered.acquire(timeout=10)
        live.put(simulated_frame(1))
        waits = {
            "get": lambda: live.get(timeout=None),
            "put": lambda: live.put(simulated_frame(2), timeout=15),
            "results": lambda: asyncio.run(read()),
        }
        threads = [threading.Thread(target=ending, args=item) for item in waits.items()]
        for thread in threads:
            thread.start()
        while not (live._exchange.waiters._waiting and live._exchange._room._waiters):
            pass
        gate.open()
        for thread in threads:
            thread.join()
    assert sorted(ends) == ["get", "put", "results"]
    live.close()


# --- closing ---


@within(20)
def test_close_while_frames_wait(engine):
    gate = Gate()
    live = open_stream(engine, policy="all")
    with tampered(engine, gate):
        live.put(simulated_frame(0))
        gate.entered.acquire(timeout=10)
        for number in range(1, 4):
            live.put(simulated_frame(number))
        closing = threading.Thread(target=live.close)
        closing.start()
        while not live._exchange.closed:
            pass
        gate.open()
        closing.join()
    stats = live.stats()
    assert (stats.put, stats.delivered, stats.waiting, stats.dropped) == (4, 0, 0, {"closed": 4})


@within(20)
def test_a_closed_stream_says_so(engine):
    live = open_stream(engine)
    live.close()
    live.close()
    for use in (
        lambda: live.put(simulated_frame()),
        lambda: live.get(timeout=10),
        lambda: live.event("stage_moved"),
        lambda: live.update(steps=2),
        lambda: live.subscribe(print),
    ):
        with pytest.raises(StreamError, match="closed"):
            use()
    assert "closed" in repr(live)


@within(20)
def test_an_exception_inside_the_with_block_closes_and_goes_on(engine):
    threads = threading.active_count()
    with pytest.raises(ZeroDivisionError), open_stream(engine) as live:
        live.put(simulated_frame())
        _ = 1 / 0
    assert threading.active_count() == threads
    assert accounts_balance(live.stats())


@within(20)
def test_a_callback_may_close_the_stream(engine):
    live = open_stream(engine)
    live.subscribe(lambda _: live.close())
    live.put(simulated_frame())
    while threading.active_count() > 2 and live._thread.is_alive():
        pass
    with pytest.raises(StreamError, match="closed"):
        live.put(simulated_frame())


@pytest.mark.parametrize("moment", ["idle", "busy", "with a callback", "while keeping warm"])
def test_the_interpreter_exits_without_close(moment):
    code = f"""
        import warnings; warnings.filterwarnings("ignore", message=".*[Ss]wig.*", category=DeprecationWarning)
        import time
        import numpy as np
        import photonstep as ps
        moment = {moment!r}
        restorer = ps.load("live", precision="fp32", threads=1)
        frame = np.random.default_rng(0).poisson(20, (256, 256)).astype(np.uint16)
        keep_warm_ms = 1 if moment == "while keeping warm" else None
        # room for every frame: at the end of the program the worker is in the middle of the network
        live = restorer.stream(
            camera=ps.Camera(), policy="all", ring=100, buffers=110, warm_up=frame, keep_warm_ms=keep_warm_ms
        )
        if moment == "with a callback":
            live.subscribe(lambda result: time.sleep(0.01))
        for _ in range(100 if moment == "busy" else 3):
            live.put(frame)
        if moment != "busy":
            time.sleep(0.2)
        print("end of program", flush=True)
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "faulthandler", "-c", textwrap.dedent(code)],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "end of program\n", "")


# --- everything at once ---


@within(60)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("policy", ["latest", "all", "drop_oldest"])
def test_no_frame_is_lost_in_silence(engine, policy, seed):
    """Two cameras, two pollers, a callback, settings that change and a reader of stats, all at random moments."""
    rng = random.Random(seed)
    live = open_stream(engine, policy=policy, ring=3, buffers=3, on_drop=lambda d: dropped.append(d.frame_id))
    dropped, put, polled, called, unbalanced = [], [], [], [], []
    ended = threading.Event()
    naps = [rng.random() * 0.002 for _ in range(200)]

    def nap():
        ended.wait(naps[rng.randrange(200)])

    def camera(first):
        for number in range(40):
            shape = (64, 64) if rng.random() < 0.9 else (48, 64)
            with contextlib.suppress(StreamFull):
                put.append((live.put(simulated_frame(first + number, shape), timeout=0.01), first + number, shape))
            nap()

    def poll():
        held = []
        while True:
            try:
                result = live.get(timeout=0.005)
            except StreamError:
                return
            if result is not None:
                polled.append((result.frame_id, result.image.shape))
                held.append(result)
            if held and rng.random() < 0.5:
                held.pop().release()
            nap()

    def watch():
        while not ended.is_set():
            stats = live.stats()
            if not accounts_balance(stats):
                unbalanced.append(stats)
            with contextlib.suppress(StreamError):  # closed meanwhile
                live.update(steps=rng.choice([1, 2]))
            nap()

    def keep(result):
        called.append((result.frame_id, result.image.shape))

    live.subscribe(keep)
    cameras = [threading.Thread(target=camera, args=(first,)) for first in (0, 1000)]
    others = [threading.Thread(target=work) for work in (poll, poll, watch)]
    for thread in (*cameras, *others):
        thread.start()
    for thread in cameras:
        thread.join()
    live.drain(10)
    ended.set()
    live.close()
    for thread in others:
        thread.join()
    stats = live.stats()
    assert unbalanced == []
    assert (stats.put, stats.waiting) == (len(put), 0)
    assert accounts_balance(stats)
    assert sorted(frame_id for frame_id, _, _ in put) == list(range(len(put)))
    # every id was delivered or dropped, exactly once; nobody got one twice; the shape is that of what was put
    taken = {frame_id for frame_id, _ in (*polled, *called)}
    assert sorted([*taken, *dropped]) == list(range(len(put)))
    assert len({i for i, _ in polled}) == len(polled)
    assert [i for i, _ in called] == sorted({i for i, _ in called})
    shapes = {frame_id: shape for frame_id, _, shape in put}
    assert all(shape == shapes[frame_id] for frame_id, shape in (*polled, *called))
    assert stats.error_count == 0
