"""What the restore path asks of a library that runs networks. A new backend is one file and one line in `choose.py`."""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Precision = Literal["fp32", "bf16", "int8"]  # arithmetic; bf16 is made from the fp32 network, int8 has its own
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


class Backend(Protocol):
    """A library: whether it can be used here, and how to open a session."""

    name: str

    def unavailable(self, device: str) -> str | None:
        """Why the backend cannot serve ``device`` ("cpu" or "cuda") on this machine, or None if it can."""
        ...

    def precisions(self, device: str) -> tuple[Precision, ...]:
        """Arithmetic that the device runs well, fp32 first."""
        ...

    def open(self, network: bytes, *, device: str, precision: Precision, threads: int | None) -> Session:
        """Load an ONNX network and prepare it for arithmetic in ``precision``.

        ``network`` is the bundle's fp32 network, or for "int8" its quantised one, which runs as it is.

        Raises
        ------
        BackendError : the device or library cannot be used, or refuses the network
        """
        ...

    def version(self) -> str | None:
        """The library's version, or None where it is not installed."""
        ...
