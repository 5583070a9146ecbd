"""The deadline ladder under load: a neighbour keeps the last core busy, now and then; which plan did each frame get?"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import cores
from .live_frames import CAMERA, simulated_frames
from .live_parts import FRAMES_KEPT, InProcess, loaded, say
from .live_run import ResultLog, Source, record, spread, watch
from .live_settings import LiveSettings


def deadline(settings: LiveSettings, run: InProcess) -> dict[str, Any]:
    """A bundle too slow for its deadline at the most steps, the other core left alone and kept busy in turn."""
    return dict(run(deadline_case, settings))


def deadline_case(settings: LiveSettings) -> dict[str, Any]:
    frames = simulated_frames(FRAMES_KEPT, settings.side_px, drift_px=1)
    count = max(2, round(settings.phase_s * settings.phases * settings.ladder_fps))
    switched: list[tuple[int, bool]] = [(time.perf_counter_ns(), False)]
    with (
        loaded(settings, settings.ladder_bundle) as restorer,
        cores.Burner(cores.available()[-1]) as burner,
        restorer.stream(
            camera=CAMERA, deadline_ms=settings.deadline_ms, steps=settings.ladder_steps, warm_up=frames[0],
            freeze_gc=settings.freeze_gc,
        ) as live,
    ):  # fmt: skip
        switched[0] = (started_ns := time.perf_counter_ns()), False

        def tick() -> None:
            phase = int((time.perf_counter_ns() - started_ns) / 1e9 / settings.phase_s)
            wanted = bool(min(phase, settings.phases - 1) % 2)
            if wanted != burner.burning:
                burner.switch(wanted)
                switched.append((time.perf_counter_ns(), wanted))
                say(f"the other core is {'busy' if wanted else 'idle'}")

        source = Source(frames=frames, fps=settings.ladder_fps, count=count)
        done = watch(live, source, tick=tick, title="deadline", say=say)
        name, precision = restorer.bundle.manifest.name, restorer.precision
    return {
        "bundle": name, "precision": precision, "deadline_ms": settings.deadline_ms, "steps": settings.ladder_steps,
        "busy_cpu": burner.cpu, **record(done), **phases(done.results, switched, settings.deadline_ms),
    }  # fmt: skip


def phases(log: ResultLog, switched: Sequence[tuple[int, bool]], deadline_ms: float) -> dict[str, Any]:
    """Plans and late results while the other core was idle and busy, and second by second.

    Parameters
    ----------
    switched : (ns, whether busy from then on), in order; the first is the start
    """
    captured_ns, plans = log.column("capture_ns"), np.array(log.plans, dtype=object)
    took_ms = log.between_ms("capture_ns", "restored_ns")
    late = took_ms > deadline_ms
    at = np.searchsorted([ns for ns, _ in switched], captured_ns, side="right") - 1
    busy = np.array([on for _, on in switched], bool)[np.maximum(at, 0)]
    second = np.floor((captured_ns - switched[0][0]) / 1e9).astype(int)
    return {
        "switched_s": [((ns - switched[0][0]) / 1e9, on) for ns, on in switched],
        "idle": _phase(plans[~busy], late[~busy], took_ms[~busy]),
        "busy": _phase(plans[busy], late[busy], took_ms[busy]),
        "timeline": [
            {
                "second": int(s), "busy": bool(busy[second == s].mean() > 0.5), "late": int(late[second == s].sum()),
                "plans": dict(Counter(plans[second == s].tolist())),
            }
            for s in np.unique(second)
        ],
    }  # fmt: skip


def _phase(plans: NDArray[Any], late: NDArray[np.bool_], took_ms: NDArray[np.float64]) -> dict[str, Any]:
    return {
        "results": len(plans), "plans": dict(Counter(plans.tolist())), "late": int(late.sum()),
        "capture_to_result_ms": spread(took_ms),
    }  # fmt: skip
