"""Twice the side by cubic interpolation."""

from __future__ import annotations

import numpy as np

from .. import reference
from .checks import Float32, FrameError


def upsample2(image: Float32) -> Float32:
    """Twice the side by cubic interpolation (Catmull-Rom) on the grid of pixel integration: nothing moves.

    Two fine pixels tile a coarse one, so their centres lie a quarter of a coarse pixel off its own. Edges repeat.

    Parameters
    ----------
    image : (H, W) float32

    Returns
    -------
    (2H, 2W) float32, new array, C order; a constant stays that constant

    Raises
    ------
    FrameError : not 2-D, or empty

    Source: Keys 1981, IEEE TASSP 29:1153, with a = -1/2.
    """
    if image.ndim != 2 or not image.size:
        raise FrameError(f"image is {image.shape}; expected two axes (H, W), neither of them empty")
    height, width = image.shape
    taps = np.array(reference.UPSAMPLE_TAPS, np.float32)
    rows = np.pad(image.astype(np.float32, copy=False), ((2, 2), (0, 0)), mode="edge")
    tall = np.empty((height, 2, width), np.float32)
    _weigh(rows, taps, tall[:, 0])
    _weigh(rows[1:], taps[::-1], tall[:, 1])
    columns = np.pad(tall.reshape(2 * height, width), ((0, 0), (2, 2)), mode="edge").T
    wide = np.empty((2 * height, width, 2), np.float32)
    _weigh(columns, taps, wide[..., 0].T)
    _weigh(columns[1:], taps[::-1], wide[..., 1].T)
    return wide.reshape(2 * height, 2 * width)


def _weigh(padded: Float32, taps: Float32, out: Float32) -> None:
    """``out[i] = sum over k of taps[k] padded[i + k]``, along the first axis."""
    np.multiply(padded[: len(out)], taps[0], out=out)
    for offset in range(1, len(taps)):
        out += padded[offset : offset + len(out)] * taps[offset]
