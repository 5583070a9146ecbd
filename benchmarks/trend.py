"""Memory over time: sampled, and its slope with an interval that allows for samples that depend on one another."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCKS = 20
SETTLE_SHARE = 0.1
MB = 1e6


def resident_bytes() -> int:
    """Memory of this process that is in RAM (RSS), from /proc."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class MemoryLog:
    """Samples `resident_bytes` on a thread of its own, from ``start`` to ``stop``."""

    def __init__(self, *, every_s: float, longest_s: float) -> None:
        self._every_s = every_s
        # filled now: pages that are touched as the run goes would look like a leak
        self._samples = np.full((int(longest_s / every_s) + 16, 2), -1.0)
        self._count = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory-log", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Seconds since the start and bytes of every sample."""
        self._stop.set()
        self._thread.join()
        found = self._samples[: self._count]
        return found[:, 0].copy(), found[:, 1].copy()

    def _run(self) -> None:
        started = time.monotonic()
        while self._count < len(self._samples) and not self._stop.wait(self._every_s):
            self._samples[self._count] = time.monotonic() - started, resident_bytes()
            self._count += 1


def slope(seconds: NDArray[np.float64], values: NDArray[np.float64]) -> dict[str, float] | None:
    """Least-squares slope per second of the means of `BLOCKS` stretches, with its 95 % interval (Student's t).

    Single samples are no independent measurements of a trend: memory goes in steps that stay. Means of stretches are
    nearly so.

    Returns
    -------
    slope, low, high ; None for fewer samples than stretches
    """
    if len(values) < BLOCKS:
        return None
    from scipy import stats

    x, y = (np.array([part.mean() for part in np.array_split(a, BLOCKS)]) for a in (seconds, values))
    fit = stats.linregress(x, y)
    reach = float(stats.t.ppf(0.975, BLOCKS - 2)) * float(fit.stderr)
    return {"slope": float(fit.slope), "low": float(fit.slope) - reach, "high": float(fit.slope) + reach}


def memory_record(seconds: NDArray[np.float64], rss_bytes: NDArray[np.float64]) -> dict[str, Any]:
    """RSS of a run in MB, the first tenth left out for the slope, and what the slope makes of an hour."""
    kept = seconds >= SETTLE_SHARE * seconds[-1] if len(seconds) else np.zeros(0, bool)
    found = slope(seconds[kept], rss_bytes[kept] / MB)
    hour = None if found is None else {name: 3600 * value for name, value in found.items()}
    return {
        "samples": len(seconds),
        "seconds": float(seconds[-1]) if len(seconds) else 0.0,
        "first_mb": float(rss_bytes[0] / MB) if len(seconds) else None,
        "settled_mb": float(rss_bytes[kept][0] / MB) if kept.any() else None,
        "last_mb": float(rss_bytes[-1] / MB) if len(seconds) else None,
        "most_mb": float(rss_bytes.max() / MB) if len(seconds) else None,
        "mb_per_hour": hour,
        "rss_mb": [round(float(value) / MB, 3) for value in rss_bytes],
    }
