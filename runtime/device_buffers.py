"""Device memory of one frame shape by name: allocated once, shared by all recordings of that shape, accounted."""

from __future__ import annotations

import contextlib

from .backends.cuda_device import Device, Memory, PinnedMemory
from .errors import BackendError


class DeviceBuffers:
    """Pieces of memory by name and size; asking again gives the same piece.

    ``constants`` is what the network's planes of one value hold, or None where that is not known.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._memory: dict[tuple[str, int], Memory] = {}
        self._pinned: dict[tuple[str, int], PinnedMemory] = {}
        self.constants: tuple[float, ...] | None = None

    @property
    def device_bytes(self) -> int:
        return sum(memory.size for memory in self._memory.values())

    def on_device(self, name: str, size: int) -> Memory:
        """Raises DeviceMemoryError where it does not fit."""
        if (name, size) not in self._memory:
            self._memory[name, size] = self._device.allocate(size)
        return self._memory[name, size]

    def pinned(self, name: str, size: int) -> PinnedMemory:
        if (name, size) not in self._pinned:
            self._pinned[name, size] = self._device.allocate_pinned(size)
        return self._pinned[name, size]

    def close(self) -> None:
        for memory in (*self._memory.values(), *self._pinned.values()):
            with contextlib.suppress(BackendError):  # a lost GPU frees nothing, and has nothing
                memory.close()
        self._memory.clear()
        self._pinned.clear()
