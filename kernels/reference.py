"""The per-pixel maths as plain NumPy formulas in the dtype of their input: the oracle for every faster version.

With photoelectrons ``e`` distributed as Poisson(lambda) + N(0, r^2), the generalised Anscombe transform
``z = 2 sqrt(e + 3/8 + r^2)`` has noise of unit variance to a good approximation.

Source: Starck, Murtagh & Bijaoui 1998 (generalised Anscombe transform); Makitalo & Foi 2013, IEEE TIP 22:91.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Scalar = float | Floats

ANSCOMBE_OFFSET = 0.375
# Catmull-Rom weights of the four pixels around a point a quarter of a pixel below the third one's centre.
UPSAMPLE_TAPS = (-0.0234375, 0.2265625, 0.8671875, -0.0703125)


def to_photoelectrons(frame: Floats, offset_adu: Scalar, gain_e_per_adu: Scalar) -> Floats:
    """``e = (frame - offset) * gain``; may be negative."""
    electrons: Floats = (frame - offset_adu) * gain_e_per_adu
    return electrons


def to_adu(electrons: Floats, offset_adu: Scalar, gain_e_per_adu: Scalar) -> Floats:
    """``frame = e / gain + offset``."""
    counts: Floats = electrons / gain_e_per_adu + offset_adu
    return counts


def anscombe(electrons: Floats, readout_noise_e: Scalar) -> Floats:
    """``z = 2 sqrt(max(0, e + 3/8 + r^2))``."""
    z: Floats = 2 * np.sqrt(np.maximum(electrons + (ANSCOMBE_OFFSET + readout_noise_e**2), 0))
    return z


def inverse_anscombe(z: Floats, readout_noise_e: Scalar) -> Floats:
    """``e = (z / 2)^2 - 3/8 - r^2``: exact for a network that was trained on the transform of the clean frame."""
    electrons: Floats = (np.maximum(z, 0) / 2) ** 2 - (ANSCOMBE_OFFSET + readout_noise_e**2)
    return electrons


def block_means(image: Floats, block_px: int) -> Floats:
    """(H, W) to (H // block, W // block): means of whole blocks; a ragged edge is left out."""
    height, width = (n // block_px for n in image.shape)
    cropped = image[: height * block_px, : width * block_px]
    means: Floats = cropped.reshape(height, block_px, width, block_px).mean(axis=(1, 3))
    return means


def upsample2(image: Floats) -> Floats:
    """(H, W) to (2H, 2W): two fine pixels tile a coarse one, so they lie a quarter of a coarse pixel off its centre."""
    for axis in (0, 1):
        first = np.moveaxis(image, axis, 0)
        padded = np.concatenate([first[:1], first[:1], first, first[-1:], first[-1:]])
        n = len(first)
        below = sum((w * padded[k : k + n] for k, w in enumerate(UPSAMPLE_TAPS)), np.zeros_like(first))
        above = sum((w * padded[k + 1 : k + 1 + n] for k, w in enumerate(UPSAMPLE_TAPS[::-1])), np.zeros_like(first))
        paired = np.stack([below, above], axis=1).reshape(2 * n, *first.shape[1:])
        image = np.moveaxis(paired, 0, axis)
    return image


def round_and_clip(values: Floats, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Round half to even and clip into an integer dtype; a float dtype is only converted."""
    if dtype.kind == "f":
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(values), limits.min, limits.max).astype(dtype)


def lag_products(residual: Floats) -> tuple[float, float, float]:
    """Mean of ``r^2``, of ``r(y) r(y+1)`` and of ``r(x) r(x+1)``: variance and lag-1 autocovariances along y and x."""
    return (
        float(np.mean(residual * residual)),
        float(np.mean(residual[1:] * residual[:-1])),
        float(np.mean(residual[:, 1:] * residual[:, :-1])),
    )
