"""What a restoration takes and writes into: checked at the door, pixels without a count bridged."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..kernels import ops
from . import pixel_integration
from .errors import ShapeError
from .plan import MINIMUM_SIDE_PX
from .tiling import pad_to_multiple

MAXIMUM_SIDE_PX: Final = 8192


def check_frames(frames: NDArray[Any], scale: int, what: str = "frames", *, stack: bool = True) -> None:
    """A ShapeError where these are not frames that a bundle of this scale takes.

    Parameters
    ----------
    frames : (H, W), or (T, H, W) where ``stack``
    scale : of the bundle: 2 for super-resolution by two
    what : the caller's name for them
    stack : whether a stack is taken as well
    """
    if not isinstance(frames, np.ndarray):
        raise ShapeError(f"{what}: got a {type(frames).__name__}; expected a NumPy array, see numpy.asarray")
    if frames.dtype.name not in ops.FRAME_DTYPES:
        raise ShapeError(
            f"{what}: dtype is {frames.dtype}; expected {', '.join(ops.FRAME_DTYPES)}: {_how_to_convert(frames.dtype)}"
        )
    if not stack and frames.ndim != 2:
        raise ShapeError(
            f"{what}: shape is {frames.shape}; expected (H, W): pass a stack plane by plane, and one channel of colours"
        )
    if frames.ndim not in (2, 3) or not frames.size:
        raise ShapeError(f"{what}: shape is {frames.shape}; expected (H, W) or (T, H, W) with at least one plane")
    if frames.ndim == 3 and frames.shape[-1] in (3, 4):
        raise ShapeError(
            f"{what}: shape is {frames.shape}, which looks like colours; expected (H, W) or (T, H, W): "
            "pass one channel, frames[..., 0]"
        )
    low, high, most = min(frames.shape[-2:]), max(frames.shape[-2:]), MAXIMUM_SIDE_PX // scale
    if low < MINIMUM_SIDE_PX or high > most:
        raise ShapeError(
            f"{what}: a plane has {frames.shape[-2]}x{frames.shape[-1]} px; expected {MINIMUM_SIDE_PX} to {most} px "
            "a side: pad or crop"
        )


def _how_to_convert(dtype: np.dtype[Any]) -> str:
    if dtype.kind == "f":
        return "convert with astype(numpy.float32)"
    if dtype.kind in "iu":
        return "convert with astype(numpy.uint16) where all counts are from 0 to 65535, else astype(numpy.float32)"
    return "pass the camera's counts"


def output_array(out: NDArray[Any] | None, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    if out is None:
        return np.empty(shape, dtype)
    if not isinstance(out, np.ndarray) or out.shape != shape or out.dtype != dtype or not out.flags.c_contiguous:
        got = f"{out.dtype} of shape {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
        raise ShapeError(f"out is {got}; expected {dtype} of shape {shape} in C order")
    if not out.flags.writeable:
        raise ShapeError("out is read-only; expected an array that the image can be written into")
    return out


def bridge_missing(frame: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """The frame with NaN, infinite and fill values replaced by the median of the others, and where they were."""
    if frame.dtype.kind != "f":
        return frame, None
    missing = ~ops.usable_pixels(frame)
    if not missing.any():
        return frame, None
    if missing.all():
        raise ShapeError("a plane holds no finite pixel; expected some signal: leave the plane out")
    return np.where(missing, np.median(frame[~missing]), frame).astype(np.float32), missing


def padded_map(noise: float | NDArray[np.float32], scale: int, multiple: int) -> float | NDArray[np.float32]:
    """A noise level on the network's grid: a number as it is, a map enlarged and padded."""
    if isinstance(noise, float):
        return noise
    return pad_to_multiple(pixel_integration.fine(noise, scale), multiple)


def either(a: NDArray[np.bool_] | None, b: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    """Where one of two masks is set; None for none."""
    if a is None or b is None:
        return b if a is None else a
    return a | b
