"""A lock that serves threads in the order in which they came, so that two live streams can share one restorer."""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")


class FairLock:
    """First come, first served; the thread that holds it may take it again.

    `threading.Lock` lets the thread that has just released it take it again at once: with two busy streams one of them
    would starve.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._owner: int | None = None
        self._depth = 0
        self._queue: deque[tuple[int, threading.Lock]] = deque()

    def acquire(self, *, blocking: bool = True) -> bool:
        """Take the lock; False where it is taken and ``blocking`` is False."""
        me = threading.get_ident()
        with self._guard:
            if self._owner in (None, me):
                self._owner = me
                self._depth += 1
                return True
            if not blocking:
                return False
            turn = threading.Lock()
            turn.acquire()
            self._queue.append((me, turn))
        try:
            turn.acquire()  # `release` makes this thread the owner before it lets it go on
        except BaseException:  # an interrupt must not leave a turn that nobody takes
            self._leave(me, turn)
            raise
        return True

    def release(self) -> None:
        """Give the lock to the thread that has waited longest."""
        with self._guard:
            if self._owner != threading.get_ident():
                raise RuntimeError("the lock is released by a thread that does not hold it")
            self._depth -= 1
            if not self._depth:
                self._pass_on()

    def __enter__(self) -> FairLock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _pass_on(self) -> None:
        if not self._queue:
            self._owner = None
            return
        self._owner, turn = self._queue.popleft()
        self._depth = 1
        turn.release()

    def _leave(self, me: int, turn: threading.Lock) -> None:
        with self._guard:
            if (me, turn) in self._queue:
                self._queue.remove((me, turn))
            else:
                self._depth = 0
                self._pass_on()


class HasTurn(Protocol):
    """An object whose methods run in one thread at a time."""

    turn: FairLock


S = TypeVar("S", bound=HasTurn)


def in_turn(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """A method that waits for its object's ``turn``."""

    @functools.wraps(method)
    def waiting(self: S, *args: P.args, **kwargs: P.kwargs) -> R:
        with self.turn:
            return method(self, *args, **kwargs)

    return cast(Callable[Concatenate[S, P], R], waiting)
