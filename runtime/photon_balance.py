"""Restored light sums to measured light: the small bias of a square-root-domain estimate, taken out per frame.

The network estimates the stabilised frame; squaring that estimate loses its remaining variance, a few per cent at a
few photons. The raw frame's sum is unbiased and, over many pixels, almost free of noise, so one factor per frame
brings the restored sum back to it. Where the raw sum itself is uncertain (small or dark frames) the factor shrinks
towards 1.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .camera import Camera

PRIOR_RELATIVE_BIAS: Final = 0.03  # how large a bias is expected, for weighing it against the noise of the raw sum
LARGEST_CORRECTION: Final = 0.1


def balance_factor(
    frame: NDArray[Any], electrons: NDArray[np.float32], camera: Camera, excluded: NDArray[np.bool_] | None = None
) -> float:
    """Factor on ``electrons`` that brings their sum to the measured one.

    Parameters
    ----------
    frame : (H, W) raw counts, finite where not excluded
    electrons : (H, W) restored photoelectrons
    excluded : pixels that say nothing about the light (full, missing), or None

    Returns
    -------
    1 within 10 %; exactly 1 where nothing was measured
    """
    measured, restored = measured_mean(frame, camera, excluded), _mean(electrons, excluded)
    if not (measured > 0 and restored > 0):
        return 1.0
    count = frame.size if excluded is None else int(np.count_nonzero(~excluded))
    alike = np.prod([(1 + max(c, 0.0)) / (1 - max(c, 0.0)) for c in camera.noise_correlation])
    variance = (measured + float(np.mean(np.square(camera.readout_noise_e)))) * float(alike) / count
    weight = PRIOR_RELATIVE_BIAS**2 / (PRIOR_RELATIVE_BIAS**2 + variance / measured**2)
    correction = weight * (measured / restored - 1)
    return 1.0 + min(max(correction, -LARGEST_CORRECTION), LARGEST_CORRECTION)


def measured_mean(frame: NDArray[Any], camera: Camera, excluded: NDArray[np.bool_] | None = None) -> float:
    """Mean photoelectrons of the raw frame over the pixels that count."""
    if camera.map_shape is None and excluded is None:
        return (_mean(frame, None) - float(camera.offset_adu)) * float(camera.gain_e_per_adu)
    return _mean((frame - camera.offset_adu) * camera.gain_e_per_adu, excluded)


def _mean(image: NDArray[Any], excluded: NDArray[np.bool_] | None) -> float:
    if excluded is None:  # integers add exactly in 64 bits; NumPy adds float32 pairwise, good to a part in a million
        return float(image.sum(dtype=np.uint64 if image.dtype.kind == "u" else None)) / image.size
    return float(np.mean(image[~excluded], dtype=np.float64)) if not excluded.all() else 0.0
