"""A paced camera: frames at a rate, on a thread of its own, each due at an absolute time, so that nothing drifts.

Frame ``i`` is due at ``start + i / fps`` whatever came of the frames before. A camera that was kept waiting hands in
what is overdue at once, and its own lateness is reported beside every figure it gave rise to. Without a rate it runs
flat out: the next frame comes when the last one was taken.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Deliver = Callable[[NDArray[np.uint16], "int | None"], int]
HEAD_START_S = 0.05


class PacedCamera:
    """Delivers frames again and again from a list.

    Parameters
    ----------
    frames : (H, W) arrays, delivered in turn
    deliver : ``deliver(frame, due_ns) -> frame id``, called on the camera's thread; ``due_ns`` is None flat out
    fps : frames per second; None is flat out
    count : frames in all
    clock_ns, wait : of time; ``wait(seconds)`` may come back early
    """

    def __init__(
        self,
        frames: Sequence[NDArray[np.uint16]],
        deliver: Deliver,
        *,
        fps: float | None,
        count: int,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._frames, self._deliver = list(frames), deliver
        self._period_ns = None if fps is None else 1e9 / fps
        self._clock_ns, self._wait = clock_ns, wait
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._guarded, name="paced-camera", daemon=True)
        # filled now: pages that are touched as the run goes would look like a leak
        self._due_ns, self._called_ns, self._returned_ns, self._ids = (np.full(count, -1, np.int64) for _ in range(4))
        self.delivered = 0

    def start(self) -> None:
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        """Deliver no further frame."""
        self._stop.set()

    def join(self, timeout: float | None = None) -> None:
        """Wait for the last frame.

        Raises
        ------
        whatever ``deliver`` raised; TimeoutError where the camera is still busy after ``timeout`` seconds
        """
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise TimeoutError(f"the camera still delivers after {timeout} s: {self.delivered} of {len(self._ids)}")
        if self._error is not None:
            raise self._error

    def run(self) -> None:
        """All frames on the calling thread."""
        start_ns = self._clock_ns() + int(HEAD_START_S * 1e9)
        for index in range(len(self._ids)):
            due_ns: int | None = None
            if self._period_ns is not None:
                due_ns = start_ns + round(index * self._period_ns)
                while (left_ns := due_ns - self._clock_ns()) > 0 and not self._stop.is_set():
                    self._wait(left_ns / 1e9)
            if self._stop.is_set():
                return
            called_ns = self._clock_ns()
            self._ids[index] = self._deliver(self._frames[index % len(self._frames)], due_ns)
            self._due_ns[index] = called_ns if due_ns is None else due_ns
            self._called_ns[index], self._returned_ns[index] = called_ns, self._clock_ns()
            self.delivered = index + 1

    def log(self) -> DeliveryLog:
        """What was delivered so far, and when."""
        n = self.delivered
        columns = (self._ids, self._due_ns, self._called_ns, self._returned_ns)
        ids, due_ns, called_ns, returned_ns = (column[:n].copy() for column in columns)
        period_ms = None if self._period_ns is None else self._period_ns / 1e6
        return DeliveryLog(ids, due_ns, called_ns, returned_ns, period_ms)

    def _guarded(self) -> None:
        try:
            self.run()
        except BaseException as error:  # raised again where the camera is joined
            self._error = error


class DeliveryLog:
    """One camera's deliveries: (N,) int64 each; ns of the camera's clock, ids as the receiver gave them."""

    def __init__(
        self,
        ids: NDArray[np.int64],
        due_ns: NDArray[np.int64],
        called_ns: NDArray[np.int64],
        returned_ns: NDArray[np.int64],
        period_ms: float | None,
    ) -> None:
        self.ids, self.due_ns, self.called_ns, self.returned_ns = ids, due_ns, called_ns, returned_ns
        self.period_ms = period_ms

    def record(self) -> dict[str, Any]:
        """The camera's own rate and jitter, ms; lateness is None flat out, where nothing is due."""
        n = len(self.ids)
        found: dict[str, Any] = {"frames": n, "asked_fps": None if self.period_ms is None else 1e3 / self.period_ms}
        if n < 2:
            return found
        seconds = (self.called_ns[-1] - self.called_ns[0]) / 1e9
        found["fps"] = (n - 1) / max(seconds, 1e-9)
        found["deliver_ms"] = _spread((self.returned_ns - self.called_ns) / 1e6)
        if self.period_ms is not None:
            late_ms = (self.called_ns - self.due_ns) / 1e6
            tenth = max(1, n // 10)
            found["late_ms"] = _spread(late_ms)
            found["drift_ms"] = float(np.median(late_ms[-tenth:]) - np.median(late_ms[:tenth]))
            found["late_by_a_period"] = int(np.sum(late_ms > self.period_ms))
        return found


def _spread(values: NDArray[np.float64]) -> dict[str, float]:
    p50, p99, p999 = np.percentile(values, (50, 99, 99.9))
    return {"p50": float(p50), "p99": float(p99), "p99.9": float(p999), "max": float(values.max())}
