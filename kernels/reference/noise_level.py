"""The noise level of a frame from its Laplacian.

Source: Immerkaer 1996, Computer Vision and Image Understanding 64:300 (the operator).
"""

from __future__ import annotations

import numpy as np

from .arrays import Floats

MEDIAN_OF_NORMAL = 0.6744897501960817  # of |x| for a unit normal x


def laplacian(image: Floats) -> Floats:
    """(H, W) to (H - 2, W - 2): ``[1 -2 1] x [1 -2 1]``; white noise of unit variance gives a variance of 36."""
    rows = image[:-2] - 2 * image[1:-1] + image[2:]
    response: Floats = rows[:, :-2] - 2 * rows[:, 1:-1] + rows[:, 2:]
    return response


def laplacian_noise(image: Floats) -> float:
    """Standard deviation of white noise: median of the Laplacian's magnitude; a smooth scene hardly counts."""
    return float(np.median(np.abs(laplacian(image)))) / (6 * MEDIAN_OF_NORMAL)
