"""Whether two stabilised frames show the same scene."""

from __future__ import annotations

import numpy as np

from .. import native, reference
from ..arguments import structure
from ..reference.similarity import BLOCK_PX, CUT, SHARE_BELOW_CUT, largest_by_noise
from .checks import Float32, FrameError, address, in_c_order


def similarity(z: Float32, previous: Float32, *, noise_correlation: tuple[float, float] = (0.0, 0.0)) -> float:
    """How much two frames differ in units of their noise: about 1 for a static scene, more where something changed.

    Parameters
    ----------
    z, previous : (H, W) float32, noise of standard deviation 1
    noise_correlation : lag-1 correlation of the noise along (y, x)

    Returns
    -------
    float; the larger of a mean over the frame, which a few changed pixels hardly touch, and of a maximum over blocks
    of 8 x 8 px, which one small moving object raises. A static scene stays below about 1.07 from 64 x 64 px on; the
    maximum goes above 1 by noise alone for one pair in a hundred.

    Raises
    ------
    FrameError : not (H, W) float32, or shapes that differ
    """
    for name, array in (("z", z), ("previous", previous)):
        if not isinstance(array, np.ndarray) or array.dtype != np.float32:
            kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
            raise FrameError(f"{name} is {kind}; expected a float32 array, see Camera.stabilise")
        if array.ndim != 2 or not array.size or array.shape != z.shape:
            raise FrameError(f"{name} has shape {array.shape}, z {z.shape}; expected one shape (H, W), neither side 0")
    lib = native.library()
    if lib is None:
        return reference.similarity(z, previous, noise_correlation=noise_correlation)
    z, previous = in_c_order(z, np.float32), in_c_order(previous, np.float32)
    block_px = min(BLOCK_PX, *z.shape)
    k = structure("Similarity")(
        z=address(z), previous=address(previous), height=z.shape[0], width=z.shape[1], block=block_px, cut=CUT,
    )  # fmt: skip
    lib.call("similarity", k)
    blocks = (z.shape[0] // block_px) * (z.shape[1] // block_px)
    overall = float(k.sum_cut) / z.size / SHARE_BELOW_CUT
    return max(overall, float(k.largest_block) / largest_by_noise(blocks, block_px, noise_correlation))
