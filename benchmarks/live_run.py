"""One run of a live stream: a camera puts, a consumer takes and gives back at once, every result is written down."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from photonstep.runtime.live_result import LiveResult
from photonstep.runtime.stream import LiveStream
from photonstep.runtime.stream_stats import StreamStats

from .paced import DeliveryLog, PacedCamera

PERCENTILES = {"p50": 50, "p95": 95, "p99": 99, "p99.9": 99.9}
COLUMNS = ("frame_id", "capture_ns", "put_ns", "started_ns", "restored_ns", "delivered_ns", "steps")
POLL_S = 0.05
SILENCE_S = 60.0
PUT_TIMEOUT_S = 60.0
PROGRESS_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Source:
    """What the camera delivers: ``count`` frames, cycling through ``frames``, at ``fps`` or flat out (None)."""

    frames: Sequence[NDArray[np.uint16]]
    fps: float | None
    count: int


class ResultLog:
    """Times of up to ``size`` results, in memory that is allocated and touched before the run."""

    def __init__(self, size: int) -> None:
        self._table = np.full((size, len(COLUMNS)), -1, np.int64)
        self._network_ms = np.full(size, np.nan)
        self._plans: list[str] = []
        self._plan_of = np.full(size, -1, np.int16)
        self.count = 0
        self.flags: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()

    def add(self, result: LiveResult) -> None:
        """Write a result down; those beyond the size are counted in flags and errors only."""
        self.flags.update(result.flags)
        if result.error is not None:
            self.errors[result.error] += 1
        if self.count == len(self._table):
            return
        t = result.times
        self._table[self.count] = (
            result.frame_id, t.capture_ns, t.put_ns, t.started_ns, t.restored_ns, t.delivered_ns, result.steps
        )  # fmt: skip
        self._network_ms[self.count] = t.network_ms
        if result.plan not in self._plans:
            self._plans.append(result.plan)
        self._plan_of[self.count] = self._plans.index(result.plan)
        self.count += 1

    def column(self, name: str) -> NDArray[np.int64]:
        return self._table[: self.count, COLUMNS.index(name)]

    @property
    def network_ms(self) -> NDArray[np.float64]:
        return self._network_ms[: self.count]

    @property
    def plans(self) -> list[str]:
        return [self._plans[index] for index in self._plan_of[: self.count]]

    def between_ms(self, start: str, end: str) -> NDArray[np.float64]:
        return (self.column(end) - self.column(start)) / 1e6


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run left behind."""

    results: ResultLog
    camera: DeliveryLog
    stats: StreamStats


def watch(
    live: LiveStream,
    source: Source,
    *,
    keep: int | None = None,
    tick: Callable[[], None] = lambda: None,
    title: str = "",
    say: Callable[[str], None] = lambda message: None,
) -> Run:
    """Start a camera, take every result until all its frames are accounted for.

    Parameters
    ----------
    live : an open stream that nobody else puts into or takes from
    keep : results to write down; None keeps all
    tick : called between results, at least every `POLL_S` seconds
    title, say : progress, now and then

    Raises
    ------
    RuntimeError : neither result nor end for `SILENCE_S` seconds
    """
    waits = live.settings.policy == "all"

    def deliver(frame: NDArray[np.uint16], due_ns: int | None) -> int:
        # what is due is old already when the camera's thread wakes late: the frame's age counts from there
        return live.put(frame, capture_ns=due_ns, timeout=PUT_TIMEOUT_S if waits else 0.0)

    log = ResultLog(source.count if keep is None else keep)
    camera = PacedCamera(source.frames, deliver, fps=source.fps, count=source.count)
    camera.start()
    heard = told = time.monotonic()
    try:
        while True:
            was_running = camera.running
            result = live.get(timeout=POLL_S)
            now = time.monotonic()
            tick()
            if result is not None:
                log.add(result)
                result.release()
                del result
                heard = now
            elif not was_running and not live.stats().waiting:
                break
            elif now - heard > SILENCE_S:
                raise RuntimeError(f"no result for {SILENCE_S:g} s after {log.count}; {live.stats().as_dict()}")
            if now - told > PROGRESS_S:
                told = now
                say(f"{title}: {camera.delivered} of {source.count} frames")
    finally:
        camera.stop()
    camera.join(timeout=PUT_TIMEOUT_S + 1)
    return Run(results=log, camera=camera.log(), stats=live.stats())


def record(run: Run) -> dict[str, Any]:
    """A run as plain numbers: rates, latencies of every stage, the share outside the network, the accounts.

    ``total`` counts from when a frame was due (flat out: from put) to the consumer; ``compute`` is the work on it,
    preview included; ``outside_network_share`` is the part of that work that is not inside the network;
    ``network_share_of_wall`` is the time inside the network over the time that the run took, with hand-overs and waits.
    """
    log, stats = run.results, run.stats
    compute_ms = log.between_ms("started_ns", "restored_ns")
    restored_ns = log.column("restored_ns")
    stages = {
        "queue": log.between_ms("put_ns", "started_ns"), "compute": compute_ms, "network": log.network_ms,
        "deliver": log.between_ms("restored_ns", "delivered_ns"), "total": log.between_ms("capture_ns", "delivered_ns"),
    }  # fmt: skip
    span_s = (restored_ns[-1] - restored_ns[0]) / 1e9 if log.count > 1 else 0.0
    per_wall = float(log.network_ms[1:].sum()) / 1e3 / span_s if span_s > 0 else None
    return {
        "results": log.count,
        "fps": (log.count - 1) / span_s if span_s > 0 else None,
        "stages": {name: spread(values) for name, values in stages.items()},
        "outside_network_share": outside_share(compute_ms, log.network_ms),
        "network_share_of_wall": per_wall,
        "put": stats.put,
        "delivered": stats.delivered,
        "dropped": stats.dropped,
        "accounts_balance": stats.put == stats.delivered + sum(stats.dropped.values()) + stats.waiting,
        "late": stats.late,
        "plans": stats.plans,
        "flags": dict(log.flags),
        "errors": dict(log.errors.most_common(5)),
        "kept_warm": stats.kept_warm,
        "buffer_bytes": stats.buffer_bytes,
        "camera": run.camera.record(),
    }


def spread(values: NDArray[np.float64]) -> dict[str, float] | None:
    """p50, p95, p99, p99.9 and maximum; None of nothing."""
    if not len(values):
        return None
    found = np.percentile(values, list(PERCENTILES.values()))
    return {**dict(zip(PERCENTILES, map(float, found), strict=True)), "max": float(values.max())}


def outside_share(compute_ms: NDArray[np.float64], network_ms: NDArray[np.float64]) -> float | None:
    """Part of all the work that was not inside the network, 0 to 1."""
    total = float(compute_ms.sum())
    return 1.0 - float(network_ms.sum()) / total if total > 0 else None
