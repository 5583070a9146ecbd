"""Slots for raw frames, allocated once: one is written, some wait, one is restored."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .stream_settings import StreamSettings


@dataclass(eq=False, kw_only=True)
class Slot:
    """Room for one raw frame, and what was known when it was put."""

    frame: NDArray[Any]
    frame_id: int = -1
    capture_ns: int = 0
    put_ns: int = 0
    settings: StreamSettings | None = None


class FrameRing:
    """``depth`` frames may wait; two more slots let one be written and one be restored at the same time.

    Not safe between threads: the exchange guards it.
    """

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.waiting: deque[Slot] = deque()
        self.reallocations = 0
        self._free = [Slot(frame=np.empty((0, 0), np.uint16)) for _ in range(depth + 2)]
        self._all = tuple(self._free)
        self._layout: tuple[tuple[int, ...], np.dtype[Any]] | None = None

    @property
    def full(self) -> bool:
        return len(self.waiting) >= self.depth

    @property
    def nbytes(self) -> int:
        return sum(slot.frame.nbytes for slot in self._all)

    def reserve(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Slot:
        """A free slot of that shape and dtype; where they are new, every free slot is allocated anew."""
        layout = (shape, dtype)
        if layout != self._layout:
            self.reallocations += self._layout is not None
            self._layout = layout
            for free in self._free:
                _fit(free, layout)
        slot = self._free.pop()
        _fit(slot, layout)  # it may have been in use when the layout changed
        return slot

    def give_back(self, slot: Slot) -> None:
        slot.settings = None
        self._free.append(slot)


def _fit(slot: Slot, layout: tuple[tuple[int, ...], np.dtype[Any]]) -> None:
    if (slot.frame.shape, slot.frame.dtype) != layout:
        # zeros are written, not only promised: the first frames do not pay for fresh memory pages
        slot.frame = np.full(layout[0], 0, layout[1])
