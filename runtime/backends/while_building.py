"""A slow session made in a thread while a fast one answers: no second of silence while an engine builds."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError, PhotonstepError
from .protocol import Array, Session

log: Final = logging.getLogger(__name__)


class SessionWhileBuilding:
    """Answers with a fallback until the session that was asked for is there; ``backend`` says which one answers.

    The change happens between two evaluations, in the thread that evaluates. Where the building fails, ``cause``
    says why, and the fallback stays unless ``must`` forbids it.

    Parameters
    ----------
    fallback : answers meanwhile, and is closed when it is no longer needed
    build : makes the session that was asked for, in a thread of its own
    must : once the building has failed, every evaluation is an error with its cause

    Raises
    ------
    BackendError : from `run`, where the building failed and ``must`` was given
    """

    def __init__(self, fallback: Session, build: Callable[[], Session], *, must: bool = False) -> None:
        self._must = must
        self._current = fallback
        self._built: Session | None = None
        self._lock = threading.Lock()
        self._closed = False
        self.cause: str | None = None
        self._thread = threading.Thread(target=self._build, args=(build,), name="engine build", daemon=True)
        self._thread.start()

    @property
    def backend(self) -> str:
        return self._answering().backend

    @property
    def device(self) -> str:
        return self._answering().device

    @property
    def precision(self) -> str:
        return self._answering().precision

    @property
    def on_device(self) -> Any:
        """The network on the device once it is built, if the session has one."""
        return getattr(self._answering(), "on_device", None)

    @property
    def is_built(self) -> bool:
        """Whether the session that was asked for answers."""
        self._answering()
        return not self._thread.is_alive() and self.cause is None

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the building to end, well or badly; whether it did in time."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def run(self, inputs: dict[str, Array]) -> NDArray[np.float32]:
        session = self._answering()
        if self._must and self.cause is not None:
            raise BackendError(f"the engine that was asked for cannot be built: {self.cause}")
        return session.run(inputs)

    def close(self) -> None:
        """Free both. A build that runs cannot be stopped; what it makes is closed as soon as it is there."""
        with self._lock:
            self._closed = True
            built, self._built = self._built, None
        for session in (self._current, built):
            if session is not None:
                session.close()

    def _answering(self) -> Session:
        with self._lock:
            built, self._built = self._built, None
        if built is not None:
            self._current.close()
            self._current = built
            log.info("%s %s on %s answers from now on", built.backend, built.precision, built.device)
        return self._current

    def _build(self, build: Callable[[], Session]) -> None:
        try:
            session = build()
        except PhotonstepError as error:
            self.cause = str(error)
        except Exception as error:  # a library's own: nobody waits for this thread, so that it must be kept
            self.cause = f"{type(error).__name__}: {error}"
        else:
            self._hand_over(session)
            return
        log.warning("the engine cannot be built, so that %s stays: %s", self._current.backend, self.cause)

    def _hand_over(self, session: Session) -> None:
        with self._lock:
            if not self._closed:
                self._built = session
                return
        try:
            session.close()
        except BackendError as error:
            log.warning("an engine that was no longer needed could not be closed: %s", error)
