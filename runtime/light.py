"""How the light of a whole scene changed from the frames so far to the new one: a lamp flickers, a dye bleaches.

In stabilised units ``z^2 = 4 (e + 3/8 + r^2)``, so a change of photoelectrons ``e -> gain e + shift`` is a line
through block means of ``z^2``. Blocks that do not lie on it (something moved there) are left out. Where no line
explains half of the frame, nothing is said: another scene is for the motion test.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..kernels import ops

BLOCK_PX: Final = 8
UNCHANGED: Final = (1.0, 0.0)
LARGEST_CHANGE: Final = 0.3
PRIOR_GAIN: Final = 0.03  # how far gain is expected from 1, and shift from 0 (z^2), from one frame to the next
PRIOR_SHIFT: Final = 0.4
OUTLIER: Final = 4.0  # standard deviations from the line
ROUNDS: Final = 3


def light_change(
    z: NDArray[np.float32],
    mean: NDArray[np.float32],
    variance: NDArray[np.float32],
    noise_correlation: tuple[float, float] = (0.0, 0.0),
) -> tuple[float, float]:
    """The line ``z^2 = gain mean^2 + shift`` between a frame and the mean of those before it.

    Parameters
    ----------
    z, mean : (H, W) float32, stabilised
    variance : (H, W) float32, of the mean, in units of one frame's
    noise_correlation : lag-1 correlation of the noise along (y, x)

    Returns
    -------
    (gain, shift); gain within 30 % of 1; (1, 0) where the frame is below 8 px a side or no line holds for half of it
    """
    if min(z.shape) < BLOCK_PX:
        return UNCHANGED
    share = ops.block_means(variance, BLOCK_PX).ravel().astype(np.float64)
    now = ops.block_means(z * z, BLOCK_PX).ravel().astype(np.float64) - 1  # the noise's own square
    past = ops.block_means(mean * mean, BLOCK_PX).ravel().astype(np.float64) - share
    # the noise of this average is independent of that of the difference, so that noise alone tilts no line
    level = np.maximum((share * now + past) / (1 + share), 1.0)
    alike = float(np.prod([(1 + max(c, 0.0)) / (1 - max(c, 0.0)) for c in noise_correlation]))
    weight = BLOCK_PX**2 / (alike * (1 + share) * (4 * level + 2))
    change, shift = float(np.median((now - past) / level)), 0.0
    kept = np.ones(level.shape, np.bool_)
    for _ in range(ROUNDS):
        kept = np.abs(now - past - change * level - shift) * np.sqrt(weight) < OUTLIER
        change, shift = _line(level[kept], (now - past)[kept], weight[kept])
    if 2 * np.count_nonzero(kept) < kept.size or abs(change) > LARGEST_CHANGE:
        return UNCHANGED
    return 1.0 + change, shift


def _line(x: NDArray[np.float64], y: NDArray[np.float64], weight: NDArray[np.float64]) -> tuple[float, float]:
    """Weighted least squares ``y = slope x + shift`` with priors around 0."""
    a = np.sum(weight * x * x) + 1 / PRIOR_GAIN**2
    b = np.sum(weight * x)
    c = np.sum(weight) + 1 / PRIOR_SHIFT**2
    p, q = np.sum(weight * x * y), np.sum(weight * y)
    determinant = a * c - b * b
    return float((c * p - b * q) / determinant), float((a * q - b * p) / determinant)
