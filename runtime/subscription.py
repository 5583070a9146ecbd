"""Callbacks, each on a thread of its own: a slow one misses frames of its own, a broken one is told and left alone."""

from __future__ import annotations

import logging
import threading
import traceback
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

from .errors import StreamError
from .exchange import Exchange
from .live_result import LiveResult
from .stream_settings import Drop

log = logging.getLogger("photonstep.stream")
NOTICES_KEPT: Final = 4096
JOIN_S: Final = 2.0


class Crashes:
    """Counts crashes of a callback in a row and says when it is too many."""

    def __init__(self, name: str, most: int, report: Callable[[str], None]) -> None:
        self._name, self._most, self._report = name, most, report
        self._in_a_row = 0

    def call(self, callback: Callable[[], None]) -> bool:
        """Run it; False once it has crashed too often in a row."""
        try:
            callback()
        except BaseException as error:  # sys.exit() too: a thread that ended here would hold buffers back for ever
            self._in_a_row += 1
            # as text: a handler that keeps the traceback would keep the result, and so its buffer
            log.error("%s raised\n%s", self._name, traceback.format_exc())
            self._report(f"{self._name} raised {type(error).__name__}: {error}")
        else:
            self._in_a_row = 0
        if self._in_a_row < self._most:
            return True
        message = f"{self._name} raised {self._in_a_row} times in a row and is called no more"
        log.error(message)
        self._report(message)
        return False


class Subscription:
    """One callback of a live stream; made by `LiveStream.subscribe`."""

    def __init__(self, callback: Callable[[LiveResult], None], exchange: Exchange, crashes: int) -> None:
        self._callback = callback
        self._exchange = exchange
        self._outbox = exchange.subscribe()
        name = getattr(callback, "__qualname__", type(callback).__name__)
        self._crashes = Crashes(f"callback {name}", crashes, exchange.error)
        self._thread = threading.Thread(target=self._run, name=f"photonstep-deliver-{name}", daemon=True)
        self._thread.start()

    @property
    def active(self) -> bool:
        """Whether the callback is still called."""
        return self._outbox.open

    def stop(self) -> None:
        """Call it no more; waits a moment for a call that is under way."""
        self._exchange.unsubscribe(self._outbox)
        self.join(JOIN_S)

    def join(self, timeout: float) -> None:
        if self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            try:
                result = self._exchange.take(self._outbox, None)
            except StreamError:
                break
            if result is None:
                break
            going = self._deliver(result)
            # what the callback did not keep must not be kept here while this thread waits for the next one
            del result
            self._exchange.done(self._outbox)
            if not going:
                break
        self._exchange.unsubscribe(self._outbox)

    def _deliver(self, result: LiveResult) -> bool:
        return self._crashes.call(partial(self._callback, result))


class DropNotices:
    """Calls ``on_drop`` on a thread of its own. `add` never waits, and may be called with the exchange's lock held."""

    def __init__(self, callback: Callable[[Drop], None], crashes: int, report: Callable[[str], None]) -> None:
        self._callback = callback
        self._crashes = Crashes("on_drop", crashes, report)
        self._notices: deque[Drop] = deque(maxlen=NOTICES_KEPT)
        self._there = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="photonstep-drops", daemon=True)
        self._thread.start()

    def add(self, drop: Drop) -> None:
        self._notices.append(drop)
        self._there.set()

    def close(self) -> None:
        """Deliver what is noted, then end."""
        self._closing = True
        self._there.set()
        if self._thread is not threading.current_thread():
            self._thread.join(JOIN_S)

    def _run(self) -> None:
        while True:
            self._there.wait()
            self._there.clear()
            ending = self._closing
            while self._notices:
                drop = self._notices.popleft()
                if not self._crashes.call(partial(self._callback, drop)):
                    return
            if ending:
                return
