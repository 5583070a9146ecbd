"""Means over square blocks of pixels."""

from __future__ import annotations

from .arrays import Floats


def block_means(image: Floats, block_px: int) -> Floats:
    """(H, W) to (H // block, W // block): means of whole blocks; a ragged edge is left out."""
    height, width = (n // block_px for n in image.shape)
    cropped = image[: height * block_px, : width * block_px]
    means: Floats = cropped.reshape(height, block_px, width, block_px).mean(axis=(1, 3))
    return means
