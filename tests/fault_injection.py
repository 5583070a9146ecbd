"""Watchdogs, clocks that stand still, and real sessions that fail or wait on command."""

import contextlib
import faulthandler
import functools
import sys
import threading
from dataclasses import replace

import numpy as np


def within(seconds):
    """Run a test on a thread of its own and fail, with every thread's stack, where it has not ended in time."""

    def decorate(test):
        @functools.wraps(test)
        def watched(*args, **kwargs):
            raised = []

            def body():
                try:
                    test(*args, **kwargs)
                except BaseException as error:
                    raised.append(error)

            thread = threading.Thread(target=body, daemon=True)
            thread.start()
            thread.join(seconds)
            if thread.is_alive():
                faulthandler.dump_traceback(sys.stderr, all_threads=True)
                raise TimeoutError(f"{test.__name__} did not end in {seconds} s: a deadlock")
            if raised:
                raise raised[0]

        return watched

    return decorate


class ManualClock:
    """Nanoseconds that pass only when told."""

    def __init__(self):
        self.now_ns = 10**13

    def __call__(self):
        return self.now_ns

    def advance(self, ms):
        self.now_ns += int(ms * 1e6)


class Tampered:
    """A real session that calls ``before(n)`` ahead of its n-th run, n = 0, 1, 2..."""

    def __init__(self, session, before):
        self._session, self._before = session, before
        self.backend, self.device, self.precision = session.backend, session.device, session.precision
        self.runs = 0

    def run(self, inputs):
        number = self.runs
        self.runs += 1
        self._before(number)
        return self._session.run(inputs)

    def close(self):
        self._session.close()


@contextlib.contextmanager
def tampered(restorer, before):
    """The restorer with a `Tampered` session; yields it, and puts everything back."""
    choice, denoiser_session = restorer.choice, restorer._denoiser._session
    session = Tampered(choice.session, before)
    restorer.choice = replace(choice, session=session)
    restorer._denoiser._session = session
    denoiser = restorer._denoiser
    try:
        yield session
    finally:
        denoiser._session = denoiser_session
        restorer.choice, restorer._denoiser = choice, denoiser


class Gate:
    """``before`` for `Tampered`: every run waits until it is let through; `entered` says that one waits."""

    def __init__(self):
        self.entered = threading.Semaphore(0)
        self._let = threading.Semaphore(0)
        self._open = False

    def __call__(self, _):
        if not self._open:
            self.entered.release()
            self._let.acquire(timeout=20)

    def let_through(self):
        self._let.release()

    def open(self):
        self._open = True
        self._let.release(1000)


def simulated_frame(number=0, shape=(64, 64), dtype=np.uint16):
    """A bright square on a dim field under Poisson noise; every number has its own noise."""
    rng = np.random.default_rng(number)
    light = np.full(shape, 20.0)
    light[shape[0] // 4 : shape[0] // 2, shape[1] // 4 : shape[1] // 2] = 60.0
    return (rng.poisson(light) + 100).astype(dtype)


def accounts_balance(stats):
    return stats.put == stats.delivered + sum(stats.dropped.values()) + stats.waiting
