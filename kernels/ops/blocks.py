"""Means over square blocks of pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import native, reference
from ..arguments import structure
from .checks import (
    PIXEL_TYPES,
    Float32,
    FrameError,
    address,
    both_numbers_or_maps,
    rows_in_memory,
    scalar_and_map,
    single,
)  # fmt: skip

LARGEST_BLOCK_PX = 1024


def block_means(image: NDArray[Any], block_px: int, *, scale: Any = 1.0, bias: Any = 0.0) -> Float32:
    """Means of ``image scale + bias`` over whole ``block_px`` squares; a ragged edge is left out.

    Parameters
    ----------
    image : (H, W) uint8, uint16, float32 or bool; any strides
    scale, bias : scalars, or both (H, W) maps

    Returns
    -------
    (H // block, W // block) float32

    Raises
    ------
    FrameError : the image holds no whole block, or a map of another shape
    """
    if image.ndim != 2 or not 1 <= block_px <= min(*image.shape, LARGEST_BLOCK_PX):
        raise FrameError(
            f"image is {image.shape}; expected (H, W) with at least one block of {block_px}x{block_px} px, blocks of 1 "
            f"to {LARGEST_BLOCK_PX} px a side"
        )
    height, width = image.shape[0] // block_px, image.shape[1] // block_px
    image = image.view(np.uint8) if image.dtype == np.bool_ else image
    if image.dtype.name not in PIXEL_TYPES:
        image = image.astype(np.float32)
    lib = native.library()
    if lib is None:
        seen = image.astype(np.float32, order="C") * single(scale) + single(bias)
        return np.ascontiguousarray(reference.block_means(seen, block_px), np.float32)
    scale, bias = both_numbers_or_maps(scale, bias)
    (scale_number, scale_map), (bias_number, bias_map) = (scalar_and_map(v, image.shape) for v in (scale, bias))
    rows = rows_in_memory(image)
    means = np.empty((height, width), np.float32)
    lib.call("block_means", structure("BlockMeans")(
        image=address(rows), image_stride=rows.strides[0], height=image.shape[0], width=image.shape[1], block=block_px,
        pixel_type=PIXEL_TYPES[image.dtype.name], scale=scale_number, bias=bias_number,
        scale_map=address(scale_map), bias_map=address(bias_map), means=address(means),
    ))  # fmt: skip
    return means
