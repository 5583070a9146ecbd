"""Photon transfer: offset, readout noise and gain of a camera from dark frames and evenly lit static ones.

Shot noise makes the variance of a pixel grow with its signal: ``var = (mean - offset) / gain + readout^2`` in counts,
with the gain in photoelectrons per count. Variances come from differences of successive frames, so that a lamp that
drifts slowly does not count as noise.

Source: Janesick 2007, Photon Transfer; per-pixel maps as in Huang et al. 2013, Nat. Methods 10:653.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..kernels import ops, reference
from .errors import CameraError, ShapeError

BLOCK_PX: Final = 16
BOOTSTRAP_ROUNDS: Final = 500
SATURATED_SHARE: Final = 0.001
MINIMUM_SIGNAL: Final = 3.0  # a flat must be this many readout-noise widths above the dark frames

Image = reference.Floats  # float64 throughout


@dataclass(frozen=True, kw_only=True)
class PhotonTransfer:
    """What photon transfer measured; offset in ADU and readout noise in photoelectrons, (H, W) float64 maps.

    ``correlation`` is the lag-1 correlation of the dark frames' noise along (y, x); ``saturation_adu`` is None for
    float frames.
    """

    offset_adu: Image
    readout_noise_e: Image
    gain_e_per_adu: float
    gain_interval_e_per_adu: tuple[float, float]
    correlation: tuple[float, float]
    saturation_adu: float | None


@dataclass(frozen=True)
class _Level:
    """Block means of one flat stack: signal above the offset and variance above the dark variance, counts."""

    signal: Image
    variance: Image


def photon_transfer(dark: NDArray[Any], flats: Sequence[NDArray[Any]]) -> PhotonTransfer:
    """Measure a camera; see `Camera.calibrate`.

    Parameters
    ----------
    dark : (T, H, W) frames without light
    flats : stacks (T, H, W), each of one light level; saturated stacks are refused

    Raises
    ------
    ShapeError : stacks that do not fit together
    CameraError : too few frames, no light, or a gain that is not positive
    """
    _check(dark, flats)
    offset, dark_variance = dark.mean(axis=0, dtype=np.float64), _temporal_variance(dark)
    levels = [_level(flat, offset, dark_variance) for flat in flats]
    signal = np.stack([level.signal for level in levels])
    variance = np.stack([level.variance for level in levels])
    gain = _gain(signal, variance)
    return PhotonTransfer(
        offset_adu=offset,
        readout_noise_e=np.sqrt(dark_variance) * gain,
        gain_e_per_adu=gain,
        gain_interval_e_per_adu=_interval(signal, variance),
        correlation=_correlation(dark, offset),
        saturation_adu=float(np.iinfo(dark.dtype).max) if dark.dtype.kind == "u" else None,
    )


def _check(dark: NDArray[Any], flats: Sequence[NDArray[Any]]) -> None:
    for name, stack in (("dark", dark), *((f"flats[{i}]", f) for i, f in enumerate(flats))):
        if not isinstance(stack, np.ndarray) or stack.dtype.name not in ops.FRAME_DTYPES:
            got = stack.dtype if isinstance(stack, np.ndarray) else type(stack).__name__
            raise ShapeError(f"{name} is {got}; expected a NumPy array of {', '.join(ops.FRAME_DTYPES)}")
        if stack.ndim != 3 or stack.shape[0] < 2:
            raise CameraError(f"{name} has shape {stack.shape}; expected (T, H, W) with 2 frames or more, better 100")
        if stack.shape[1:] != dark.shape[1:]:
            raise ShapeError(
                f"{name} is {stack.shape[1:]}, dark is {dark.shape[1:]}; use one region of interest for all"
            )
        if stack.dtype.kind == "f" and not np.isfinite(stack).all():
            raise CameraError(f"{name} holds values that are not finite; leave those frames out")
    if not flats:
        raise CameraError("no flats were given; the gain needs at least one stack of evenly lit frames")
    if min(dark.shape[1:]) < 2 * BLOCK_PX:
        raise CameraError(
            f"frames are {dark.shape[1:]}; photon transfer needs {2 * BLOCK_PX}x{2 * BLOCK_PX} px at least"
        )


def _temporal_variance(stack: NDArray[Any]) -> Image:
    """Per-pixel variance from successive differences; slow drift cancels."""
    total: Image = np.zeros(stack.shape[1:])
    for before, after in pairwise(stack):
        total += (after.astype(np.float64) - before) ** 2
    total /= 2 * (stack.shape[0] - 1)
    return total


def _level(flat: NDArray[Any], offset: Image, dark_variance: Image) -> _Level:
    if flat.dtype.kind == "u":
        full = float(np.mean(flat == np.iinfo(flat.dtype).max))
        if full > SATURATED_SHARE:
            raise CameraError(f"{full:.1%} of a flat's pixels are saturated, which hides their noise; use less light")
    signal = reference.block_means(flat.mean(axis=0, dtype=np.float64) - offset, BLOCK_PX)
    floor = MINIMUM_SIGNAL * float(np.sqrt(dark_variance.mean()))
    if float(signal.mean()) <= floor:
        raise CameraError(
            f"a flat is {signal.mean():.2f} counts above the dark frames; expected more than {floor:.2f}: "
            "use more light"
        )
    return _Level(signal, reference.block_means(_temporal_variance(flat) - dark_variance, BLOCK_PX))


def _gain(signal: Image, variance: Image) -> float:
    """Photoelectrons per count: slope of signal over variance through the origin, every level with equal weight."""
    weight = 1.0 / np.maximum(signal.mean(axis=tuple(range(1, signal.ndim)), keepdims=True), 1e-12) ** 2
    slope = float(np.sum(weight * signal * variance) / np.sum(weight * signal**2))
    if not slope > 0:
        raise CameraError(
            "flats are not noisier than the dark frames; expected shot noise: check the light and the file order"
        )
    return 1.0 / slope


def _interval(signal: Image, variance: Image) -> tuple[float, float]:
    """95 % interval of the gain by resampling blocks of pixels."""
    rng = np.random.default_rng(0)
    flat_signal, flat_variance = (a.reshape(a.shape[0], -1) for a in (signal, variance))
    count = flat_signal.shape[1]
    gains = []
    for _ in range(BOOTSTRAP_ROUNDS):
        chosen = rng.integers(count, size=count)
        gains.append(_gain(flat_signal[:, chosen], flat_variance[:, chosen]))
    low, high = np.percentile(gains, [2.5, 97.5])
    return float(low), float(high)


def _correlation(dark: NDArray[Any], offset: Image) -> tuple[float, float]:
    """Lag-1 correlation along (y, x) of the dark frames' noise: what the readout does to neighbours."""
    totals = np.mean([ops.lag_products((f - offset).astype(np.float32)) for f in dark[:32]], axis=0)
    along = np.clip(totals[1:] / max(float(totals[0]), 1e-12), -0.99, 0.99)
    return float(along[0]), float(along[1])
