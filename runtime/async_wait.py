"""Coroutines that wait for what a thread does."""

from __future__ import annotations

import asyncio


class AsyncWaiters:
    """Futures of any number of event loops, resolved from a thread. Guarded by the exchange's lock."""

    def __init__(self) -> None:
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []

    def add(self) -> asyncio.Future[None]:
        """A future of the running loop that the next `wake` resolves."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._waiting.append((loop, future))
        return future

    def remove(self, future: asyncio.Future[None]) -> None:
        self._waiting = [entry for entry in self._waiting if entry[1] is not future]

    def wake(self) -> None:
        """Resolve all futures; loops that are closed meanwhile are left alone."""
        waiting, self._waiting = self._waiting, []
        for loop, future in waiting:
            if not loop.is_closed():
                try:
                    loop.call_soon_threadsafe(_resolve, future)
                except RuntimeError:  # closed between the question and the call
                    continue


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
