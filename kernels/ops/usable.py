"""Pixels of a float frame that hold counts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGEST_COUNT = 1e9  # a float pixel beyond it is a fill value or a fault, not light


def usable_pixels(frame: NDArray[Any]) -> NDArray[np.bool_]:
    """Where a float frame holds counts, not NaN, infinity or a fill value beyond ``LARGEST_COUNT``; (H, W) bool."""
    with np.errstate(invalid="ignore"):
        usable: NDArray[np.bool_] = np.abs(frame) <= LARGEST_COUNT
    return usable
