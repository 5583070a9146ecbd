"""Rivals take turns: frame by frame within one run, so that a busy moment of the machine falls on all of them.

Before each timed call comes one that is not counted: it bears what the rival before left behind (threads that still
spin, caches full of other weights), as no rival would meet it that runs alone.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

RESAMPLES = 2000
Times = dict[str, list[float]]


def take_turns(
    rivals: Mapping[str, Callable[[int], object]],
    *,
    rounds: int,
    rare: Sequence[str] = (),
    rare_rounds: int = 3,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[int], None] = lambda index: None,
) -> Times:
    """Time every rival once per round, in an order drawn anew for each.

    Parameters
    ----------
    rivals : by name; called with the number of the round, so that all of a round work on the same frame
    rounds : timed calls of each
    rare : names that take a turn in a few rounds only, without the call before it: those that take seconds
    rare_rounds : timed calls of the rare ones, spread evenly
    progress : called with the number of each round that is done

    Returns
    -------
    by name: milliseconds of every timed call, round by round
    """
    rare_at = set(np.linspace(0, rounds - 1, min(rare_rounds, rounds)).round().astype(int).tolist())
    for run in rivals.values():
        run(0)
    times: Times = {name: [] for name in rivals}
    order = np.random.default_rng(0)
    names = list(rivals)
    for index in range(rounds):
        for name in order.permutation(names).tolist():
            if name in rare and index not in rare_at:
                continue
            run = rivals[name]
            if name not in rare:
                run(index)
            start = clock()
            run(index)
            times[name].append((clock() - start) * 1e3)
        progress(index)
    return times


def summary(times_ms: Sequence[float]) -> dict[str, Any]:
    """Median, least, 95th percentile and number of the timed calls, ms."""
    return {
        "median_ms": statistics.median(times_ms),
        "min_ms": min(times_ms),
        "p95_ms": float(np.percentile(times_ms, 95)),
        "runs": len(times_ms),
    }


def ratio(slow_ms: Sequence[float], fast_ms: Sequence[float]) -> dict[str, float]:
    """How many times as long one rival takes as another: the ratio of their medians, with a 95 % bootstrap interval.

    Rounds are resampled together where both took part in all of them, else each by itself.
    """
    slow, fast = np.asarray(slow_ms), np.asarray(fast_ms)
    rng = np.random.default_rng(0)
    picks = rng.integers(0, len(slow), (RESAMPLES, len(slow)))
    others = picks if len(fast) == len(slow) else rng.integers(0, len(fast), (RESAMPLES, len(fast)))
    ratios = np.median(slow[picks], axis=1) / np.median(fast[others], axis=1)
    low, high = np.percentile(ratios, (2.5, 97.5))
    return {"ratio": float(np.median(slow) / np.median(fast)), "low": float(low), "high": float(high)}
