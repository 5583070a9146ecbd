"""Levels below which given shares of the pixels lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import reference
from .checks import FrameError


def percentiles(image: NDArray[Any], percents: Sequence[float]) -> tuple[float, ...]:
    """Percentiles of an image's finite pixels.

    Parameters
    ----------
    image : (H, W) uint8, uint16 or float32; any strides
    percents : each from 0 to 100

    Returns
    -------
    one level per percent, in the units of the image

    Raises
    ------
    FrameError : no finite pixel, or a percent out of range
    """
    if not all(0 <= p <= 100 for p in percents):
        raise FrameError(f"percents are {tuple(percents)}; expected numbers from 0 to 100")
    seen = image[np.isfinite(image)] if image.dtype.kind == "f" else image
    if not seen.size:
        raise FrameError(f"image is {image.shape} without a finite pixel; expected at least one")
    return reference.percentiles(seen, percents)
