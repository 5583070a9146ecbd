"""Statistics of what a restoration took away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .arrays import Floats, Scalar


class ResidualStatistics(NamedTuple):
    """Variance about zero, lag-1 autocovariances along y and x, and the share of pixels with z at 0."""

    variance: float
    along_y: float
    along_x: float
    cut_off: float


def lag_products(residual: Floats) -> tuple[float, float, float]:
    """Mean of ``r^2``, of ``r(y) r(y+1)`` and of ``r(x) r(x+1)``: variance and lag-1 autocovariances along y and x."""
    return (
        float(np.mean(residual * residual)),
        float(np.mean(residual[1:] * residual[:-1])),
        float(np.mean(residual[:, 1:] * residual[:, :-1])),
    )


def residual_statistics(
    z: Floats, restored: Floats, *, noise: Scalar = 1.0, band_px: int = 16, step: int = 1
) -> ResidualStatistics:
    """Of ``(z - restored) / noise`` over bands of ``band_px`` rows, one band in ``step``; no pair crosses a band."""
    residual = (z - restored) / noise
    bands = [slice(top, top + band_px) for top in range(0, z.shape[0], band_px * step)]
    seen = [residual[b] for b in bands]
    return ResidualStatistics(
        variance=_mean([r * r for r in seen]),
        along_y=_mean([r[1:] * r[:-1] for r in seen]),
        along_x=_mean([r[:, 1:] * r[:, :-1] for r in seen]),
        cut_off=_mean([z[b] <= 0 for b in bands]),
    )


def _mean(parts: Sequence[NDArray[Any]]) -> float:
    count = sum(part.size for part in parts)
    return float(sum(np.sum(part, dtype=np.float64) for part in parts) / max(count, 1))
