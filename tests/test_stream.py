"""The live engine from outside: what is put comes out in order and once, as `restore` gives it, or is accounted for."""

import asyncio
import gc
import threading

import numpy as np
import pytest
from fault_injection import Gate, accounts_balance, simulated_frame, tampered, within

import photonstep as ps
from photonstep import CameraError, PlanError, ShapeError, StreamError, StreamFull
from photonstep.runtime.stream_settings import SETTING_NAMES, Drop, HotOptions, StreamOptions
from photonstep.runtime.temporal import FusionSettings

CAMERA = ps.Camera(offset_adu=100.0, readout_noise_e=0.5)


@pytest.fixture(scope="module")
def engine():
    """The live bundle in float32 on one thread."""
    with ps.load("live", device="cpu", backend="openvino", precision="fp32", threads=1) as opened:
        yield opened


def open_stream(engine, **settings):
    return engine.stream(**{"camera": CAMERA, "keep_warm_ms": None, "warm_up": simulated_frame(), **settings})


def take(live):
    result = live.get(timeout=10)
    assert result is not None
    return result


# --- what comes out ---


@within(20)
def test_results_are_those_of_restore(engine):
    """Streamed = batch: the same pixels as restoring one after the other with one tracker."""
    tracker = engine.tracker()
    with open_stream(engine, policy="all") as live:
        for number in range(4):
            frame = simulated_frame(number)
            assert live.put(frame) == number
            with take(live) as result:
                wanted = engine.restore(frame, camera=CAMERA, tracker=tracker)
                assert result.frame_id == number
                assert np.array_equal(result.image, wanted.image)
                assert result.image.dtype == frame.dtype
                assert result.sigma == wanted.sigma
                assert (result.steps, result.plan, result.flags) == (1, "K=1", wanted.flags)
                assert result.error is None
                assert result.camera is CAMERA


@within(20)
def test_times_are_in_order_and_add_up(engine):
    with open_stream(engine) as live:
        taken_ns = live.clock_ns()
        live.put(simulated_frame(), capture_ns=taken_ns)
        times = take(live).times
    assert taken_ns == times.capture_ns
    assert times.capture_ns <= times.put_ns <= times.started_ns <= times.restored_ns <= times.delivered_ns
    assert 0 < times.network_ms < times.compute_ms < times.total_ms
    before_put_ms = (times.put_ns - times.capture_ns) / 1e6
    assert times.total_ms == pytest.approx(before_put_ms + times.queue_ms + times.compute_ms + times.deliver_ms)


@within(20)
def test_raw_data_is_never_modified(engine):
    frame = simulated_frame()
    kept = frame.copy()
    frame.flags.writeable = False
    with open_stream(engine) as live:
        live.put(frame)
        take(live)
    assert np.array_equal(frame, kept)


@within(20)
def test_the_caller_may_use_its_array_again_at_once(engine):
    gate = Gate()
    frame = simulated_frame()
    wanted = engine.restore(frame, camera=CAMERA).image
    with open_stream(engine) as live, tampered(engine, gate):
        buffer = frame.copy()
        live.put(buffer)
        buffer[...] = 0
        gate.open()
        assert np.array_equal(take(live).image, wanted)


@within(20)
def test_nothing_comes_of_nothing(engine):
    with open_stream(engine) as live:
        assert live.get() is None
        assert live.get(timeout=0.01) is None


@within(20)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_every_frame_dtype(engine, dtype):
    frame = simulated_frame(dtype=dtype)
    with open_stream(engine, warm_up=None) as live:
        live.put(frame)
        result = take(live)
    assert result.image.dtype == frame.dtype
    assert np.array_equal(result.image, engine.restore(frame, camera=CAMERA).image)


@within(30)
def test_shape_and_dtype_may_change_in_the_stream(engine):
    shapes = [((64, 64), "uint16"), ((48, 80), "uint16"), ((48, 80), "uint8"), ((64, 64), "uint16")]
    with open_stream(engine, policy="all", warm_up=None, preview=None) as live:
        for number, (shape, dtype) in enumerate(shapes):
            live.put(simulated_frame(number, shape, dtype))
        results = [take(live) for _ in shapes]
        assert [(r.image.shape, r.image.dtype.name) for r in results] == shapes
        assert live.stats().reallocations == 3


@within(20)
def test_a_camera_is_estimated_once(engine, confocal):
    with open_stream(engine, camera=None, warm_up=None, policy="all") as live:
        for frame in (confocal.raw, confocal.raw[::-1]):
            live.put(frame)
        first, second = take(live), take(live)
    assert first.camera is second.camera
    assert first.camera.gain_e_per_adu == ps.Camera.estimate(confocal.raw).gain_e_per_adu


# --- policies ---


def fill_behind_the_first(live, gate, count):
    """Frame 0 in work and held there, ``count`` more put."""
    live.put(simulated_frame(0))
    gate.entered.acquire(timeout=10)
    for number in range(1, count + 1):
        live.put(simulated_frame(number))


@within(20)
def test_latest_restores_the_newest_and_counts_the_others(engine):
    gate, dropped = Gate(), []
    with open_stream(engine, on_drop=dropped.append) as live, tampered(engine, gate):
        fill_behind_the_first(live, gate, 3)
        assert live.stats().waiting == 2
        gate.let_through()
        assert take(live).frame_id == 0
        gate.open()
        assert take(live).frame_id == 3
        stats = live.stats()
        assert (stats.put, stats.delivered, stats.dropped) == (4, 2, {"replaced": 2})
    assert dropped == [Drop(frame_id=1, reason="replaced"), Drop(frame_id=2, reason="replaced")]


@within(20)
def test_latest_replaces_a_result_that_nobody_took(engine):
    with open_stream(engine) as live:
        for number in range(3):
            live.put(simulated_frame(number))
            assert live.drain(10)
        assert take(live).frame_id == 2
        assert live.stats().dropped == {"undelivered": 2}


@within(20)
def test_all_refuses_at_once_when_the_ring_is_full(engine):
    gate = Gate()
    with open_stream(engine, policy="all", ring=2) as live, tampered(engine, gate):
        fill_behind_the_first(live, gate, 2)
        with pytest.raises(StreamFull, match="2 frames wait"):
            live.put(simulated_frame(3))
        with pytest.raises(StreamFull):
            live.put(simulated_frame(3), timeout=0.02)
        gate.open()
        assert live.put(simulated_frame(3), timeout=10) == 3  # no id was used up
        assert [take(live).frame_id for _ in range(4)] == [0, 1, 2, 3]
        assert live.stats().dropped == {}


@within(20)
def test_all_holds_back_instead_of_losing_when_nobody_takes_results(engine):
    with open_stream(engine, policy="all", ring=2, buffers=2) as live:
        put = 0
        with pytest.raises(StreamFull):
            while True:
                live.put(simulated_frame(put), timeout=0.3)
                put += 1
        assert put == 2 + 1 + 2  # undelivered, in work, waiting
        ids = []
        for _ in range(put):
            with take(live) as result:
                ids.append(result.frame_id)
        assert ids == list(range(put))
        assert live.stats().dropped == {}


@within(20)
def test_all_goes_on_when_forgotten_results_are_collected(engine):
    with open_stream(engine, policy="all", buffers=2) as live:
        for number in range(6):
            live.put(simulated_frame(number))
        ids = []
        for _ in range(6):
            result = take(live)
            ids.append(result.frame_id)
            del result
            gc.collect()
        assert ids == list(range(6))


@within(20)
def test_drop_oldest_keeps_the_newest_frames(engine):
    gate = Gate()
    with open_stream(engine, policy="drop_oldest", ring=2) as live, tampered(engine, gate):
        fill_behind_the_first(live, gate, 5)
        gate.open()
        assert [take(live).frame_id for _ in range(3)] == [0, 4, 5]
        assert live.stats().dropped == {"ring_full": 3}


# --- leases ---


@within(20)
@pytest.mark.parametrize("policy", ["latest", "drop_oldest"])
def test_a_consumer_that_holds_every_buffer_stalls_nothing(engine, policy):
    with open_stream(engine, buffers=2, policy=policy) as live:
        held = []
        for number in range(2):
            live.put(simulated_frame(number))
            held.append(take(live))
        kept = [r.image.copy() for r in held]
        for number in range(2, 6):
            live.put(simulated_frame(number))
            assert live.drain(10)
        assert live.stats().dropped == {"no_buffer": 4}
        assert all(np.array_equal(r.image, k) for r, k in zip(held, kept, strict=True))
        held[0].release()
        live.put(simulated_frame(6))
        assert take(live).frame_id == 6


@within(20)
def test_an_image_stays_when_only_a_view_of_it_is_kept(engine):
    with open_stream(engine, buffers=2) as live:
        live.put(simulated_frame(0))
        view = take(live).image[8:, 8:]
        kept = view.copy()
        for number in range(1, 6):
            live.put(simulated_frame(number))
            take(live)
        assert np.array_equal(view, kept)


@within(20)
def test_a_released_result_says_so(engine):
    with open_stream(engine) as live:
        live.put(simulated_frame())
        with take(live) as result:
            assert result.image.shape == (64, 64)
        for name in ("image", "preview_u8"):
            with pytest.raises(StreamError, match="frame 0 was released"):
                getattr(result, name)
        result.release()


@within(20)
def test_held_results_outlive_the_stream(engine):
    with open_stream(engine) as live:
        live.put(simulated_frame())
        result = take(live)
        kept = result.image.copy()
    assert np.array_equal(result.image, kept)
    result.release()


# --- preview ---


@within(20)
def test_preview_is_8_bit_and_uses_its_range(engine):
    with open_stream(engine) as live:
        live.put(simulated_frame())
        preview = take(live).preview_u8
    assert preview.dtype == np.uint8
    assert preview.shape == (64, 64)
    assert preview.min() == 0
    assert preview.max() == 255


@within(20)
def test_preview_limits_can_be_fixed_or_off(engine):
    with open_stream(engine, preview=(100, 200), policy="all") as live:
        live.put(simulated_frame())
        result = take(live)
        wanted = np.clip((result.image.astype(float) - 100) / 100 * 255, 0, 255)
        assert np.abs(result.preview_u8 - wanted).max() <= 0.5 + 1e-3
        live.update(preview=None)
        live.put(simulated_frame())
        assert take(live).preview_u8 is None


@within(20)
def test_preview_does_not_flicker_and_follows_a_new_scene(engine):
    from photonstep.runtime.preview_maker import PreviewMaker

    maker, out = PreviewMaker(), np.empty((64, 64), np.uint8)
    scene = np.linspace(100, 1100, 4096, dtype=np.float32).reshape(64, 64)
    maker.draw(scene, "auto", out)
    still = int(out[32, 32])
    brighter = scene.copy()
    brighter[:2] += 200  # a few bright pixels: alone, they would move the limits by a fifth
    maker.draw(brighter, "auto", out)
    assert abs(int(out[32, 32]) - still) <= 5
    maker.draw(scene * 3, "auto", out)
    assert abs(int(out[32, 32]) - still) <= 2  # another scene: its own limits at once
    maker.draw(np.full((64, 64), np.nan, np.float32), "auto", out)
    assert out.max() == 0


# --- settings ---


@within(20)
def test_settings_change_between_two_frames(engine):
    gate = Gate()
    with open_stream(engine, policy="all") as live, tampered(engine, gate):
        fill_behind_the_first(live, gate, 1)
        other = ps.Camera(offset_adu=90.0)
        live.update(steps=2, camera=other)
        live.put(simulated_frame(2))
        gate.open()
        results = [take(live) for _ in range(3)]
        assert [r.plan for r in results] == ["K=1", "K=1", "K=2"]  # frames that waited keep their settings
        assert [r.camera for r in results] == [CAMERA, CAMERA, other]
        assert live.stats().dropped == {}


@within(20)
@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"steps": 0}, PlanError, "steps is 0"),
        ({"deadline_ms": -1}, StreamError, "deadline_ms is -1"),
        ({"camera": 3}, CameraError, "camera is a int"),
        ({"preview": (5, 5)}, StreamError, "low one below"),
        ({"temporal": "yes"}, StreamError, "temporal is 'yes'"),
        ({"policy": "all"}, StreamError, "policy cannot change"),
        ({"nonsense": 1}, StreamError, "no setting 'nonsense'; expected some of camera"),
        ({"deadline": 40}, StreamError, r"no setting 'deadline'; did you mean deadline_ms\?"),
    ],
)
def test_a_wrong_update_changes_nothing(engine, change, error, told):
    with open_stream(engine) as live:
        before = live.settings
        with pytest.raises(error, match=told):
            live.update(**{"preview": None, **change})
        assert live.settings is before


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"policy": "newest"}, "policy is 'newest'"),
        ({"deadline": 40}, r"no setting 'deadline'; did you mean deadline_ms\?"),
        ({"ring": 0}, "ring is 0"),
        ({"buffers": 1}, "buffers is 1"),
        ({"deadline_ms": float("inf")}, "deadline_ms is inf"),
        ({"keep_warm_ms": True}, "keep_warm_ms is True"),
        ({"fallback": "live"}, "pass photonstep.load"),
        ({"preview": "bright"}, "preview is 'bright'"),
        ({"on_drop": 1}, "on_drop is a int"),
    ],
)
def test_wrong_settings_are_refused_before_anything_runs(engine, wrong, told):
    threads = threading.active_count()
    with pytest.raises(StreamError, match=told):
        open_stream(engine, **wrong)
    assert threading.active_count() == threads


def test_a_wrong_warm_up_frame_is_refused(engine):
    with pytest.raises(ShapeError, match="warm_up: shape is"):
        open_stream(engine, warm_up=np.zeros((2, 64, 64), np.uint16))
    with pytest.raises(ShapeError, match="warm_up: dtype is float64"):
        open_stream(engine, warm_up=np.zeros((64, 64)))
    with pytest.raises(ShapeError, match="map"):
        open_stream(engine, camera=ps.Camera(offset_adu=np.zeros((32, 32))))


def test_keywords_are_the_settings():
    assert set(StreamOptions.__annotations__) == set(SETTING_NAMES)
    assert set(HotOptions.__annotations__) < set(SETTING_NAMES)


@within(20)
def test_warm_up_allocates_and_compiles_before_the_first_frame(engine):
    with open_stream(engine, policy="all") as live:
        before = live.stats().buffer_bytes
        assert before > 0
        with tampered(engine, lambda _: None) as session:
            live.put(simulated_frame())
            take(live)
            assert session.runs == 1  # the restoration and nothing else
        assert live.stats().buffer_bytes == before
        assert live.stats().reallocations == 0


@within(20)
def test_idle_streams_are_kept_warm(engine):
    with tampered(engine, lambda _: None) as session, open_stream(engine, keep_warm_ms=5) as live:
        runs = session.runs
        while live.stats().kept_warm < 3:
            pass
        assert session.runs >= runs + 3
        live.put(simulated_frame())
        result = take(live)
        stats = live.stats()
    assert (stats.put, stats.delivered) == (1, 1)  # what keeps warm is no frame
    assert np.array_equal(result.image, engine.restore(simulated_frame(), camera=CAMERA).image)


@within(20)
def test_freezing_garbage_is_a_choice(engine):
    gc.unfreeze()
    with open_stream(engine) as live:
        live.put(simulated_frame())
        take(live)
    assert gc.get_freeze_count() == 0
    with open_stream(engine, freeze_gc=True):
        assert gc.get_freeze_count() > 0
    gc.unfreeze()
    with open_stream(engine, freeze_gc=True, warm_up=None) as live:
        live.put(simulated_frame())
        take(live)
        live.close()
    assert gc.get_freeze_count() > 0
    gc.unfreeze()


# --- events ---


class RecordingFusion:
    """Fuses nothing, and notes what it is asked to do: a number of frames after each reset."""

    def __init__(self, settings):
        self.settings = settings
        self.frames = [0]

    def update(self, z, camera, missing=None):
        self.frames[-1] += 1
        return z, 1.0

    def reset(self):
        if self.frames[-1]:
            self.frames.append(0)


@pytest.fixture
def fusions(monkeypatch):
    made = []

    def fusion(settings):
        made.append(RecordingFusion(settings))
        return made[-1]

    monkeypatch.setattr("photonstep.runtime.stream_restore.TemporalFusion", fusion)
    return made


@within(20)
def test_a_still_scene_gets_less_noise_from_frame_to_frame(engine):
    """Fused as `restore` fuses with a fusion of its own; the noise level falls to that of four frames."""
    from photonstep.runtime.temporal import TemporalFusion

    tracker, fusion = engine.tracker(), TemporalFusion()
    sigmas = []
    with open_stream(engine, temporal=True, policy="all") as live:
        for number in range(8):
            live.put(simulated_frame(number))
            with take(live) as result:
                wanted = engine.restore(simulated_frame(number), camera=CAMERA, tracker=tracker, fusion=fusion)
                assert np.array_equal(result.image, wanted.image)
                sigmas.append(result.sigma)
    assert 0.45 < sigmas[-1] / sigmas[0] < 0.65


@within(20)
def test_temporal_fusion_sees_every_frame_and_starts_anew_after_an_event(engine, fusions):
    with open_stream(engine, temporal=True, policy="all") as live:
        for number in range(5):
            if number == 3:
                live.event("stage_moved")
            live.put(simulated_frame(number))
        for _ in range(5):
            take(live).release()
    assert [f.frames for f in fusions] == [[3, 2]]


@within(20)
def test_an_event_is_not_lost_with_the_frame_that_followed_it(engine, fusions):
    gate = Gate()
    with open_stream(engine, temporal=True) as live, tampered(engine, gate):
        live.put(simulated_frame(0))
        gate.entered.acquire(timeout=10)
        live.event("focus_moved")
        live.put(simulated_frame(1))
        live.put(simulated_frame(2))  # replaces 1
        gate.let_through()
        take(live)
        gate.open()
        assert take(live).frame_id == 2
    assert [f.frames for f in fusions] == [[1, 1]]


@within(20)
def test_fusion_ends_and_starts_with_its_setting_and_its_camera(engine, fusions):
    with open_stream(engine, temporal=True, policy="all") as live:
        other = FusionSettings(n_max=8)
        changes = ({}, {"temporal": False}, {"temporal": True}, {"camera": ps.Camera()}, {"temporal": other})
        for number, change in enumerate(changes):
            live.update(**change)
            live.put(simulated_frame(number))
            take(live)
    assert [f.frames for f in fusions] == [[1], [1, 1], [1]]
    assert fusions[-1].settings is other


def test_unknown_events_are_refused(engine):
    with open_stream(engine) as live, pytest.raises(StreamError, match="choose one of stage_moved"):
        live.event("lunch")


# --- callbacks and coroutines ---


@within(20)
def test_every_subscriber_gets_every_result_in_order(engine):
    seen = {"a": [], "b": []}
    with open_stream(engine, policy="all", ring=16) as live:
        subscriptions = [live.subscribe(lambda r, n=name: seen[n].append(r.frame_id)) for name in seen]
        for number in range(12):
            live.put(simulated_frame(number), timeout=10)
        assert live.drain(10)
        assert seen == {"a": list(range(12)), "b": list(range(12))}
        stats = live.stats()
        assert (stats.delivered, stats.dropped) == (12, {})  # two consumers, one delivery
        subscriptions[0].stop()
        live.put(simulated_frame(12))
        assert live.drain(10)
    assert seen["b"][-1] == 12
    assert seen["a"][-1] == 11


@within(20)
def test_a_slow_callback_holds_up_nobody_else(engine):
    stuck, seen = threading.Event(), []
    with open_stream(engine) as live:
        live.subscribe(lambda _: stuck.wait(15))
        live.subscribe(lambda r: seen.append(r.frame_id))
        for number in range(6):
            live.put(simulated_frame(number))
            while not seen or seen[-1] != number:
                pass
        stuck.set()
        assert live.stats().delivered == 6
    assert seen == list(range(6))


@within(20)
def test_a_callback_may_keep_its_result(engine):
    kept = []
    with open_stream(engine, policy="all", buffers=8) as live:
        live.subscribe(lambda r: kept.append((r, r.image.copy())))
        for number in range(8):
            live.put(simulated_frame(number), timeout=10)
        assert live.drain(10)
    assert all(np.array_equal(result.image, copy) for result, copy in kept)
    assert len(kept) == 8


@within(20)
def test_an_idle_subscriber_holds_no_buffer(engine):
    with open_stream(engine, policy="all") as live:
        live.subscribe(lambda _: None)
        live.put(simulated_frame())
        assert live.drain(10)
        pool = live._exchange._pool
        with live._exchange.lock:
            assert pool.free == pool.count == 6


@within(20)
def test_polling_beside_a_subscriber(engine):
    seen = []
    with open_stream(engine, policy="all") as live:
        live.subscribe(lambda r: seen.append(r.frame_id))
        assert live.get() is None  # from here on results are kept for `get` too
        live.put(simulated_frame())
        assert take(live).frame_id == 0
        assert live.drain(10)
    assert seen == [0]


@within(20)
def test_coroutines_get_results_without_a_thread(engine):
    async def consume(live):
        assert await live.aget(timeout=0.01) is None
        live.put(simulated_frame(0))
        first = await live.aget(timeout=10)
        ids = [first.frame_id]
        for number in range(1, 4):
            live.put(simulated_frame(number))
        async for result in live.results():
            ids.append(result.frame_id)
            result.release()
            if len(ids) == 4:
                live.close()
        return ids

    with open_stream(engine, policy="all") as live:
        assert asyncio.run(consume(live)) == [0, 1, 2, 3]


# --- several cameras ---


class Overlaps:
    """``before`` for `tampered`: notes runs that begin while another one is under way."""

    def __init__(self):
        self.seen, self._inside = 0, 0

    def look(self, _):
        self._inside += 1
        self.seen += self._inside > 1
        threading.Event().wait(0.002)  # whoever does not wait for its turn comes in here
        self._inside -= 1


@within(30)
def test_plain_calls_and_a_stream_share_a_restorer(engine):
    overlaps, frame = Overlaps(), simulated_frame()
    wanted = engine.restore(frame, camera=CAMERA).image
    with open_stream(engine, policy="all", ring=20, buffers=20) as live, tampered(engine, overlaps.look):
        for _ in range(15):
            live.put(frame)
        assert all(np.array_equal(engine.restore(frame, camera=CAMERA).image, wanted) for _ in range(15))
        assert live.drain(10)
    assert not overlaps.seen


@within(30)
def test_two_cameras_share_a_restorer(engine):
    other = ps.Camera(offset_adu=90.0, gain_e_per_adu=0.5)
    count = 15
    wanted = {}
    for camera, first in ((CAMERA, 0), (other, 100)):
        tracker = engine.tracker()
        wanted[first] = [
            engine.restore(simulated_frame(first + n), camera=camera, tracker=tracker).image for n in range(count)
        ]
    got = {0: [], 100: []}

    def drive(camera, first):
        with open_stream(engine, camera=camera, policy="all") as live:
            for number in range(count):
                live.put(simulated_frame(first + number), timeout=10)
                with take(live) as result:
                    got[first].append(result.image.copy())

    overlaps = Overlaps()
    threads = [threading.Thread(target=drive, args=a) for a in ((CAMERA, 0), (other, 100))]
    with tampered(engine, overlaps.look):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not overlaps.seen
    for first in wanted:
        assert len(got[first]) == count
        assert all(np.array_equal(a, b) for a, b in zip(got[first], wanted[first], strict=True))


# --- statistics ---


@within(20)
def test_stats_say_where_every_frame_went(engine):
    import json

    with open_stream(engine, policy="all") as live:
        for number in range(5):
            live.put(simulated_frame(number))
        for _ in range(3):
            take(live).release()
        assert live.drain(10)
        stats = live.stats()
        assert (stats.put, stats.delivered, stats.waiting, stats.dropped) == (5, 3, 2, {})
        assert stats.plans == {"K=1": 5}
        assert stats.stages["compute"].count == 5
        assert stats.stages["total"].count == 3
        assert stats.stages["network"].p50_ms <= stats.stages["compute"].p50_ms <= stats.stages["compute"].max_ms
        assert stats.fps > 0
        assert json.loads(json.dumps(stats.as_dict()))["stages"]["queue"]["count"] == 5
    closed = live.stats()
    assert closed.dropped == {"closed": 2}
    assert accounts_balance(closed)
