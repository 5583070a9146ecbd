"""An image for the screen: 8 bits between two levels, through a lookup table."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import Floats


def preview_u8(image: Floats, low: float, high: float, lut: NDArray[np.uint8]) -> NDArray[Any]:
    """``lut[round(255 (image - low) / (high - low))]``, clipped to 0 and 255; NaN is shown as 0."""
    grey = np.nan_to_num((image - low) * (255 / (high - low)), nan=0.0)
    shown: NDArray[Any] = lut[np.clip(np.rint(grey), 0, 255).astype(np.uint8)]
    return shown
