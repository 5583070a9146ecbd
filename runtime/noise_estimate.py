"""Noise from the frames themselves: variance against brightness, and how far neighbouring pixels share it.

1. A small Laplacian sees little of a smooth scene but all of white noise: its power per block against the block's
   brightness gives ``var = slope * mean + intercept``, by a robust line through the medians of brightness bins.
2. The frame is stabilised with that line. Noise now looks alike everywhere, a scene does not: the power of
   differences at several distances and scales, at several quantiles over blocks, tells white noise, correlated noise
   and texture apart. A small regression (`noise_regression.npz`, made by `models/noise_regression.py` on simulated
   cameras) reads from them what the Laplacian missed of the variance, and the lag-1 correlation.

Source: Immerkaer 1996 (Laplacian residual); Foi et al. 2008, IEEE TIP 17:1737 (signal-dependent noise from one frame).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels import ops
from .errors import CameraError, ShapeError

Image = NDArray[np.float32]

BLOCK_PX = 16
QUANTILES = (0.03, 0.1, 0.25, 0.5, 0.75)
MINIMUM_SIDE_PX = 32
MAXIMUM_PIXELS = 1 << 20
BRIGHTNESS_BINS = 20
LEAST_USABLE_SHARE = 0.02
REGRESSION = Path(__file__).with_name("noise_regression.npz")


@dataclass(frozen=True, kw_only=True)
class NoiseEstimate:
    """``variance = slope * mean + intercept`` in ADU squared, and the lag-1 correlation of the noise along (y, x).

    ``darkest`` is the brightness of the darkest parts of the scene, ADU.
    """

    slope: float
    intercept: float
    correlation: tuple[float, float]
    darkest: float


def estimate_noise(frames: NDArray[Any]) -> NoiseEstimate:
    """Estimate the noise of one frame, or of a stack frame by frame and pooled; see `Camera.estimate`."""
    samples = [s for frame in _as_frames(frames) for s in _regions(frame)]
    slope, intercept = white_noise_line(samples)
    features = np.median([noise_features(stabilised(s, slope, intercept)) for s in samples], axis=0)
    missed, correlation = _regress(features)
    return NoiseEstimate(
        slope=slope * missed,
        intercept=intercept * missed,
        correlation=correlation,
        darkest=float(np.median([np.percentile(ops.block_means(s, 8), 0.5) for s in samples])),
    )


def white_noise_line(samples: list[Image]) -> tuple[float, float]:
    """Slope and intercept of variance against brightness, as white noise would have them.

    Parameters
    ----------
    samples : (H, W) float32 regions, ADU

    Raises
    ------
    CameraError : no variance anywhere: the frames are constant
    """
    pairs = [_block_brightness_and_variance(s) for s in samples]
    brightness, variance = (np.concatenate(part) for part in zip(*pairs, strict=True))
    if not brightness.size or not np.any(variance > 0):
        raise CameraError(
            "the frames hold no noise (constant or saturated everywhere); pass a Camera with known numbers"
        )
    edges = np.quantile(brightness, np.linspace(0, 1, BRIGHTNESS_BINS + 1))
    which = np.clip(np.searchsorted(edges, brightness, side="right") - 1, 0, BRIGHTNESS_BINS - 1)
    bins = [np.flatnonzero(which == b) for b in range(BRIGHTNESS_BINS)]
    x = np.array([np.mean(brightness[b]) for b in bins if b.size])
    y = np.array([np.median(variance[b]) for b in bins if b.size])
    return _robust_line(x, np.maximum(y, 1e-6 * y.max() + 1e-12))


def stabilised(sample: Image, slope: float, intercept: float) -> Image:
    """Unit-variance coordinates under ``variance = slope * mean + intercept``."""
    floor = 0.375 * slope**2
    z = np.maximum(sample * np.float32(slope) + np.float32(intercept + floor), 0)
    return np.asarray(np.sqrt(z) * np.float32(2 / slope), np.float32)


def noise_features(z: Image) -> NDArray[np.float32]:
    """Log power of differences at several distances and scales, at quantiles over blocks.

    Parameters
    ----------
    z : (H, W) float32, stabilised; white noise of unit variance gives zeros

    Returns
    -------
    (n,) float32; the first half of the directional entries looks along y, the second along x
    """
    powers = [_laplacian_power(z, 1), _laplacian_power(z, 2)]
    powers += [_difference_power(z, lag, 0) for lag in (1, 2, 3, 5)]
    powers += [_difference_power(z, lag, 1) for lag in (1, 2, 3, 5)]
    half, quarter = ops.block_means(z, 2) * np.float32(2), ops.block_means(z, 4) * np.float32(4)
    powers += [_laplacian_power(half, 1), _laplacian_power(quarter, 1)]
    blocks = [
        ops.block_means(p, b) for p, b in zip(powers, [BLOCK_PX] * 10 + [BLOCK_PX // 2, BLOCK_PX // 4], strict=True)
    ]
    levels = np.array([np.quantile(b, QUANTILES) for b in blocks])
    return np.asarray(np.log(np.maximum(levels, 1e-4)).ravel(), np.float32)


def _as_frames(frames: NDArray[Any]) -> list[Image]:
    if not isinstance(frames, np.ndarray) or frames.ndim not in (2, 3) or frames.dtype.name not in ops.FRAME_DTYPES:
        got = f"{frames.dtype} of shape {frames.shape}" if isinstance(frames, np.ndarray) else type(frames).__name__
        raise ShapeError(f"frames are {got}; expected (H, W) or (T, H, W) {', '.join(ops.FRAME_DTYPES)}")
    stack = frames if frames.ndim == 3 else frames[None]
    if not stack.shape[0] or min(stack.shape[1:]) < MINIMUM_SIDE_PX:
        raise CameraError(
            f"frames are {frames.shape}; an estimate needs {MINIMUM_SIDE_PX}x{MINIMUM_SIDE_PX} px at least"
        )
    every = max(1, -(-stack.shape[0] // 8))
    single = [np.ascontiguousarray(f, dtype=np.float32) for f in stack[::every]]
    if not all(ops.usable_pixels(f).all() for f in single):
        single = [_bridge(f) for f in single]
    return single


def _bridge(frame: Image) -> Image:
    finite = ops.usable_pixels(frame)
    if finite.mean() < 0.5:
        raise CameraError(
            f"{1 - finite.mean():.0%} of the pixels are not finite counts; an estimate needs half of them at least"
        )
    return np.where(finite, frame, np.median(frame[finite])).astype(np.float32)


def _regions(frame: Image) -> list[Image]:
    """The frame, or evenly spread 256 px squares of a frame that is too large to look at whole."""
    if frame.size <= MAXIMUM_PIXELS:
        return [frame]
    side, count = 256, 4
    starts = [np.linspace(0, n - min(side, n), count).astype(int) for n in frame.shape]
    return [frame[y : y + side, x : x + side] for y in starts[0] for x in starts[1]]


def _block_brightness_and_variance(sample: Image) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and Laplacian variance of 8x8 blocks without clipped pixels; of all blocks where nearly every one has some.

    In photon counting frames a third of the pixels may hold the smallest count without any clipping.
    """
    power, inner = _laplacian_power(sample, 1), sample[1:-1, 1:-1]
    mean, variance = ops.block_means(inner, 8), ops.block_means(power, 8)
    extremes = (inner <= sample.min()) | (inner >= sample.max())
    varied = variance > 0
    usable = (ops.block_means(extremes.astype(np.float32), 8) < 0.05) & varied
    if np.count_nonzero(usable) < LEAST_USABLE_SHARE * usable.size:
        usable = varied
    return mean[usable], variance[usable]


def _robust_line(x: NDArray[Any], y: NDArray[Any]) -> tuple[float, float]:
    """Weighted line with relative errors, outliers damped (Huber); the slope stays positive, the variance too."""
    weight = np.ones_like(y)
    slope, intercept = 0.0, float(np.median(y))
    for _ in range(12):
        fitted = np.maximum(slope * x + intercept, 0.05 * np.median(y))
        w = weight / fitted**2
        mx, my = np.average(x, weights=w), np.average(y, weights=w)
        spread = np.average((x - mx) ** 2, weights=w)
        slope = float(np.average((x - mx) * (y - my), weights=w) / spread) if spread > 0 else 0.0
        slope = max(slope, 1e-3 * my / max(float(np.ptp(x)), float(abs(mx)), 1e-6))
        intercept = float(my - slope * mx)
        residual = np.abs(y / np.maximum(slope * x + intercept, 0.05 * np.median(y)) - 1)
        weight = np.minimum(1.0, 0.15 / np.maximum(residual, 1e-6))
    return slope, max(intercept, -slope * float(x.min()) + 0.02 * float(np.median(y)))


def _laplacian_power(image: Image, step: int) -> Image:
    """Squared response of [1 -2 1] x [1 -2 1] with pixels ``step`` apart; white noise of unit variance gives 1."""
    rows = image[: -2 * step] - 2 * image[step:-step] + image[2 * step :]
    response = rows[:, : -2 * step] - 2 * rows[:, step:-step] + rows[:, 2 * step :]
    return np.asarray(response * response * np.float32(1 / 36), np.float32)


def _difference_power(image: Image, lag: int, axis: int) -> Image:
    difference = image[lag:] - image[:-lag] if axis == 0 else image[:, lag:] - image[:, :-lag]
    return np.asarray(difference * difference * np.float32(0.5), np.float32)


@cache
def _regression() -> dict[str, NDArray[np.float32]]:
    with np.load(REGRESSION, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def _regress(features: NDArray[np.float32]) -> tuple[float, tuple[float, float]]:
    """Factor on the variance and lag-1 correlation (y, x) from the features: two hidden layers with ReLU."""
    w = _regression()
    h = np.clip((features - w["mean"]) / w["scale"], -4, 4)
    h = np.maximum(w["w1"] @ h + w["b1"], 0)
    h = np.maximum(w["w2"] @ h + w["b2"], 0)
    log_missed, along_y, along_x = w["w3"] @ h + w["b3"]
    clipped = np.clip([along_y, along_x], -0.2, 0.9)
    return float(np.exp(np.clip(log_missed, -0.5, 5.0))), (float(clipped[0]), float(clipped[1]))
