"""Levels below which given shares of the pixels lie."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .arrays import Floats


def percentiles(image: Floats, percents: Sequence[float]) -> tuple[float, ...]:
    """Linear interpolation between order statistics, as `numpy.percentile`."""
    return tuple(float(level) for level in np.percentile(image, list(percents)))
