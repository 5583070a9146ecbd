"""Structure where there is none: detections in restored frames of an evenly lit, empty field.

A detection is a local maximum that stands out of the restored frame's median by more than `THRESHOLD` times the
expected residual: the standard deviation that the mean of a diffraction-limited spot's pixels (5 x 5) has in the *raw*
frame. A noise-free blank field has none at any light level, and a bump above it is one that a microscopist, who knows
the noise, would call significant. Both networks restore the same frames and are counted against the same threshold.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .noise_bins import READOUT_NOISE_E, Noise

SPOT_PX = 5
THRESHOLD = 3.0


def threshold_e(photons: float, noise: Noise) -> float:
    """Height above the median that counts as a detection, photoelectrons."""
    per_pixel = float(np.sqrt(photons + READOUT_NOISE_E**2))
    return THRESHOLD * per_pixel * noise.block_mean_std(SPOT_PX)


def count_detections(restored_e: NDArray[np.floating], photons: float, noise: Noise, scale: int = 1) -> int:
    """Local maxima of a restored blank field above the threshold.

    Parameters
    ----------
    restored_e : (H, W) photoelectrons
    photons : mean photoelectrons per pixel of the blank field
    scale : restored pixels per frame pixel and axis; a spot is as many times as wide
    """
    height = np.asarray(restored_e, np.float64) - float(np.median(restored_e))
    # a plateau is one detection, however many pixels it has
    peaks = (ndimage.maximum_filter(height, SPOT_PX * scale) == height) & (height > threshold_e(photons, noise))
    _, count = ndimage.label(peaks, structure=np.ones((3, 3)))
    return int(count)
