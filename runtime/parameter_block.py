"""The argument structures of one recording side by side: written by the host, copied whole, read by kernels.

block = ParameterBlock(device, [("stabilise", "Stabilise", 1), ("rows", "SamplerRow", 4)])
block["stabilise"].height = 512                     # in pinned memory; sent by block.send()
device.launch("ps_stabilise", grid, block.address("stabilise"))
block.fetch() ... block.result("counts").light      # what kernels wrote, once the device was waited for
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Final

from ..kernels.arguments import structure
from .backends.cuda_device import Device

ALIGNMENT: Final = 64


class ParameterBlock:
    """Structures by name, ``(name, kind, count)``; count above 1 makes an array."""

    def __init__(self, device: Device, entries: Sequence[tuple[str, str, int]]) -> None:
        self._device = device
        self._places: dict[str, tuple[int, Any, int]] = {}
        size = 0
        for name, kind, count in entries:
            type_ = structure(kind)
            self._places[name] = size, type_, count
            size += -(-ctypes.sizeof(type_) * count // ALIGNMENT) * ALIGNMENT
        self._host, self._results = device.allocate_pinned(size), device.allocate_pinned(size)
        self._device_memory = device.allocate(size)
        self._host.array[:] = 0

    def __getitem__(self, name: str) -> Any:
        """The one structure of that name in pinned memory."""
        return self.at(name, 0)

    def at(self, name: str, index: int) -> Any:
        """One structure of an array."""
        offset, type_, _ = self._places[name]
        return type_.from_buffer(self._host.array, offset + index * ctypes.sizeof(type_))

    def address(self, name: str, index: int = 0) -> int:
        """Where it stands on the device."""
        offset, type_, _ = self._places[name]
        return self._device_memory.address + offset + index * ctypes.sizeof(type_)

    def result(self, name: str) -> Any:
        """A copy of the structure as it came back with the last `fetch`."""
        offset, type_, _ = self._places[name]
        return type_.from_buffer_copy(self._results.array, offset)

    def send(self) -> None:
        self._device.upload(self._device_memory, self._host)

    def fetch(self) -> None:
        self._device.download(self._results, self._device_memory)

    def close(self) -> None:
        for memory in (self._host, self._results, self._device_memory):
            memory.close()
