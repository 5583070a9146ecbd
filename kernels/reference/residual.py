"""Statistics of what a restoration took away."""

from __future__ import annotations

import numpy as np

from .arrays import Floats


def lag_products(residual: Floats) -> tuple[float, float, float]:
    """Mean of ``r^2``, of ``r(y) r(y+1)`` and of ``r(x) r(x+1)``: variance and lag-1 autocovariances along y and x."""
    return (
        float(np.mean(residual * residual)),
        float(np.mean(residual[1:] * residual[:-1])),
        float(np.mean(residual[:, 1:] * residual[:, :-1])),
    )
