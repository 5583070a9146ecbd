"""How regular a control loop was, and when it had to be made safe."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import asdict, dataclass
from typing import Any, Final

from .latency_histogram import LatencyHistogram

CAUSES: Final = {
    "late": "a result came after the loop's deadline",
    "unrestored": "a result was the raw frame",
    "measure_failed": "the measure raised",
    "act_failed": "the action raised",
    "hung": "measure or action did not return in time",
    "stalled": "no result came in time",
    "stream_failed": "the stream was closed or failed",
}
INCIDENTS_KEPT: Final = 100


@dataclass(frozen=True, kw_only=True)
class Incident:
    """One time that the safe action was called: why (of `CAUSES`), in words, and the frame if there was one."""

    cause: str
    message: str
    frame_id: int | None
    at_ns: int


@dataclass(frozen=True, kw_only=True)
class Jitter:
    """Spread of a time, ms; NaN before it was seen."""

    count: int
    p50_ms: float
    p99_ms: float
    max_ms: float

    @classmethod
    def of(cls, histogram: LatencyHistogram) -> Jitter:
        return cls(
            count=histogram.count,
            p50_ms=histogram.percentile_ms(50),
            p99_ms=histogram.percentile_ms(99),
            max_ms=histogram.max_ms,
        )


@dataclass(frozen=True, kw_only=True)
class ControlReport:
    """A loop's jitter and its incidents.

    ``interval`` lies between the ends of successive actions, ``frame_to_action`` between a frame's capture and the end
    of its action. ``troubles`` counts every frame or silence that was no action, by cause; ``safe_actions`` only those
    that began an incident; ``incidents`` holds the last of these.
    """

    actions: int
    late: int
    interval: Jitter
    frame_to_action: Jitter
    troubles: dict[str, int]
    safe_actions: dict[str, int]
    incidents: tuple[Incident, ...]
    safe_action_crashes: int

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dictionaries, for JSON."""
        return {**asdict(self), "incidents": [asdict(incident) for incident in self.incidents]}


class ControlTally:
    """The counters behind the report. Not safe between threads: the loop guards it."""

    def __init__(self) -> None:
        self.troubles: Counter[str] = Counter()
        self.incidents: deque[Incident] = deque(maxlen=INCIDENTS_KEPT)
        self.safe_actions: Counter[str] = Counter()
        self.safe_action_crashes = 0
        self._actions = 0
        self._last_ns: int | None = None
        self._interval, self._frame_to_action = LatencyHistogram(), LatencyHistogram()

    def acted(self, *, capture_ns: int, now_ns: int) -> None:
        self._actions += 1
        self._frame_to_action.record((now_ns - capture_ns) / 1e6)
        if self._last_ns is not None:
            self._interval.record((now_ns - self._last_ns) / 1e6)
        self._last_ns = now_ns

    def report(self) -> ControlReport:
        return ControlReport(
            actions=self._actions,
            late=self.troubles["late"],
            interval=Jitter.of(self._interval),
            frame_to_action=Jitter.of(self._frame_to_action),
            troubles={cause: count for cause, count in self.troubles.items() if count},
            safe_actions=dict(self.safe_actions),
            incidents=tuple(self.incidents),
            safe_action_crashes=self.safe_action_crashes,
        )
