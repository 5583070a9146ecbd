"""A restoration on the fine grid and the coarse pixels that were measured: from one to the other and back.

A coarse pixel holds the mean of ``scale`` by ``scale`` fine ones, in the same units. The camera saw them through a
point-spread function that super-resolution undoes, so before a restoration is compared with a frame it is blurred again
by as much as brings the two closest.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels import ops
from .camera import Camera

Float32 = NDArray[np.float32]


def fine(pixels: NDArray[Any], scale: int) -> NDArray[Any]:
    """Every coarse pixel's value for all fine pixels in it: (H, W) to (H scale, W scale)."""
    return pixels if scale == 1 else pixels.repeat(scale, axis=0).repeat(scale, axis=1)


def coarse(image: Float32, scale: int) -> Float32:
    """Pixel integration, (H scale, W scale) to (H, W); the image itself where scale is 1."""
    return image if scale == 1 else ops.block_means(image, scale)


def as_measured(z: Float32, electrons: Float32, camera: Camera) -> Float32:
    """What the camera would have expected of a restoration, behind the point-spread function that fits best.

    Parameters
    ----------
    z : (H, W) stabilised frame
    electrons : (H, W) restored photoelectrons of the coarse pixels

    Returns
    -------
    (H, W) float32, stabilised ``e_0 + a (e_1 - e_0) + b (e_2 - e_0)``, where e_i is the restoration blurred i times by
    [1 2 1] / 4 along y and x (0.7 and 1 coarse pixel wide) and a, b are the least squares fit to what was measured,
    every pixel weighed by its noise
    """
    once = _blurred(electrons)
    twice = _blurred(once)
    weight = 1 / (np.maximum(twice, 0) + np.float32(0.375) + np.square(camera.readout_noise_e, dtype=np.float32))
    change = np.stack([(e - electrons).ravel() for e in (once, twice)])
    weighed = change * weight.ravel()
    gram, along = weighed @ change.T, weighed @ (camera.unstabilise(z) - electrons).ravel()
    # a ridge far below any structure that could be told from noise: a flat frame has nothing to blur
    fit = np.linalg.solve(gram.astype(np.float64) + np.eye(2) * 1e-3, along.astype(np.float64))
    seen: Float32 = electrons + (fit.astype(np.float32) @ change).reshape(electrons.shape)
    return ops.stabilise(seen, offset_adu=0.0, gain_e_per_adu=1.0, readout_noise_e=camera.readout_noise_e)


def _blurred(image: Float32) -> Float32:
    padded = np.pad(image, 1, mode="edge")
    tall = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    wide: Float32 = (tall[:, :-2] + 2 * tall[:, 1:-1] + tall[:, 2:]) * np.float32(1 / 16)
    return wide
