"""Unit-variance coordinates to what a network is fed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .arrays import Floats, Number


def to_model(z: Floats, per_span: Number, shift: Number) -> Floats:
    """``u = z / span - centre / span``."""
    u: Floats = z * per_span - shift
    return u


def from_model(u: Floats, span: Number, centre: Number) -> Floats:
    """``z = u span + centre``."""
    z: Floats = u * span + centre
    return z


def pixel_unshuffle(image: Floats, factor: int) -> Floats:
    """(H, W) to (factor^2, H // factor, W // factor), channel = (y % factor) factor + x % factor."""
    height, width = (n // factor for n in image.shape)
    cells = image.reshape(height, factor, width, factor).transpose(1, 3, 0, 2)
    return cells.reshape(factor * factor, height, width)


def bfloat16_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The upper half of every float, rounded half to even; NaN stays NaN."""
    bits = values.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)
