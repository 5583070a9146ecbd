"""What the restore path asks of a library that runs networks. A new backend is one file and one line in `choose.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from .cuda_device import Device

# arithmetic; bf16 is made from the fp32 network, fp16 (GPUs only) and int8 have their own
Precision = Literal["fp32", "bf16", "fp16", "int8"]
Array = NDArray[np.generic]


class Session(Protocol):
    """A network, loaded and ready on one device. Not safe to share between threads."""

    backend: str
    device: str
    precision: str

    def run(self, inputs: dict[str, Array]) -> NDArray[np.float32]:
        """Evaluate the network once.

        Parameters
        ----------
        inputs : by the names of the bundle's ``input_names``; images (1, C, H, W) float32, C order

        Returns
        -------
        (1, 1, H, W) float32; valid until the next call

        Raises
        ------
        BackendError : the library failed; the message carries its cause
        """
        ...

    def close(self) -> None:
        """Free what the session holds. A closed session is not used again."""
        ...


class DeviceNetwork(Protocol):
    """A network whose tensors stay on a GPU; a session that has one shows it as ``on_device``.

    Shapes are the input's, (P, H, W); the output has (H, W). All tensors are float32 in C order.

    Raises
    ------
    DeviceMemoryError : the network's own memory does not fit
    BackendError : the library refuses a shape, or fails
    """

    device: Device
    largest_side_px: int

    @property
    def memory_bytes(self) -> int:
        """Device memory that the network holds beside its tensors, as far as it is known."""
        ...

    def prepare(self, shapes: Sequence[tuple[int, int, int]], input_address: int, output_address: int) -> bool:
        """Make ready for shapes that are evaluated one after another, and run each once.

        Returns whether a graph can capture `enqueue` for all of them.
        """
        ...

    def enqueue(self, stream: int, shape: tuple[int, int, int], input_address: int, output_address: int) -> None:
        """Put one evaluation on a stream. Allocates nothing and waits for nothing."""
        ...

    def release(self) -> None:
        """Free what `prepare` made, for all shapes."""
        ...


class Backend(Protocol):
    """A library: whether it can be used here, and how to open a session."""

    name: str
    networks: Mapping[str, str]  # arithmetic -> the bundle's network that it runs

    def unavailable(self, device: str) -> str | None:
        """Why the backend cannot serve ``device`` ("cpu" or "cuda") on this machine, or None if it can."""
        ...

    def precisions(self, device: str) -> tuple[Precision, ...]:
        """Arithmetic that the device runs well, fp32 first."""
        ...

    def open(self, network: bytes, *, device: str, precision: Precision, threads: int | None) -> Session:
        """Load an ONNX network and prepare it for arithmetic in ``precision``.

        ``network`` is the bundle's network that ``networks`` names for this precision; it runs as it is.

        Raises
        ------
        BackendError : the device or library cannot be used, or refuses the network
        """
        ...

    def version(self) -> str | None:
        """The library's version, or None where it is not installed."""
        ...
