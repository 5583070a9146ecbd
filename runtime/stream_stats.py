"""What a live stream has done so far: latencies per stage, and where every frame went."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import asdict, dataclass
from typing import Any, Final

from .latency_histogram import LatencyHistogram
from .live_result import FrameTimes

STAGES: Final = ("queue", "compute", "network", "deliver", "total")
DROP_REASONS: Final = {
    "replaced": "a newer frame came while it waited (latest)",
    "ring_full": "the ring was full and it was the oldest (drop_oldest)",
    "undelivered": "it was restored, but a newer result came before any consumer took it",
    "no_buffer": "consumers held every output buffer",
    "closed": "the stream was closed first",
    "engine_failed": "the stream itself failed",
}
ERRORS_KEPT: Final = 20
RATE_WINDOW: Final = 64


@dataclass(frozen=True, kw_only=True)
class StageTimes:
    """Latency of one stage, ms; NaN before the first frame."""

    count: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float

    @classmethod
    def of(cls, histogram: LatencyHistogram) -> StageTimes:
        p50, p95, p99, p999 = (histogram.percentile_ms(p) for p in (50, 95, 99, 99.9))
        return cls(count=histogram.count, p50_ms=p50, p95_ms=p95, p99_ms=p99, p999_ms=p999, max_ms=histogram.max_ms)


@dataclass(frozen=True, kw_only=True)
class StreamStats:
    """A snapshot. Always ``put == delivered + sum(dropped.values()) + waiting``.

    ``waiting`` counts frames in the ring, in work and undelivered. ``fps`` is the rate of the last results. ``plans``
    says how often each plan was run; ``errors`` holds the last messages, ``error_count`` all of them. ``reallocations``
    counts changes of frame shape or dtype. ``buffer_bytes`` is the memory of ring and output buffers. ``stages``:
    queue (put to start), compute (start to result), network (part of compute; without raw frames), deliver (result to
    consumer), total (capture to consumer).
    """

    put: int
    delivered: int
    dropped: dict[str, int]
    waiting: int
    late: int
    fps: float
    stages: dict[str, StageTimes]
    plans: dict[str, int]
    errors: tuple[str, ...]
    error_count: int
    reallocations: int
    kept_warm: int
    buffer_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dictionaries, for JSON."""
        return {**asdict(self), "errors": list(self.errors)}


class Tally:
    """The counters behind the snapshots. Not safe between threads: the exchange guards it."""

    def __init__(self) -> None:
        self.put = self.delivered = self.late = self.error_count = self.kept_warm = 0
        self.dropped: Counter[str] = Counter()
        self.plans: Counter[str] = Counter()
        self.errors: deque[str] = deque(maxlen=ERRORS_KEPT)
        self._histograms = {stage: LatencyHistogram() for stage in STAGES}
        self._restored_ns: deque[int] = deque(maxlen=RATE_WINDOW)

    def restored(self, plan: str, times: FrameTimes, *, late: bool) -> None:
        """Count a result."""
        self.plans[plan] += 1
        self.late += late
        self._restored_ns.append(times.restored_ns)
        self._histograms["queue"].record(times.queue_ms)
        self._histograms["compute"].record(times.compute_ms)
        if times.network_ms:  # a raw frame has not been there
            self._histograms["network"].record(times.network_ms)

    def taken(self, times: FrameTimes) -> None:
        """Count a result's first consumer."""
        self.delivered += 1
        self._histograms["deliver"].record(times.deliver_ms)
        self._histograms["total"].record(times.total_ms)

    def error(self, message: str) -> None:
        self.error_count += 1
        self.errors.append(message)

    def snapshot(self, *, now_ns: int, waiting: int, reallocations: int, buffer_bytes: int) -> StreamStats:
        return StreamStats(
            put=self.put,
            delivered=self.delivered,
            dropped=dict(self.dropped),
            waiting=waiting,
            late=self.late,
            fps=self._fps(now_ns),
            stages={stage: StageTimes.of(histogram) for stage, histogram in self._histograms.items()},
            plans=dict(self.plans),
            errors=tuple(self.errors),
            error_count=self.error_count,
            reallocations=reallocations,
            kept_warm=self.kept_warm,
            buffer_bytes=buffer_bytes,
        )

    def _fps(self, now_ns: int) -> float:
        """Results per second; it sinks while nothing comes."""
        if len(self._restored_ns) < 2:
            return 0.0
        first, last = self._restored_ns[0], self._restored_ns[-1]
        intervals = len(self._restored_ns) - 1
        quiet = now_ns - last > 2 * (last - first) / intervals
        return float(intervals / max((now_ns if quiet else last) - first, 1) * 1e9)
