"""What every entry point verifies before anything runs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float32 = NDArray[np.float32]
FRAME_DTYPES = ("uint8", "uint16", "float32")


class FrameError(ValueError):
    """An array that a kernel cannot take; the runtime turns it into a `ShapeError`."""


def check_frame(frame: NDArray[Any]) -> None:
    if not isinstance(frame, np.ndarray):
        raise FrameError(f"frame is a {type(frame).__name__}; expected a NumPy array, see numpy.asarray")
    if frame.ndim != 2:
        raise FrameError(f"frame has shape {frame.shape}; expected two axes (H, W)")
    if frame.dtype.name not in FRAME_DTYPES:
        raise FrameError(f"frame is {frame.dtype}; expected {', '.join(FRAME_DTYPES)}: convert it with astype")


def number_or_map(name: str, value: ArrayLike, shape: tuple[int, ...]) -> Any:
    array = np.asarray(value, dtype=np.float64 if np.ndim(value) == 0 else np.float32)
    if array.ndim and array.shape != shape:
        raise FrameError(
            f"{name} map is {array.shape}, frame is {shape}; crop the map to the camera's region of interest"
        )
    return array if array.ndim else float(array)


def single(value: Any) -> Any:
    """float32 of a number or map, so that NumPy does not widen the work array."""
    return value.astype(np.float32, copy=False) if isinstance(value, np.ndarray) else np.float32(value)
