"""Latency of a restorer, measured the way a live loop meets it: the same camera, frame after frame, after a warm-up."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Percentiles over ``runs`` restorations, in ms, frame in to frame out; ``fps`` is 1000 over the mean."""

    runs: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    fps: float
    outside_network_share: float


def measure_latency(
    restorer: Any,
    frame: npt.NDArray[Any],
    *,
    camera: Any,
    budget_s: float,
    max_runs: int,
    warmup_runs: int = 3,
    clock: Callable[[], float] = time.perf_counter,
    **options: Any,
) -> Latency:
    """Restore ``frame`` again and again until ``max_runs`` or ``budget_s`` is reached (at least 5 times), and time it.

    Parameters
    ----------
    restorer : Restorer
    frame : (H, W) array
    camera : Camera; given, so that no run pays for an estimate
    options : passed to ``restorer.restore`` (steps, sampler)
    """
    for _ in range(warmup_runs):
        restorer.restore(frame, camera=camera, **options)
    total_ms: list[float] = []
    network_ms: list[float] = []
    start = clock()
    while len(total_ms) < max_runs and (len(total_ms) < 5 or clock() - start < budget_s):
        before = clock()
        result = restorer.restore(frame, camera=camera, **options)
        total_ms.append((clock() - before) * 1e3)
        network_ms.append(result.network_ms)
    p50, p99 = np.percentile(total_ms, (50, 99))
    return Latency(
        runs=len(total_ms),
        p50_ms=float(p50),
        p99_ms=float(p99),
        max_ms=max(total_ms),
        fps=1e3 / float(np.mean(total_ms)),
        outside_network_share=1 - sum(network_ms) / sum(total_ms),
    )
