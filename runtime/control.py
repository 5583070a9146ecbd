"""Closed loops on restored frames: measure, act, and be safe when a frame is late, missing or wrong.

restored frame -> measure -> act          or, once per incident, the safe action
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from .control_report import ControlReport, ControlTally, Incident
from .errors import StreamError
from .live_result import LiveResult

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .stream import LiveStream

log = logging.getLogger("photonstep.control")
Measurement = TypeVar("Measurement")
CHECKS_PER_WATCHDOG: Final = 4
JOIN_S: Final = 2.0


class ControlLoop(Generic[Measurement]):
    """Calls ``act(measure(image), result)`` for every restored frame in time, and ``safe_action`` where that breaks.

    An incident begins with the first trouble (a late or raw frame, a crash, silence) and ends with the next action
    that succeeds; the safe action is called once for each, at its beginning. Nothing is done on a late or raw frame.

    Parameters
    ----------
    live : an open stream; the loop is one of its subscribers
    measure : (H, W) image -> anything, for example `runtime.measures.focus_score`
    act : called with the measurement and the `LiveResult`
    deadline_ms : from capture to the beginning of the action; None takes the stream's
    safe_action : called with an `Incident`; bring the hardware into a safe state there. It may run on the watchdog's
        thread while ``act`` still hangs
    watchdog_ms : longest time between two actions
    act_on_raw : also act on frames that could not be restored

    Raises
    ------
    StreamError : something that is not a function, times that are not above 0, or the stream is closed
    """

    def __init__(
        self,
        live: LiveStream,
        *,
        measure: Callable[[NDArray[Any]], Measurement],
        act: Callable[[Measurement, LiveResult], object],
        safe_action: Callable[[Incident], object],
        watchdog_ms: float,
        deadline_ms: float | None = None,
        act_on_raw: bool = False,
    ) -> None:
        for name, function in (("measure", measure), ("act", act), ("safe_action", safe_action)):
            if not callable(function):
                raise StreamError(f"{name} is a {type(function).__name__}; expected a function")
        for name, value in (("watchdog_ms", watchdog_ms), ("deadline_ms", deadline_ms)):
            if value is not None and not (isinstance(value, int | float) and 0 < value < float("inf")):
                raise StreamError(f"{name} is {value!r}; expected milliseconds above 0")
        self._live, self._clock_ns = live, live.clock_ns
        self._measure, self._act, self._safe_action = measure, act, safe_action
        self._watchdog_ms, self._deadline_ms, self._act_on_raw = watchdog_ms, deadline_ms, act_on_raw
        self._lock = threading.Lock()
        self._tally = ControlTally()
        self._in_incident = False
        self._busy_with: int | None = None  # the frame that is measured or acted on now
        self._last_ns = self._clock_ns()
        self._reported_ns = self._last_ns  # when silence was counted last
        self._ended = threading.Event()
        self._subscription = live.subscribe(self._on_result)
        self._thread = threading.Thread(target=self._watch, name="photonstep-watchdog", daemon=True)
        self._thread.start()

    def __enter__(self) -> ControlLoop[Measurement]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def report(self) -> ControlReport:
        """Jitter and incidents up to now."""
        with self._lock:
            return self._tally.report()

    def close(self) -> None:
        """Stop acting. The stream goes on."""
        self._ended.set()
        self._subscription.stop()
        if self._thread is not threading.current_thread():
            self._thread.join(JOIN_S)

    def check(self) -> None:
        """What the watchdog does every quarter of its time: begin an incident where no action came for too long."""
        now_ns = self._clock_ns()
        with self._lock:
            silent_ms = (now_ns - max(self._last_ns, self._reported_ns)) / 1e6
            busy_with = self._busy_with
            if silent_ms <= self._watchdog_ms:
                return
            self._reported_ns = now_ns
        quiet = f"no action for {silent_ms:.0f} ms, more than watchdog_ms {self._watchdog_ms:g}"
        if not self._subscription.active:
            self._trouble("stream_failed", f"{quiet}: the stream was closed or failed", None)
        elif busy_with is not None:
            self._trouble("hung", f"{quiet}: measure or act still works on frame {busy_with}", busy_with)
        else:
            self._trouble("stalled", f"{quiet}: no result came", None)

    def _watch(self) -> None:
        while not self._ended.wait(self._watchdog_ms / 1e3 / CHECKS_PER_WATCHDOG):
            self.check()

    def _on_result(self, result: LiveResult) -> None:
        with self._lock:
            self._busy_with = result.frame_id
        try:
            self._step(result)
        finally:
            with self._lock:
                self._busy_with = None

    def _step(self, result: LiveResult) -> None:
        if not result.steps and not self._act_on_raw:
            why = result.error or "no restoration would have come in time"
            return self._trouble("unrestored", f"frame {result.frame_id} is raw: {why}", result.frame_id)
        if self._is_late(result):
            return None
        try:
            measurement = self._measure(result.image)
        except BaseException as error:  # sys.exit() too; as text: a kept traceback would keep the result's buffer
            log.error("measure raised\n%s", traceback.format_exc())
            told = f"measure raised {type(error).__name__}: {error}"
            return self._trouble("measure_failed", told, result.frame_id)
        if self._is_late(result):
            return None
        try:
            self._act(measurement, result)
        except BaseException as error:
            log.error("act raised\n%s", traceback.format_exc())
            return self._trouble("act_failed", f"act raised {type(error).__name__}: {error}", result.frame_id)
        with self._lock:
            self._last_ns = self._clock_ns()
            self._tally.acted(capture_ns=result.times.capture_ns, now_ns=self._last_ns)
            self._in_incident = False
        return None

    def _is_late(self, result: LiveResult) -> bool:
        """Whether it is too late to act on this frame; asked again after the measurement, which takes time too."""
        deadline_ms = self._deadline_ms or self._live.settings.deadline_ms
        age_ms = (self._clock_ns() - result.times.capture_ns) / 1e6
        if deadline_ms is None or age_ms <= deadline_ms:
            return False
        told = f"frame {result.frame_id} is {age_ms:.1f} ms old, deadline_ms is {deadline_ms:g}"
        self._trouble("late", told, result.frame_id)
        return True

    def _trouble(self, cause: str, message: str, frame_id: int | None) -> None:
        """Count it; at the beginning of an incident call the safe action."""
        incident = Incident(cause=cause, message=message, frame_id=frame_id, at_ns=self._clock_ns())
        with self._lock:
            self._tally.troubles[cause] += 1
            if self._in_incident or self._ended.is_set():
                return
            self._in_incident = True
            self._tally.safe_actions[cause] += 1
            self._tally.incidents.append(incident)
        log.warning("safe action: %s", message)
        try:
            self._safe_action(incident)
        except BaseException:  # the watchdog must outlive it
            log.error("the safe action raised\n%s", traceback.format_exc())
            with self._lock:
                self._tally.safe_action_crashes += 1
