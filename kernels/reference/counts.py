"""Unit-variance coordinates back to photoelectrons and counts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import Floats, Number, Scalar
from .stabilise import ANSCOMBE_OFFSET


def inverse_anscombe(z: Floats, readout_noise_e: Scalar) -> Floats:
    """``e = (z / 2)^2 - 3/8 - r^2``: exact for a network that was trained on the transform of the clean frame."""
    electrons: Floats = (np.maximum(z, 0) / 2) ** 2 - (ANSCOMBE_OFFSET + readout_noise_e**2)
    return electrons


def unbiased_inverse(z: Floats, readout_noise_e: Scalar) -> Floats:
    """Exact unbiased inverse, for an estimate of E[z] (a network trained on noisy targets); closed form.

    Source: Makitalo & Foi 2013, IEEE TIP 22:91 (Gaussian noise); 2011, IEEE TIP 20:2697 (the closed form).
    """
    d = np.maximum(z, 2 * ANSCOMBE_OFFSET**0.5)
    root = 1.5**0.5
    series = 0.25 * root / d - 11 / 8 / d**2 + 5 / 8 * root / d**3
    electrons: Floats = d * d / 4 + series - 1 / 8 - readout_noise_e**2
    return electrons


def balanced(electrons: Floats, gain: Number, shift_e: Number) -> Floats:
    """``max(0, gain e + shift)``: light is never negative."""
    light: Floats = np.maximum(electrons * gain + shift_e, 0)
    return light


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
