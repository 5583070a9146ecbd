"""Unit-variance coordinates back to photoelectrons and counts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from .. import reference
from .checks import Float32, number_or_map, single


def unstabilise(z: Float32, *, readout_noise_e: ArrayLike) -> Float32:
    """Unit-variance coordinates back to photoelectrons: ``(z/2)^2 - 3/8 - r^2``.

    Parameters
    ----------
    z : (H, W) float32
    readout_noise_e : scalar or (H, W) map, rms e-

    Returns
    -------
    (H, W) float32 photoelectrons, new array; not below ``-3/8 - r^2``

    Raises
    ------
    FrameError : a map of another shape

    Source: the algebraic inverse; exact where the network estimates the transform of the clean frame.
    """
    readout = number_or_map("readout_noise_e", readout_noise_e, z.shape)
    electrons = np.maximum(z, 0, dtype=np.float32)
    electrons *= electrons
    electrons *= np.float32(0.25)
    electrons -= single(reference.ANSCOMBE_OFFSET + readout**2)
    return electrons


def to_counts(
    electrons: Float32, dtype: DTypeLike, *, offset_adu: ArrayLike, gain_e_per_adu: ArrayLike
) -> NDArray[Any]:
    """Photoelectrons to camera counts: ``e / gain + offset``, rounded and clipped into an integer dtype.

    Parameters
    ----------
    electrons : (H, W) float32
    dtype : of the result; uint8 and uint16 are rounded and clipped, float32 is not
    offset_adu, gain_e_per_adu : scalars or (H, W) maps

    Returns
    -------
    (H, W) of ``dtype``, ADU
    """
    offset = number_or_map("offset_adu", offset_adu, electrons.shape)
    gain = number_or_map("gain_e_per_adu", gain_e_per_adu, electrons.shape)
    counts: Float32 = electrons * single(1.0 / gain)
    counts += single(offset)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return counts.astype(kind, copy=False)
    limits = np.iinfo(kind)
    np.rint(counts, out=counts)
    np.clip(counts, limits.min, limits.max, out=counts)
    return counts.astype(kind)
