"""A thin layer over ``cuda.core``: what the device path asks of a GPU, and nothing else.

`Device` is a protocol, so that a recorded fake can stand in a GPU's place in tests. Everything is asynchronous on one
stream of the device's own; `Device.synchronise` alone waits.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from ...kernels import cuda
from ...kernels.grids import KERNELS, THREADS
from ...kernels.native import KernelError
from ..errors import BackendError

Bytes = NDArray[np.uint8]


class DeviceMemoryError(BackendError):
    """The GPU has not enough free memory for what was asked."""


class Memory(Protocol):
    """Memory on the device. ``address`` is what kernels are given."""

    address: int
    size: int

    def close(self) -> None:
        """Free it. Closing twice is no error."""
        ...


class PinnedMemory(Memory, Protocol):
    """Memory of the host that the device copies from and to by itself; ``array`` is (size,) uint8."""

    array: Bytes


class Graph(Protocol):
    """Recorded work that runs as a whole."""

    def launch(self) -> None: ...

    def close(self) -> None: ...


class Event(Protocol):
    """A point on the stream."""

    def since(self, earlier: Any) -> float:
        """Milliseconds between two events, both passed."""
        ...


class Device(Protocol):
    """One GPU and one stream on it. Every method but `synchronise` returns at once.

    Raises
    ------
    DeviceMemoryError : allocations that do not fit
    BackendError : whatever else the driver refuses; the message carries its cause
    """

    name: str
    arch: str
    stream: int  # the handle that other libraries are given

    def allocate(self, size: int) -> Memory: ...

    def allocate_pinned(self, size: int) -> PinnedMemory: ...

    def upload(self, to: Memory, source: PinnedMemory) -> None:
        """Copy all of ``source`` to memory of the same size."""
        ...

    def download(self, to: PinnedMemory, source: Memory) -> None: ...

    def launch(self, kernel: str, grid: tuple[int, int], arguments: int) -> None:
        """Run a kernel of `kernels.grids` with the argument structure at a device address."""
        ...

    def capture(self, work: Callable[[], None]) -> Graph:
        """Record what ``work`` puts on the stream, without running it."""
        ...

    def event(self) -> Event: ...

    def synchronise(self) -> None: ...

    def close(self) -> None: ...


PACKAGE: Final = "cuda-core"


def unavailable() -> str | None:
    """Why no GPU can be used here, or None. Asks the driver; makes no context."""
    try:
        from cuda.core import Device as CudaDevice
    except Exception as error:  # ImportError, or what its libraries raise
        return f"{PACKAGE} cannot be imported ({error}); install it with: {cuda.INSTALL}"
    try:
        found = list(CudaDevice.get_all_devices())
    except Exception as error:  # cuda.core has no common base for a missing driver and a failing one
        return f"there is no usable NVIDIA driver ({_first_line(error)}); install the driver of your GPU"
    if not found:
        return "the NVIDIA driver shows no GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES"
    return None


def open_device(index: int = 0) -> Device:
    """The GPU of an index, with the kernels loaded.

    Raises
    ------
    BackendError : none can be used here, or its kernels cannot be compiled; the message names the cause
    """
    cause = unavailable()
    if cause:
        raise BackendError(cause)
    return CudaDevice(index)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def _told(what: str) -> Iterator[None]:
    """The driver's errors in our words; an allocation that does not fit is told apart."""
    try:
        yield
    except BackendError:
        raise
    except Exception as error:  # cuda.core's own errors have no public base
        if "OUT_OF_MEMORY" in str(error):
            raise DeviceMemoryError(f"{what}: the GPU has not enough free memory; close what else uses it") from error
        raise BackendError(f"{what} failed on the GPU: {_first_line(error)}") from error


class _Buffer:
    def __init__(self, buffer: Any, size: int, stream: Any) -> None:
        self._buffer, self._stream = buffer, stream
        self.address, self.size = int(buffer.handle), size

    @property
    def buffer(self) -> Any:
        return self._buffer

    def close(self) -> None:
        if self._buffer is not None:
            self._buffer.close(self._stream)
            self._buffer = None


class _PinnedBuffer(_Buffer):
    def __init__(self, buffer: Any, size: int) -> None:
        super().__init__(buffer, size, None)
        self.array: Bytes = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self.address))


class _Graph:
    def __init__(self, graph: Any, stream: Any) -> None:
        self._graph, self._stream = graph, stream

    def launch(self) -> None:
        with _told("running the captured graph"):
            self._graph.launch(self._stream)

    def close(self) -> None:
        if self._graph is not None:
            self._graph.close()
            self._graph = None


class _Event:
    def __init__(self, event: Any) -> None:
        self._event = event

    def since(self, earlier: _Event) -> float:
        with _told("reading an event"):
            return float(self._event - earlier._event)


class CudaDevice:
    """A GPU through ``cuda.core``."""

    def __init__(self, index: int = 0) -> None:
        import cuda.core as core

        self._core = core
        with _told("opening the device"):
            self._device = core.Device(index)
            self._device.set_current()
            self._stream: Any = self._device.create_stream(options=core.StreamOptions(nonblocking=True))
            self._pinned = core.LegacyPinnedMemoryResource()
            self.name, self.arch = str(self._device.name), f"sm_{self._device.arch}"
            self.stream = int(self._stream.handle)
        self._target: Any = self._stream  # the stream, or the builder of a graph while one is recorded
        self._kernels = self._load()
        self._configurations: dict[tuple[int, int], Any] = {}

    def _load(self) -> dict[str, Any]:
        try:
            module = self._core.ObjectCode.from_cubin(cuda.binary(self.arch))
        except KernelError as error:
            raise BackendError(str(error)) from error
        with _told("loading the kernels"):
            return {name: module.get_kernel(name) for name in KERNELS}

    def allocate(self, size: int) -> _Buffer:
        with _told(f"allocating {size} bytes"):
            return _Buffer(self._device.allocate(size, stream=self._stream), size, self._stream)

    def allocate_pinned(self, size: int) -> _PinnedBuffer:
        with _told(f"pinning {size} bytes of host memory"):
            return _PinnedBuffer(self._pinned.allocate(size), size)

    def upload(self, to: Any, source: Any) -> None:
        with _told("copying to the device"):
            to.buffer.copy_from(source.buffer, stream=self._target)

    def download(self, to: Any, source: Any) -> None:
        with _told("copying from the device"):
            to.buffer.copy_from(source.buffer, stream=self._target)

    def launch(self, kernel: str, grid: tuple[int, int], arguments: int) -> None:
        configuration = self._configurations.get(grid)
        if configuration is None:
            configuration = self._configurations[grid] = self._core.LaunchConfig(grid=grid, block=THREADS)
        with _told(f"launching {kernel}"):
            self._core.launch(self._target, configuration, self._kernels[kernel], arguments)

    def capture(self, work: Callable[[], None]) -> _Graph:
        with _told("capturing a graph"):
            builder = self._stream.create_graph_builder()
            builder.begin_building()
        self._target = builder
        try:
            work()
        finally:
            self._target = self._stream
            with _told("capturing a graph"):
                builder.end_building()  # ends the capture even where the work failed: the stream stays usable
        with _told("instantiating a graph"):
            graph = builder.complete(self._core.graph.GraphCompleteOptions(upload_stream=self._stream))
            builder.close()
        return _Graph(graph, self._stream)

    def event(self) -> _Event:
        with _told("recording an event"):
            return _Event(self._target.record(options=self._core.EventOptions(timing_enabled=True)))

    def synchronise(self) -> None:
        with _told("the work on the stream"):
            self._stream.sync()

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = self._target = None
            self._kernels = {}
