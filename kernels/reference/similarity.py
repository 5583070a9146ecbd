"""How much two stabilised frames differ, in units of what noise alone explains.

Half the squared difference of two frames of one scene has the mean 1 at unit noise. ``similarity`` is the larger of

- the mean over the frame, each pixel cut off at ``CUT`` so that a few changed pixels do not count for the whole;
- the largest mean over blocks of 8 x 8 px, over what the largest of so many would be by noise alone (but for one pair
  in a hundred): a small object that moves is seen there.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from .arrays import Floats
from .blocks import block_means
from .temporal import noise_left

BLOCK_PX = 8
CUT = 9.0  # three standard deviations of the difference
SHARE_BELOW_CUT = 0.9865233  # mean of min(x^2, 9) for unit normal x
FALSE_ALARMS = 0.01


def similarity(z: Floats, previous: Floats, *, noise_correlation: tuple[float, float] = (0.0, 0.0)) -> float:
    """About 1 or less for two (H, W) frames of a static scene, more where something changed."""
    squared = (z - previous) ** 2 / 2
    overall = float(np.mean(np.minimum(squared, CUT))) / SHARE_BELOW_CUT
    block_px = min(BLOCK_PX, *z.shape)
    blocks = block_means(squared, block_px)
    return max(overall, float(blocks.max()) / largest_by_noise(blocks.size, block_px, noise_correlation))


def largest_by_noise(blocks: int, block_px: int, noise_correlation: tuple[float, float]) -> float:
    """Upper bound of the largest of so many block means of ``x^2``, x unit normal; one pair in a hundred is above it.

    Source: Wilson & Hilferty 1931, PNAS 17:684 (quantiles of chi-squared).
    """
    y, x = noise_correlation
    freedom = 1 / noise_left(block_px, (y * y, x * x))  # squares of shared noise correlate as c^2
    spread = 2 / (9 * freedom)
    return float((1 - spread + NormalDist().inv_cdf(1 - FALSE_ALARMS / blocks) * spread**0.5) ** 3)
