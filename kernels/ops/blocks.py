"""Means over square blocks of pixels."""

from __future__ import annotations

import numpy as np

from .checks import Float32, FrameError


def block_means(image: Float32, block_px: int) -> Float32:
    """Means of whole ``block_px`` squares, (H // block, W // block) float32; a ragged edge is left out.

    Raises
    ------
    FrameError : the image holds no whole block
    """
    height, width = image.shape[0] // block_px, image.shape[1] // block_px
    if not height or not width:
        raise FrameError(f"image is {image.shape}; expected at least one block of {block_px}x{block_px} px")
    cropped = image[: height * block_px, : width * block_px]
    rows = cropped[::block_px].astype(np.float32)
    for offset in range(1, block_px):  # whole rows at a time: the fast direction in memory
        rows += cropped[offset::block_px]
    means = np.ascontiguousarray(rows[:, ::block_px])
    for offset in range(1, block_px):
        means += rows[:, offset::block_px]
    means *= np.float32(1 / block_px**2)
    return means
