"""Levels below which given shares of the pixels lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import native, reference
from ..arguments import structure
from .checks import Float32, FrameError, address

RANKS_AT_ONCE = 8


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
    seen = np.ascontiguousarray(image, np.float32)
    finite = np.isfinite(seen)
    if not finite.all():
        seen = seen[finite]
    if not seen.size:
        raise FrameError(f"image is {image.shape} without a finite pixel; expected at least one")
    lib = native.library()
    if lib is None:
        return reference.percentiles(seen, percents)
    places = [p / 100 * (seen.size - 1) for p in percents]
    low = [int(place) for place in places]
    ranks = [r for first in low for r in (first, min(first + 1, seen.size - 1))]
    levels = _order_statistics(lib, seen, ranks)
    return tuple(
        float(levels[2 * i] + (levels[2 * i + 1] - levels[2 * i]) * (place - first))
        for i, (place, first) in enumerate(zip(places, low, strict=True))
    )


def _order_statistics(lib: native.Library, values: Float32, ranks: Sequence[int]) -> list[float]:
    """The values of these ranks (0 is the least)."""
    found: list[float] = []
    for start in range(0, len(ranks), RANKS_AT_ONCE):
        some = ranks[start : start + RANKS_AT_ONCE]
        k = structure("OrderStatistics")(values=address(values), count=values.size, ranks=len(some))
        k.rank[: len(some)] = some
        lib.call("order_statistics", k)
        found += k.value[: len(some)]
    return found
