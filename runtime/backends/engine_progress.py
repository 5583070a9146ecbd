"""What TensorRT says while it builds: errors for our messages, and how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class BuildProgress:
    """How far a build is: ``done`` from 0 to 1, and the seconds that the rest may take (None before the first step)."""

    phase: str
    done: float
    elapsed_s: float
    remaining_s: float | None


Report = Callable[[BuildProgress], None]


def error_log(trt: Any) -> Any:
    """Keeps errors for our messages instead of printing them."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

    return Log()


def monitor(trt: Any, report: Report) -> Any:
    """TensorRT's phases, which nest, as one fraction with an estimate of the time left."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._open: list[tuple[str, int, int]] = []  # phase, steps, steps done; outermost first
            self._started, self._done = time.monotonic(), 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._open.append((phase_name, num_steps, 0))

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._open = [(n, steps, step + 1 if n == phase_name else done) for n, steps, done in self._open]
            self._tell(phase_name)
            return True

        def phase_finish(self, phase_name: str) -> None:
            self._open = [entry for entry in self._open if entry[0] != phase_name]
            if not self._open:
                self._done = 1.0
                self._tell(phase_name)

        def _tell(self, phase: str) -> None:
            done, share = 0.0, 1.0
            for _, steps, finished in self._open:
                done += share * min(finished / max(steps, 1), 1.0)
                share /= max(steps, 1)
            self._done = max(self._done, min(done, 1.0))  # never backwards
            elapsed = time.monotonic() - self._started
            left = elapsed * (1 - self._done) / self._done if self._done > 0 else None
            report(BuildProgress(phase=phase, done=self._done, elapsed_s=elapsed, remaining_s=left))

    return Monitor()
