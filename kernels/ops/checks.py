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


PIXEL_TYPES = {"uint8": 0, "uint16": 1, "float32": 2}  # arguments.cuh, PixelType


def rows_in_memory(image: NDArray[Any]) -> NDArray[Any]:
    """The image itself where the pixels of a row are neighbours in memory and in native byte order, or a copy."""
    if image.strides[1] == image.itemsize and image.dtype.isnative and image.flags.aligned:
        return image
    return in_c_order(image, image.dtype.newbyteorder("="))


def in_c_order(image: NDArray[Any], dtype: Any) -> NDArray[Any]:
    """The image in C order and aligned for its dtype, copied only where it is not."""
    array = np.ascontiguousarray(image, dtype)
    return array if array.flags.aligned else array.copy()


def check_writable(name: str, out: NDArray[Any]) -> None:
    """That a kernel, which knows addresses only, may write numbers into this array."""
    if not out.flags.writeable:
        raise FrameError(f"{name} is read-only; expected an array to write into")
    if not out.dtype.isnative or not out.flags.aligned:
        fault = "not aligned for its dtype" if out.dtype.isnative else "of foreign byte order"
        raise FrameError(f"{name} is {fault}; write into an array of numpy.empty and convert that")


def output(name: str, out: NDArray[Any] | None, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """``out`` where it fits, or a new array; a kernel writes every pixel of it."""
    if out is None:
        return np.empty(shape, dtype)
    if not isinstance(out, np.ndarray) or out.shape != shape or out.dtype != dtype or not out.flags.c_contiguous:
        got = f"{out.dtype} of shape {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
        raise FrameError(f"{name} is {got}; expected {np.dtype(dtype)} of shape {shape} in C order")
    check_writable(name, out)
    return out


def float_image(name: str, image: NDArray[Any], shape: tuple[int, ...] | None = None) -> Float32:
    """The image in C order, after a check that it is (H, W) float32 (of ``shape``)."""
    if not isinstance(image, np.ndarray) or image.ndim != 2 or image.dtype != np.float32:
        got = f"{image.dtype} of shape {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise FrameError(f"{name} is {got}; expected (H, W) float32")
    if shape is not None and image.shape != shape:
        raise FrameError(f"{name} has shape {image.shape}; expected {shape}")
    return in_c_order(image, np.float32)


def scalar_and_map(value: Any, shape: tuple[int, ...]) -> tuple[float, Float32 | None]:
    """A number or a map as what the kernels take: (number, None), or (0, map in C order)."""
    if isinstance(value, np.ndarray) and value.ndim:
        if value.shape != shape:
            raise FrameError(
                f"a map is {value.shape}, the frame {shape}; crop the map to the camera's region of interest"
            )
        return 0.0, in_c_order(value, np.float32)
    return float(value), None


def both_numbers_or_maps(first: Any, second: Any) -> tuple[Any, Any]:
    """Two numbers, or two maps in C order where either is one: the kernels take no mixture."""
    if not np.ndim(first) and not np.ndim(second):
        return first, second
    one, other = np.broadcast_arrays(first, second)
    return in_c_order(one, np.float32), in_c_order(other, np.float32)


def address(array: NDArray[Any] | None) -> int | None:
    """Where an array's data lie; None for none."""
    return None if array is None else int(array.ctypes.data)
