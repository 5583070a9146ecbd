"""Restored light agrees with measured light: the bias of a square-root-domain estimate, taken out per frame.

The network estimates the stabilised frame; squaring that estimate loses what it could not know, and a detector whose
counts are not quite Poisson shifts the darkest levels. Means over blocks of raw pixels are unbiased whatever the
distribution, so a line through (restored, measured) block means says what is missing: ``e <- gain * e + shift``. Both
numbers shrink to (1, 0) where the frame is too small or too dark to tell (a ridge prior).
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..kernels import ops
from .camera import Camera

BLOCK_PX: Final = 8
PRIOR_GAIN: Final = 0.03  # how far gain is expected from 1, and shift from 0 (photoelectrons)
PRIOR_SHIFT_E: Final = 0.1
LARGEST_GAIN_CHANGE: Final = 0.1


class Balance(NamedTuple):
    """``e <- max(0, gain * e + shift_e)`` makes restored light agree with measured light."""

    gain: float
    shift_e: float

    def apply(self, electrons: NDArray[np.float32]) -> NDArray[np.float32]:
        """Correct restored photoelectrons in place; light is never negative. Returns its argument."""
        electrons *= np.float32(self.gain)
        electrons += np.float32(self.shift_e)
        return np.maximum(electrons, 0, out=electrons)


def photon_balance(
    frame: NDArray[Any], electrons: NDArray[np.float32], camera: Camera, excluded: NDArray[np.bool_] | None = None
) -> Balance:
    """The line that brings restored block means to the measured ones.

    Parameters
    ----------
    frame : (H, W) raw counts, finite
    electrons : (H, W) restored photoelectrons
    excluded : pixels that say nothing about the light (full, missing); their blocks are left out

    Returns
    -------
    Balance; gain within 10 % of 1; (1, 0) where no block is left
    """
    restored = ops.block_means(electrons, BLOCK_PX).ravel().astype(np.float64)
    measured = _measured_blocks(frame, camera).ravel().astype(np.float64)
    if excluded is not None:
        kept = ops.block_means(excluded, BLOCK_PX).ravel() == 0
        restored, measured = restored[kept], measured[kept]
    if not restored.size:
        return Balance(1.0, 0.0)
    alike = float(np.prod([(1 + max(c, 0.0)) / (1 - max(c, 0.0)) for c in camera.noise_correlation]))
    readout = camera.mean_readout_variance_e2
    weight = BLOCK_PX**2 / (alike * (np.maximum(restored, 0.05) + readout))
    missing = measured - restored
    # normal equations of weighted least squares for (gain - 1, shift), with the priors on the diagonal
    a = np.sum(weight * restored**2) + 1 / PRIOR_GAIN**2
    b = np.sum(weight * restored)
    c = np.sum(weight) + 1 / PRIOR_SHIFT_E**2
    p, q = np.sum(weight * restored * missing), np.sum(weight * missing)
    determinant = a * c - b * b
    change = float(np.clip((c * p - b * q) / determinant, -LARGEST_GAIN_CHANGE, LARGEST_GAIN_CHANGE))
    return Balance(1.0 + change, float((q - b * change) / c))


def _measured_blocks(frame: NDArray[Any], camera: Camera) -> NDArray[np.float32]:
    """Block means of the raw frame in photoelectrons."""
    return ops.block_means(frame, BLOCK_PX, scale=camera.gain_e_per_adu, bias=camera.dark_e)
