"""Fusion of stabilised frames: a recursive mean per pixel that believes the past only where the new frame agrees.

With ``d = (z - mean) / sqrt(1 + variance)``, unit normal while nothing changes, windows around a pixel are asked what
the mean is off by. Each answer ``b`` has a noise of its own, of variance ``t``:

| asked | ``b``, in units of d | ``t`` |
| --- | --- | --- |
| the pixel | d | 1 |
| 3 x 3 and 7 x 7 px | the window's mean of d | what is left of a single pixel's variance in that mean |
| 7 x 7 px, motion along y and x | s g: shift s = <d g> / <g g> px, g the mean's slope at the pixel | g^2 / (49 <g g>) |

Angle brackets are means over 7 x 7 px. The last is a least-squares shift (Lucas & Kanade 1981): it sees a movement of a
fraction of a pixel where the picture has slopes. Where the slopes are those of the mean's own noise it is not asked: it
is weighted by ``max(0, 1 - 2 n / <g g>)``, n the part of ``<g g>`` that noise makes.

``b^2`` counts once it exceeds ``limit^2 t``, and fully from twice that. A 3 x 3 mean beyond the ``spread`` limit counts
for its neighbours within 2 px too: the rim of what changed is too faint to be noticed by itself. The largest ``b^2``,
times ``emphasis``, in units of z, is how far off the mean is believed to be: ``B``. The update is the Kalman filter's
for a mean whose error is ``variance + B``, with a gain no lower than that of ``n_max`` frames:

    gain = max((variance + B) / (1 + variance + B), 2 / (n_max + 1))
    mean' = mean + gain (z - mean)        variance' = (1 - gain)^2 (variance + B) + gain^2

``variance'`` is exact for the noise of a gain that does not depend on it, and what the mean may still be off by comes
on top: 1 / n_max at least, 1 at most. A result depends on pixels up to 4 px away.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .arrays import Floats

SMALL_PX = 3
LARGE_PX = 7
SPREAD_PX = 5
LEVEL_PX = 9
SLOPE_NOISE = 0.1875  # variance of `slope` of white noise of variance 1
FLAT = 1e-6  # keeps 0 / 0 away where the mean has no slope at all


class Limits(NamedTuple):
    """From how many standard deviations on a difference is no noise, by the window that is asked."""

    point: float
    small: float
    large: float
    motion: float
    spread: float


def fuse(
    z: Floats,
    mean: Floats,
    variance: Floats,
    *,
    n_max: float,
    limits: Limits,
    emphasis: float,
    noise_correlation: tuple[float, float] = (0.0, 0.0),
    light: tuple[float, float] = (1.0, 0.0),
) -> tuple[Floats, Floats]:
    """One frame into the mean: (H, W) each, variance in units of one frame's; see the module for the formulas."""
    mean, variance = follow_light(mean, variance, light)
    difference = z - mean
    spread = 1 + variance
    d = difference / np.sqrt(spread)
    moving = seen_moving(d, mean, variance, limits, noise_correlation)
    off = np.maximum(seen_still(d, limits, noise_correlation), moving)
    error = variance + emphasis * spread * off
    gain = np.maximum(error / (1 + error), 2 / (n_max + 1))
    return mean + gain * difference, (1 - gain) ** 2 * error + gain * gain


def seen_still(d: Floats, limits: Limits, noise_correlation: tuple[float, float]) -> Floats:
    """Squared error of the mean, in d, that the pixel and the windows' means of d speak for."""
    left = noise_left(SMALL_PX, noise_correlation)
    small = box_mean(d, SMALL_PX) ** 2
    large = box_mean(d, LARGE_PX) ** 2
    off = np.maximum(counted(d * d, 1.0, limits.point), counted(small, left, limits.small))
    off = np.maximum(off, counted(large, noise_left(LARGE_PX, noise_correlation), limits.large))
    return np.maximum(off, box_max(counted(small, left, limits.spread), SPREAD_PX))


def seen_moving(
    d: Floats, mean: Floats, variance: Floats, limits: Limits, noise_correlation: tuple[float, float]
) -> Floats:
    """Squared error of the mean, in d, that a shift of the picture along y or x speaks for."""
    # noise that neighbours share survives a weighted sum better, by as much as it does in a patch of a slope's size
    alike = noise_left(SMALL_PX, noise_correlation) * SMALL_PX**2
    off = np.zeros_like(d)
    for axis in (0, 1):
        g = slope(mean, axis)
        power = box_mean(g * g, LARGE_PX) + FLAT
        shift = box_mean(d * g, LARGE_PX) / power
        real = np.maximum(1 - 2 * SLOPE_NOISE * variance / power, 0)
        moved = counted(shift * shift, alike / (LARGE_PX**2 * power), limits.motion)
        off = np.maximum(off, real * g * g * moved)
    return off


def fused_noise(variance: Floats) -> Floats:
    """Standard deviation that the mean has around a pixel: the root of the variance's mean over 9 x 9 px.

    Pixels of one place differ by chance in how much past they keep; a denoiser wants to know the noise of the place.
    """
    return np.sqrt(box_mean(variance, LEVEL_PX))


def follow_light(mean: Floats, variance: Floats, light: tuple[float, float]) -> tuple[Floats, Floats]:
    """The mean under another light, ``mean^2 -> gain mean^2 + shift``; the variance never shrinks by it."""
    gain, shift = light
    if light == (1.0, 0.0):
        return mean, variance
    return np.sqrt(np.maximum(gain * mean * mean + shift, 0)), np.minimum(max(gain, 1.0) * variance, 1)


def counted(squared: Floats, noise: Floats | float, limit: float) -> Floats:
    """``squared`` where it speaks louder than noise: 0 below ``limit^2 noise``, in full from twice that."""
    weighed: Floats = squared * np.clip(squared / (noise * limit**2) - 1, 0, 1)
    return weighed


def box_mean(image: Floats, window_px: int) -> Floats:
    """Mean of the ``window_px`` square around every pixel; edges repeat."""
    reach = window_px // 2
    for axis in (0, 1):
        n = image.shape[axis]
        padded = np.moveaxis(np.pad(image, [(reach, reach) if a == axis else (0, 0) for a in (0, 1)], "edge"), axis, 0)
        total = padded[:n].copy()
        for k in range(1, window_px):
            total += padded[k : k + n]
        image = np.moveaxis(total, 0, axis)
    return image / window_px**2


def box_max(image: Floats, window_px: int) -> Floats:
    """Largest of the ``window_px`` square around every pixel; edges repeat."""
    reach = window_px // 2
    for axis in (0, 1):
        n = image.shape[axis]
        padded = np.moveaxis(np.pad(image, [(reach, reach) if a == axis else (0, 0) for a in (0, 1)], "edge"), axis, 0)
        largest = padded[:n].copy()
        for k in range(1, window_px):
            np.maximum(largest, padded[k : k + n], out=largest)
        image = np.moveaxis(largest, 0, axis)
    return image


def slope(image: Floats, axis: int) -> Floats:
    """Central difference along an axis, averaged 1 2 1 across it (Sobel), per pixel; edges repeat."""
    padded = np.moveaxis(np.pad(image, 1, "edge"), axis, 0)
    difference = padded[2:] - padded[:-2]
    smooth = (difference[:, :-2] + 2 * difference[:, 1:-1] + difference[:, 2:]) / 8
    return np.moveaxis(smooth, 0, axis)


def noise_left(window_px: int, noise_correlation: tuple[float, float]) -> float:
    """Variance of a window's mean over that of a pixel, for noise whose correlation falls off as ``c^distance``."""
    left = 1.0
    for c in noise_correlation:
        shared = sum((1 - k / window_px) * max(c, 0.0) ** k for k in range(1, window_px))
        left *= (1 + 2 * shared) / window_px
    return left
