"""Statistics of what a restoration took away."""

from __future__ import annotations

import numpy as np

from .checks import Float32


def lag_products(residual: Float32) -> tuple[float, float, float]:
    """Variance about zero and lag-1 autocovariances along y and x of a residual, as three floats."""
    flat = np.ascontiguousarray(residual)
    count = flat.size
    upper, lower = flat[:-1].ravel(), flat[1:].ravel()
    along_x = float(np.einsum("ij,ij->", flat[:, :-1], flat[:, 1:])) / max(flat[:, 1:].size, 1)
    return float(np.vdot(flat, flat)) / max(count, 1), float(np.vdot(upper, lower)) / max(lower.size, 1), along_x
