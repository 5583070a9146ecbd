"""How sharp an image is: its power spectrum, averaged over rings."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RINGS = 32  # a ring of the smallest frame, 64 px, still has pixels


def radial_power(image: NDArray[np.floating], rings: int = RINGS) -> NDArray[np.float64]:
    """Mean power at every spatial frequency, 0 to half a cycle per pixel.

    Parameters
    ----------
    image : (H, W), any unit
    rings : frequencies; ring ``i`` reaches from ``i`` to ``i + 1`` of ``rings`` parts of half a cycle per pixel

    Returns
    -------
    (rings,) float64, squared units of the image per pixel; corners beyond half a cycle are left out. A Hann window
    keeps the jump between opposite borders out of the high frequencies.
    """
    height, width = image.shape
    window = np.outer(np.hanning(height), np.hanning(width))
    plane = (np.asarray(image, np.float64) - float(image.mean())) * window
    power = np.abs(np.fft.rfft2(plane)) ** 2 / np.sum(window**2)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    ring = np.floor(frequency * 2 * rings).astype(int).ravel()
    kept = ring < rings
    total = np.bincount(ring[kept], power.ravel()[kept], minlength=rings)
    return np.asarray(total / np.maximum(np.bincount(ring[kept], minlength=rings), 1), np.float64)
