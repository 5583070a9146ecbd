"""An image for the screen: 8 bits between two levels, through a lookup table."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .. import native, reference
from ..arguments import structure
from .checks import PIXEL_TYPES, FrameError, address, check_frame, output, rows_in_memory

GREY: Final = np.arange(256, dtype=np.uint8)


def preview_u8(
    image: NDArray[Any],
    *,
    low: float,
    high: float,
    lut: NDArray[np.uint8] | None = None,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """``lut[round(255 (image - low) / (high - low))]``, clipped; NaN is shown as black.

    Parameters
    ----------
    image : (H, W) uint8, uint16 or float32; any strides
    low, high : levels that are shown black and white, in the units of the image; low < high
    lut : (256,) uint8, or None for a straight grey
    out : (H, W) uint8, C order, to write into

    Returns
    -------
    (H, W) uint8: ``out``, or a new array

    Raises
    ------
    FrameError : an array of another shape or dtype, or low not below high, or one of them not finite
    """
    check_frame(image)
    if not -np.inf < low < high < np.inf:
        raise FrameError(f"low is {low}, high is {high}; expected low < high, two finite levels")
    table = GREY if lut is None else lut
    if table.shape != (256,) or table.dtype != np.uint8:
        raise FrameError(f"lut is {table.dtype} of shape {table.shape}; expected 256 uint8 greys")
    grey: NDArray[np.uint8] = output("out", out, image.shape, np.uint8)
    lib = native.library()
    if lib is None:
        grey[...] = reference.preview_u8(image.astype(np.float32), low, high, table)
        return grey
    rows = rows_in_memory(image)
    table = np.ascontiguousarray(table)
    lib.call("preview", structure("Preview")(
        image=address(rows), image_stride=rows.strides[0], height=image.shape[0], width=image.shape[1],
        pixel_type=PIXEL_TYPES[image.dtype.name], low=low, per_range=255.0 / (high - low),
        lut=None if lut is None else address(table), grey=address(grey),
    ))  # fmt: skip
    return grey
