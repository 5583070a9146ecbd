"""Output buffers on loan: none is written again while a result, or any view of its image, is held."""

from __future__ import annotations

import weakref
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Buffer:
    """Memory for one restored image and its preview."""

    def __init__(self) -> None:
        self.image: NDArray[Any] = np.empty((0, 0), np.uint16)
        self.preview: NDArray[np.uint8] = np.empty((0, 0), np.uint8)
        self.holders = 0

    @property
    def nbytes(self) -> int:
        return self.image.nbytes + self.preview.nbytes

    def fit(self, shape: tuple[int, ...], dtype: np.dtype[Any], *, preview: bool) -> bool:
        """Allocate for that shape and dtype where the buffer is for another; True where it had to."""
        preview_shape = shape if preview else (0, 0)
        fits = self.image.shape == shape and self.image.dtype == dtype
        if not fits:
            self.image = np.full(shape, 0, dtype)
        if self.preview.shape != preview_shape:
            self.preview = np.full(preview_shape, 0, np.uint8)
        return not fits


class _Held:
    """Lives as long as a lease, its arrays or any view of them."""

    __slots__ = ("__weakref__",)


class _Export:
    """A read-only array's memory; NumPy keeps this object, and so the lease, alive with every view."""

    __slots__ = ("__array_interface__", "_held", "_memory")

    def __init__(self, array: NDArray[Any], held: _Held) -> None:
        interface = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], True)
        self.__array_interface__ = interface
        self._held = held
        self._memory = array


class BufferPool:
    """A number of buffers, lent and given back. Its methods need the exchange's lock; a lease's `release` does not."""

    def __init__(self, count: int) -> None:
        self._buffers = [Buffer() for _ in range(count)]
        self._free = list(self._buffers)
        self._wanted = count
        # the garbage collector may run in any thread at any moment, even while that thread holds the lock: what it
        # gives back is noted without a lock, and collected by the next `lend`
        self.returned: deque[Buffer] = deque()

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self._buffers)

    @property
    def count(self) -> int:
        return len(self._buffers)

    @property
    def free(self) -> int:
        """Buffers that nobody holds."""
        self.sweep()
        return len(self._free)

    def grow(self, count: int) -> None:
        """Add buffers; they are allocated when they are lent first."""
        self._wanted += count
        more = [Buffer() for _ in range(count)]
        self._buffers += more
        self._free += more

    def shrink(self, count: int) -> None:
        """Take buffers away again: free ones now, others when they come back."""
        self._wanted -= count
        self.sweep()
        while self._free and len(self._buffers) > self._wanted:
            self._buffers.remove(self._free.pop())

    def fit(self, shape: tuple[int, ...], dtype: np.dtype[Any], *, preview: bool) -> None:
        """Allocate the free buffers now rather than when they are lent."""
        for buffer in self._free:
            buffer.fit(shape, dtype, preview=preview)

    def lend(self) -> Buffer | None:
        """A free buffer with one holder, or None where all are held."""
        self.sweep()
        if not self._free:
            return None
        buffer = self._free.pop()
        buffer.holders = 1
        return buffer

    def hold(self, buffer: Buffer) -> None:
        buffer.holders += 1

    def let_go(self, buffer: Buffer) -> None:
        buffer.holders -= 1
        if buffer.holders:
            return
        if len(self._buffers) > self._wanted:
            self._buffers.remove(buffer)
        else:
            self._free.append(buffer)

    def sweep(self) -> None:
        """Take in what was released since the last time."""
        while self.returned:
            self.let_go(self.returned.popleft())


class Lease:
    """One holder's right to a buffer. ``image`` and ``preview`` are read-only, and so are all views of them."""

    def __init__(self, pool: BufferPool, buffer: Buffer) -> None:
        pool.hold(buffer)
        held = _Held()
        self.image: NDArray[Any] | None = np.asarray(_Export(buffer.image, held))
        self.preview: NDArray[np.uint8] | None = (
            np.asarray(_Export(buffer.preview, held)) if buffer.preview.size else None
        )
        self._finalizer = weakref.finalize(held, pool.returned.append, buffer)
        self._finalizer.atexit = False

    @property
    def released(self) -> bool:
        return self.image is None

    def release(self) -> None:
        """Give the buffer back now, whoever still has a view of it; again does nothing."""
        self.image = self.preview = None
        self._finalizer()
