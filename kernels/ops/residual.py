"""Statistics of what a restoration took away."""

from __future__ import annotations

import numpy as np

from .. import native, reference
from ..arguments import structure
from ..reference import ResidualStatistics
from .checks import Float32, FrameError, address, float_image, scalar_and_map

BAND_PX = 16


def residual_statistics(
    z: Float32,
    u: Float32,
    *,
    span: float = 1.0,
    centre: float = 0.0,
    noise: float | Float32 = 1.0,
    step: int = 1,
) -> ResidualStatistics:
    """Variance and lag-1 autocovariances of ``(z - (u span + centre)) / noise`` over bands of 16 rows, one in ``step``.

    Parameters
    ----------
    z, u : (H, W) float32: the stabilised frame, and its restoration in model units (or z, with span 1 and centre 0)
    noise : standard deviation of z's noise, number or (H, W) map

    Returns
    -------
    ResidualStatistics; also the share of pixels whose z is 0, where the transform cut off what lies below it

    Raises
    ------
    FrameError : arrays differ in shape or dtype
    """
    z, u = float_image("z", z), float_image("u", u, z.shape)
    if step < 1 or not z.size:
        raise FrameError(f"z has shape {z.shape}, step is {step}; expected pixels and a step of 1 or more")
    level, level_map = scalar_and_map(noise, z.shape)
    lib = native.library()
    if lib is None:
        restored = reference.from_model(u, np.float32(span), np.float32(centre))
        return reference.residual_statistics(z, restored, noise=noise, band_px=BAND_PX, step=step)
    k = structure("Residual")(
        z=address(z), u=address(u), noise_map=address(level_map), u_stride=u.strides[0], height=z.shape[0],
        width=z.shape[1], band=BAND_PX, step=step, span=span, centre=centre,
        per_noise=0.0 if level_map is not None else 1.0 / level,
    )  # fmt: skip
    lib.call("residual", k)
    return ResidualStatistics(
        variance=k.squares / max(k.pixels, 1),
        along_y=k.along_y / max(k.pairs_y, 1),
        along_x=k.along_x / max(k.pairs_x, 1),
        cut_off=k.cut_off / max(k.pixels, 1),
    )


def lag_products(residual: Float32) -> tuple[float, float, float]:
    """Variance about zero and lag-1 autocovariances along y and x of a residual, as three floats."""
    flat = np.ascontiguousarray(residual)
    count = flat.size
    upper, lower = flat[:-1].ravel(), flat[1:].ravel()
    along_x = float(np.einsum("ij,ij->", flat[:, :-1], flat[:, 1:])) / max(flat[:, 1:].size, 1)
    return float(np.vdot(flat, flat)) / max(count, 1), float(np.vdot(upper, lower)) / max(lower.size, 1), along_x
