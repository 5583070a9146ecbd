"""The ladder: which plan a frame gets, so that it is done before its deadline."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import ceil
from typing import Final

RUNS_KEPT: Final = 32
COST_PERCENT: Final = 95
LADDER_STEPS: Final = (4, 2, 1)
RETRY_FRAMES: Final = 4  # one slow run must not cost a second of raw frames
FRESH_FRAMES: Final = 32
LONGEST_RETRY_FRAMES: Final = 2048

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One plan: which restorer ("" the stream's own, otherwise a fallback's name) and how many steps; 0 is raw."""

    source: str
    steps: int

    @property
    def name(self) -> str:
        if not self.steps:
            return "raw"
        return f"{self.source} K={self.steps}".lstrip()


RAW: Final = Rung(source="", steps=0)


def rungs_of(source: str, most_steps: int) -> tuple[Rung, ...]:
    """The plans of one restorer from the largest down: ``most_steps``, then those of 4, 2, 1 below it."""
    return tuple(Rung(source=source, steps=k) for k in (most_steps, *(k for k in LADDER_STEPS if k < most_steps)))


@dataclass(kw_only=True)
class _Record:
    """Costs of one rung at one shape, and the tries since it fell out of favour."""

    total_ms: deque[float]
    network_ms: deque[float]
    last_run: int = 0
    retry_after: int = RETRY_FRAMES


class Ladder:
    """Measured costs, and the choice of the largest rung that fits.

    A rung's cost at a frame shape is the 95th percentile of its last 32 runs. One that never ran is predicted from
    those of its restorer that did: the time outside the network stays, the time inside grows with the steps. A rung
    whose record keeps it out is tried again after 4 frames without a run, then after twice as many, and so on: it may
    have been slow because the machine was busy. Not safe between threads: one worker owns it.
    """

    def __init__(self) -> None:
        self._records: dict[tuple[Rung, Shape], _Record] = {}
        self._frames = 0

    def cost_ms(self, rung: Rung, shape: Shape) -> float | None:
        """What the rung is expected to take at this shape; None where neither it nor its restorer ever ran."""
        if not rung.steps:
            return 0.0
        record = self._records.get((rung, shape))
        return _high(record.total_ms) if record else self._predicted_ms(rung, shape)

    def choose(self, rungs: tuple[Rung, ...], shape: Shape, budget_ms: float) -> Rung:
        """The first of ``rungs`` (largest first) that fits into ``budget_ms``, or the raw frame.

        Parameters
        ----------
        rungs : from `rungs_of`, in order of preference
        shape : (H, W) of the frame
        budget_ms : what is left until the deadline; infinity where there is none
        """
        if budget_ms <= 0:
            return RAW
        for rung in rungs:
            cost_ms = self.cost_ms(rung, shape)
            # nothing known: the smallest step of a restorer is the way to learn something
            if (rung.steps == 1 if cost_ms is None else cost_ms <= budget_ms) or budget_ms == float("inf"):
                return rung
            if self._is_due(rung, shape, budget_ms):
                return rung
        return RAW

    def next_frame(self) -> None:
        """Count a frame; retries are so many frames apart."""
        self._frames += 1

    def record(self, rung: Rung, shape: Shape, *, total_ms: float, network_ms: float) -> None:
        """Take in a run's cost: from the choice to the finished result, and the part inside the network."""
        if not rung.steps:
            return
        record = self._records.get((rung, shape))
        if record is None:
            record = _Record(total_ms=deque(maxlen=RUNS_KEPT), network_ms=deque(maxlen=RUNS_KEPT))
            self._records[rung, shape] = record
        elif self._frames - record.last_run >= record.retry_after:
            # after so long the old costs tell nothing; if this one does not bring the rung back, wait longer next time
            record.total_ms.clear()
            record.network_ms.clear()
            record.retry_after = min(2 * record.retry_after, LONGEST_RETRY_FRAMES)
        elif self._frames - record.last_run == 1:
            record.retry_after = RETRY_FRAMES  # it is in favour again
        record.total_ms.append(total_ms)
        record.network_ms.append(network_ms)
        record.last_run = self._frames

    def forget(self, source: str) -> None:
        """Drop what is known about a restorer: it was opened anew, perhaps on another device."""
        self._records = {key: record for key, record in self._records.items() if key[0].source != source}

    def _is_due(self, rung: Rung, shape: Shape, budget_ms: float) -> bool:
        record = self._records.get((rung, shape))
        if record is None or self._frames - record.last_run < record.retry_after:
            return False
        # a quick look at the others saves a late frame: if they have not become faster, neither has this one
        predicted_ms = self._predicted_ms(rung, shape, fresh=True)
        return predicted_ms is None or predicted_ms <= budget_ms

    def _predicted_ms(self, rung: Rung, shape: Shape, *, fresh: bool = False) -> float | None:
        """From the nearest rung of the same restorer that ran; ``fresh`` asks for one that ran a short while ago."""
        ran = [
            (abs(other.steps - rung.steps), other.steps, record)
            for (other, at), record in self._records.items()
            if other.source == rung.source and at == shape and other != rung
            and not (fresh and self._frames - record.last_run >= FRESH_FRAMES)
        ]  # fmt: skip
        if not ran:
            return None
        _, steps, record = min(ran, key=lambda candidate: candidate[:2])
        network_ms = _high(record.network_ms)
        return max(_high(record.total_ms) - network_ms, 0.0) + network_ms * rung.steps / steps


def _high(costs_ms: deque[float]) -> float:
    """The 95th percentile of a few numbers: the largest of up to 20, the second largest of 32."""
    ordered = sorted(costs_ms)
    return ordered[ceil(len(ordered) * COST_PERCENT / 100) - 1]
