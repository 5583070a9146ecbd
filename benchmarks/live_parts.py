"""The parts of the live benchmark: each runs a stream in one situation and returns plain numbers.

A part is called in a process of its own, where what an earlier part left in memory cannot be seen.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

import photonstep as ps
from photonstep.kernels import native
from photonstep.runtime.restore import Restorer
from photonstep.runtime.stream import LiveStream
from photonstep.runtime.stream_settings import StreamOptions

from . import cores
from .live_frames import CAMERA, simulated_frames
from .live_run import Run, Source, record, spread, watch
from .live_settings import LiveSettings
from .staleness import staleness
from .trend import MemoryLog, memory_record
from .turns import summary, take_turns

FRAMES_KEPT = 16
RING = 2  # flat out: what waits longer says nothing about the engine
GET_TIMEOUT_S = 60.0


class InProcess(Protocol):
    """`cores.isolated`, or a stand-in for it."""

    def __call__(self, function: Callable[..., Any], *arguments: Any, cpus: Sequence[int] | None = None) -> Any: ...


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def paced(settings: LiveSettings, run: InProcess) -> dict[str, Any]:
    """A camera at the usual rate."""
    return dict(run(paced_case, settings))


def flatout(settings: LiveSettings, run: InProcess) -> dict[str, Any]:
    """Every frame of a camera that waits for nothing but room, with the preview and without."""
    return {"preview": run(flatout_case, settings, True), "no_preview": run(flatout_case, settings, False)}


def stale(settings: LiveSettings, run: InProcess) -> dict[str, Any]:
    """A camera much faster than the restoration, policy ``latest``: is what is shown the newest there was?"""
    return dict(run(stale_case, settings))


def jitter(settings: LiveSettings, run: InProcess) -> dict[str, Any]:
    """The whole process on one core, its network on one thread, the other core idle; and both cores."""
    first = cores.available()[:1]
    return {
        "one_core": run(paced_case, replace(settings, threads=1), cpus=first),
        "all_cores": run(paced_case, settings),
    }


def pause(settings: LiveSettings, run: InProcess) -> dict[str, Any]:
    """The first frame after a pause, with keeping warm and without."""
    return {"kept_warm": run(pause_case, settings, True), "left_alone": run(pause_case, settings, False)}


def memory(settings: LiveSettings, run: InProcess) -> dict[str, Any]:
    """Minutes of frames."""
    return dict(run(memory_case, settings))


def cost(settings: LiveSettings, run: InProcess) -> dict[str, Any]:
    """What the preview and temporal fusion take."""
    return dict(run(cost_case, settings))


def cameras(settings: LiveSettings, run: InProcess) -> dict[str, Any]:
    """Two cameras at once: one restorer for both, and a restorer each."""
    return {"shared": run(cameras_case, settings, True), "apart": run(cameras_case, settings, False)}


def paced_case(settings: LiveSettings) -> dict[str, Any]:
    frames = simulated_frames(FRAMES_KEPT, settings.side_px, drift_px=1)
    source = Source(frames=frames, fps=settings.fps, count=settings.frames)
    with loaded(settings) as restorer, _opened(restorer, settings, warm_up=frames[0]) as live:
        done = watch(live, source, title="paced", say=say)
        return _facts(restorer) | record(done) | {"staleness": _staleness(done)}


def flatout_case(settings: LiveSettings, preview: bool) -> dict[str, Any]:
    frames = simulated_frames(FRAMES_KEPT, settings.side_px, drift_px=1)
    source = Source(frames=frames, fps=None, count=settings.frames)
    options: StreamOptions = {"policy": "all", "ring": RING, "preview": "auto" if preview else None}
    with loaded(settings) as restorer, _opened(restorer, settings, warm_up=frames[0], **options) as live:
        return _facts(restorer) | record(watch(live, source, title="flat out", say=say))


def stale_case(settings: LiveSettings) -> dict[str, Any]:
    frames = simulated_frames(FRAMES_KEPT, settings.side_px, drift_px=1)
    source = Source(frames=frames, fps=settings.fast_fps, count=settings.frames)
    with loaded(settings) as restorer, _opened(restorer, settings, warm_up=frames[0]) as live:
        done = watch(live, source, title="stale", say=say)
        return _facts(restorer) | record(done) | {"staleness": _staleness(done)}


def pause_case(settings: LiveSettings, keep_warm: bool) -> dict[str, Any]:
    frames = simulated_frames(FRAMES_KEPT, settings.side_px, drift_px=1)
    source = Source(frames=frames, fps=settings.fps, count=settings.before_pause)
    first_ms: list[float] = []
    options: StreamOptions = {} if keep_warm else {"keep_warm_ms": None}
    running: list[np.ndarray[Any, Any]] = []
    with loaded(settings) as restorer, _opened(restorer, settings, warm_up=frames[0], **options) as live:
        for number in range(settings.pauses):
            running.append(watch(live, source).results.between_ms("capture_ns", "delivered_ns"))
            say(f"pause {number + 1} of {settings.pauses}, {settings.pause_s:g} s")
            time.sleep(settings.pause_s)
            live.put(frames[0], capture_ns=time.perf_counter_ns())
            with _taken(live) as result:
                first_ms.append(result.times.total_ms)
        kept_warm = live.stats().kept_warm
        facts = _facts(restorer)
    return facts | {
        "pause_s": settings.pause_s, "first_ms": first_ms, "worst_first_ms": max(first_ms),
        "running_ms": spread(np.concatenate(running)), "kept_warm": kept_warm,
    }  # fmt: skip


def memory_case(settings: LiveSettings) -> dict[str, Any]:
    frames = simulated_frames(FRAMES_KEPT, settings.side_px, drift_px=1)
    count = max(2, round(settings.minutes * 60 * settings.fps))
    memory_log = MemoryLog(every_s=settings.sample_s, longest_s=settings.minutes * 60 + 60)
    with loaded(settings) as restorer, _opened(restorer, settings, warm_up=frames[0]) as live:
        memory_log.start()
        try:
            done = watch(
                live, Source(frames=frames, fps=settings.fps, count=count), keep=1, title="memory", say=say
            )  # the stream's own statistics are enough: a list of results would grow
        finally:
            seconds, rss_bytes = memory_log.stop()
        stats = done.stats
        facts = _facts(restorer)
    accounts = {"put": stats.put, "delivered": stats.delivered, "dropped": stats.dropped}
    return facts | accounts | {"buffer_bytes": stats.buffer_bytes, **memory_record(seconds, rss_bytes)}


def cost_case(settings: LiveSettings) -> dict[str, Any]:
    """Streams that differ in one setting take turns, frame by frame, on one restorer: put to result, ms."""
    frames = simulated_frames(FRAMES_KEPT, settings.side_px)  # a scene that stands still: fusion does all its work
    variants: dict[str, StreamOptions] = {
        "plain": {"preview": None}, "preview": {}, "temporal": {"preview": None, "temporal": True},
    }  # fmt: skip
    found: dict[str, Any] = {"not_measured": {}}
    with loaded(settings) as restorer:
        streams: dict[str, LiveStream] = {}
        try:
            for name, options in variants.items():
                live = _opened(restorer, settings, warm_up=frames[0], policy="all", keep_warm_ms=None, **options)
                streams[name] = live
                for frame in frames[:4]:
                    live.put(frame)
                    with _taken(live) as result:
                        if result.error is not None:
                            found["not_measured"][name] = result.error
            usable = {name: live for name, live in streams.items() if name not in found["not_measured"]}

            def turn(live: LiveStream) -> Callable[[int], object]:
                def one(index: int) -> None:
                    live.put(frames[index % len(frames)])
                    _taken(live).release()

                return one

            times = take_turns({name: turn(live) for name, live in usable.items()}, rounds=settings.turns)
        finally:
            for live in streams.values():
                live.close()
        found |= _facts(restorer)
    plain = np.array(times["plain"])
    found["variants"] = {
        name: summary(taken) | {"above_plain_ms": float(np.median(np.array(taken) - plain))}
        for name, taken in times.items()
    }
    return found


def cameras_case(settings: LiveSettings, shared: bool) -> dict[str, Any]:
    """Two streams with a camera each; apart, each network has half of the threads."""
    frames = [simulated_frames(FRAMES_KEPT, settings.side_px, drift_px=1, seed=seed) for seed in range(2)]
    each = settings if shared else replace(settings, threads=max(1, settings.threads // 2))
    restorers = [loaded(each) for _ in range(1 if shared else 2)]
    done: dict[int, Run] = {}
    streams = [_opened(restorers[0 if shared else index], settings, warm_up=frames[index][0]) for index in range(2)]

    def one(index: int) -> None:
        source = Source(frames=frames[index], fps=settings.fps, count=settings.frames)
        done[index] = watch(streams[index], source, title=f"camera {index}", say=say)

    threads = [threading.Thread(target=one, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for opened in (*streams, *restorers):
        opened.close()
    if len(done) < 2:
        raise RuntimeError("a camera's run failed; its traceback is above")
    return _facts(restorers[0]) | {"threads": each.threads, "cameras": [record(done[index]) for index in range(2)]}


def loaded(settings: LiveSettings, bundle: str | None = None) -> Restorer:
    """The settings' bundle, or another one, opened as they say."""
    return ps.load(bundle or settings.bundle, device="cpu", precision=settings.precision, threads=settings.threads)


def chosen(settings: LiveSettings) -> dict[str, Any]:
    """What ``precision="auto"`` takes here, and why: chosen once, so that all parts measure the same network."""
    with loaded(settings) as restorer:
        return _facts(restorer) | {"reason": restorer.choice.reason}


def _opened(restorer: Restorer, settings: LiveSettings, **options: Any) -> LiveStream:
    return restorer.stream(camera=CAMERA, freeze_gc=settings.freeze_gc, **options)


def _taken(live: LiveStream) -> Any:
    result = live.get(timeout=GET_TIMEOUT_S)
    if result is None:
        raise RuntimeError(f"no result in {GET_TIMEOUT_S:g} s; {live.stats().as_dict()}")
    return result


def _staleness(done: Run) -> dict[str, Any]:
    log = done.results
    return staleness(
        log.column("frame_id"), log.column("started_ns"), log.column("restored_ns"), log.column("delivered_ns"),
        done.camera,
    )  # fmt: skip


def _facts(restorer: Restorer) -> dict[str, Any]:
    return {
        "bundle": restorer.bundle.manifest.name, "sha256": restorer.bundle.sha256, "backend": restorer.backend_name,
        "precision": restorer.precision, "network_threads": restorer.threads, "kernels": native.describe(),
        "cpus": cores.available(),
    }  # fmt: skip
