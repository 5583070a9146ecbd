"""Unit-variance coordinates back to photoelectrons and counts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import Floats, Scalar
from .stabilise import ANSCOMBE_OFFSET


def inverse_anscombe(z: Floats, readout_noise_e: Scalar) -> Floats:
    """``e = (z / 2)^2 - 3/8 - r^2``: exact for a network that was trained on the transform of the clean frame."""
    electrons: Floats = (np.maximum(z, 0) / 2) ** 2 - (ANSCOMBE_OFFSET + readout_noise_e**2)
    return electrons


def to_adu(electrons: Floats, offset_adu: Scalar, gain_e_per_adu: Scalar) -> Floats:
    """``frame = e / gain + offset``."""
    counts: Floats = electrons / gain_e_per_adu + offset_adu
    return counts


def round_and_clip(values: Floats, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Round half to even and clip into an integer dtype; a float dtype is only converted."""
    if dtype.kind == "f":
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(values), limits.min, limits.max).astype(dtype)
