"""Numbers that control loops steer by, from one image."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .errors import ShapeError

BIN_PX: Final = 2
NOISE_QUANTILE: Final = 0.25
MAD_TO_SIGMA: Final = 1.4826
STANDS_OUT: Final = 4.0


def focus_score(image: NDArray[Any]) -> float:
    """How sharp an image is: Brenner's gradient of 2 x 2 means without what noise adds, over the squared mean.

    Higher is sharper. Noise alone gives a score near 0: the power of differences in the quarter of the image that has
    least of it is taken for noise and subtracted. The division makes the score blind to lamp and exposure, where the
    image's offset is subtracted or small. Compare scores of one scene only.

    Parameters
    ----------
    image : (H, W) of any real dtype, at least 16 px a side

    Returns
    -------
    float, 0 or more

    Raises
    ------
    ShapeError : not (H, W), or smaller than that

    Source: Brenner et al. 1976, J. Histochem. Cytochem. 24:100.
    """
    pixels = _checked(image)
    height, width = (n // BIN_PX * BIN_PX for n in pixels.shape)
    binned = pixels[:height, :width].reshape(height // BIN_PX, BIN_PX, width // BIN_PX, BIN_PX).mean(axis=(1, 3))
    signal = float(binned.mean())
    if signal <= 0:
        return 0.0
    along_y, along_x = binned[2:, :-2] - binned[:-2, :-2], binned[:-2, 2:] - binned[:-2, :-2]
    power = along_y**2 + along_x**2
    blocks = _block_means(power)
    # the quietest blocks hold noise; their mean, not their minimum, or little of it would be subtracted
    quiet = np.sort(blocks.ravel())[: max(1, int(blocks.size * NOISE_QUANTILE))]
    return max(0.0, float(blocks.mean() - quiet.mean())) / signal**2


def centroid(image: NDArray[Any]) -> tuple[float, float]:
    """Centre of the light above the background: intensity-weighted mean position.

    The background is the median of 3 x 3 means; what lies less than four of their standard deviations (by the median
    absolute deviation) above it has no weight, so that the noise of a large field does not pull the centre to its
    middle. An object at the edge of the image is cut off, and its centre moves inwards.

    Parameters
    ----------
    image : (H, W) of any real dtype, at least 16 px a side; the object covers less than half of it

    Returns
    -------
    (y, x), px; (0, 0) is the middle of the first pixel; both NaN where nothing stands out

    Raises
    ------
    ShapeError : not (H, W), or smaller than that
    """
    pixels = _smoothed(_checked(image))
    background = float(np.median(pixels))
    spread = MAD_TO_SIGMA * float(np.median(np.abs(pixels - background)))
    light = pixels - background
    light[light < max(STANDS_OUT * spread, 1e-9 * max(abs(background), 1.0))] = 0.0
    total = float(light.sum())
    if total <= 0:
        return float("nan"), float("nan")
    rows, columns = np.arange(pixels.shape[0]), np.arange(pixels.shape[1])
    return float(light.sum(axis=1) @ rows) / total, float(light.sum(axis=0) @ columns) / total


def _checked(image: NDArray[Any]) -> NDArray[np.float64]:
    if not isinstance(image, np.ndarray) or image.ndim != 2 or min(image.shape) < 16 or image.dtype.kind not in "uif":
        got = f"{image.dtype} of shape {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ShapeError(f"image is {got}; expected real numbers of shape (H, W), at least 16 px a side")
    pixels = image.astype(np.float64)
    if image.dtype.kind == "f" and not np.isfinite(pixels).all():
        good = np.isfinite(pixels)
        if not good.any():
            raise ShapeError("image holds no finite pixel; expected some signal")
        pixels[~good] = np.median(pixels[good])
    return pixels


def _smoothed(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """3 x 3 means; edges repeat."""
    padded = np.pad(pixels, 1, mode="edge")
    tall = padded[:-2] + padded[1:-1] + padded[2:]
    return np.asarray((tall[:, :-2] + tall[:, 1:-1] + tall[:, 2:]) / 9)


def _block_means(power: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means over an 8 x 8 grid of blocks, or fewer where the image is small."""
    rows, columns = (np.linspace(0, n, min(8, n) + 1).astype(int) for n in power.shape)
    sums = np.add.reduceat(np.add.reduceat(power, rows[:-1], axis=0), columns[:-1], axis=1)
    return np.asarray(sums / np.outer(np.diff(rows), np.diff(columns)))
