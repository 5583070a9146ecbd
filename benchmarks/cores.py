"""Which cores a measurement runs on, a neighbour that keeps one busy, and a process of its own for each case."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any


def available() -> list[int]:
    """Cores that this process may use."""
    return sorted(os.sched_getaffinity(0))


@contextmanager
def pinned(cpus: Sequence[int] | None) -> Iterator[None]:
    """The calling thread on these cores alone; what it starts inherits that. None changes nothing."""
    before = os.sched_getaffinity(0)
    if cpus is not None:
        os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def isolated(function: Callable[..., Any], *arguments: Any, cpus: Sequence[int] | None = None) -> Any:
    """Call a function in a fresh process, on given cores from its first moment on.

    Raises
    ------
    RuntimeError : it raised there, with its traceback, or the process died
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(there, function, arguments))
    with pinned(cpus):
        process.start()
    there.close()
    try:
        failed, answer = here.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"{function.__name__} died with exit code {process.exitcode}") from None
    except BaseException:  # nobody would wait for it: an interrupt, say
        process.kill()
        raise
    finally:
        process.join()
        here.close()
    if failed:
        raise RuntimeError(f"{function.__name__} failed in its own process:\n{answer}")
    return answer


def _answer(there: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        there.send((False, function(*arguments)))
    except BaseException:  # the parent raises it again
        there.send((True, traceback.format_exc()))


class Burner:
    """A process that does nothing but keep one core busy; it is born stopped, and ends with the ``with`` block."""

    def __init__(self, cpu: int) -> None:
        self.cpu = cpu
        self.burning = False
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Burner:
        with pinned([self.cpu]):
            self._process = subprocess.Popen([sys.executable, "-I", "-S", "-c", "while True: pass"])
        self._process.send_signal(signal.SIGSTOP)
        return self

    def switch(self, on: bool) -> None:
        """Burn, or rest."""
        if self._process is not None and on != self.burning:
            self._process.send_signal(signal.SIGCONT if on else signal.SIGSTOP)
            self.burning = on

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
