"""Scenes photographed at chosen light levels: what the validation restores. Same seed, same frames.

The camera is a common sCMOS one. Correlated noise is white noise through a Gaussian of unit energy, as binning,
interpolation or compression leave it; its lag-1 correlation of 0.45 is near the largest that bundles promise to take.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..models.data import PERMISSIVE_SETS, clean_fields
from ..models.simulate import simulate_field
from ..runtime.camera import Camera
from ..runtime.errors import TrainingError

PHOTONS = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)  # at a scene's brightest 0.1 %, above its background
BLANK_PHOTONS = (0.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)  # everywhere
BACKGROUND = 0.05  # of the peak
BRIGHTEST = 2.0  # of the peak; hotter spots are cut there
OFFSET_ADU, GAIN_E_PER_ADU, READOUT_NOISE_E = 100.0, 0.46, 1.6
CORRELATION_SIGMA_PX, REACH_PX = 0.6, 4
HELD_OUT_SEED = 770_001  # no training draws its fields from it
FRAMES_PER_SET = 3

Plane = NDArray[np.float64]


@dataclass(frozen=True)
class Noise:
    """A kind of noise: its name and the filter, along one axis, that white noise went through."""

    name: str
    taps: NDArray[np.float64]

    @property
    def correlation(self) -> float:
        """Lag-1 autocorrelation along either axis."""
        return float(np.sum(self.taps[1:] * self.taps[:-1]) / np.sum(self.taps**2))

    def block_mean_std(self, side_px: int) -> float:
        """Standard deviation of a block's mean where a pixel's is 1."""
        response = np.convolve(self.taps, np.ones(side_px))  # along one axis; the noise is separable
        return float(np.sum(response**2) / np.sum(self.taps**2)) / side_px**2


def _gaussian_taps() -> NDArray[np.float64]:
    taps = np.exp(-0.5 * (np.arange(-REACH_PX, REACH_PX + 1) / CORRELATION_SIGMA_PX) ** 2)
    return np.asarray(taps / np.sqrt(np.sum(taps**2)), np.float64)


NOISES = (Noise("white", np.ones(1)), Noise("correlated", _gaussian_taps()))


def camera_of(noise: Noise) -> Camera:
    """The simulated camera, as its data sheet would tell it."""
    return Camera(
        offset_adu=OFFSET_ADU,
        gain_e_per_adu=GAIN_E_PER_ADU,
        readout_noise_e=READOUT_NOISE_E,
        noise_correlation=(noise.correlation, noise.correlation),
    )


def photograph(photons: Plane, noise: Noise, rng: np.random.Generator) -> NDArray[np.uint16]:
    """(H, W) uint16 frame of (H, W) mean photoelectrons."""
    variation = rng.poisson(photons) - photons + rng.normal(0.0, READOUT_NOISE_E, photons.shape)
    for axis in (0, 1):
        variation = ndimage.convolve1d(variation, noise.taps, axis=axis, mode="wrap")
    counts = (photons + variation) / GAIN_E_PER_ADU + OFFSET_ADU
    return np.asarray(np.clip(np.rint(counts), 0, 65535), np.uint16)


def to_electrons(counts: NDArray[Any]) -> Plane:
    """Counts to photoelectrons with the simulated camera's true numbers, however the restoration was told."""
    return (np.asarray(counts, np.float64) - OFFSET_ADU) * GAIN_E_PER_ADU


def to_photons(brightness: NDArray[Any], peak: float) -> Plane:
    """(H, W) relative brightness, about 0 to 1, to mean photoelectrons on a background of a twentieth of the peak."""
    return peak * (BACKGROUND + np.clip(np.asarray(brightness, np.float64), 0.0, BRIGHTEST))


def pixel_means(photons: Plane, scale: int) -> Plane:
    """What pixels ``scale`` times as large receive, as light per small pixel: the frame of a super-resolution pair."""
    height, width = (n // scale for n in photons.shape)
    cells = photons[: height * scale, : width * scale].reshape(height, scale, width, scale)
    return np.asarray(cells.mean((1, 3)), np.float64)


def simulated_scenes(count: int, size_px: int, seed: int) -> list[NDArray[np.float32]]:
    """Held-out simulated fields, each of its own seed: asking for more adds scenes and changes none."""
    return [simulate_field(np.random.default_rng((HELD_OUT_SEED + seed, i)), size_px) for i in range(count)]


def real_scenes(data: Path, size_px: int) -> list[NDArray[np.float32]]:
    """Centres of clean frames from the permissive sets' ``val`` splits, a few of each set, evenly spread.

    Raises
    ------
    TrainingError : no frame of at least ``size_px`` there
    """
    found: list[NDArray[np.float32]] = []
    for name in PERMISSIVE_SETS:
        frames = [_centre(f.brightness.float().numpy(), size_px) for f in clean_fields(data / "clean" / name / "val")]
        found += _spread([f for f in frames if f is not None], FRAMES_PER_SET)
    if not found:
        raise TrainingError(
            f"{data / 'clean'} holds no val frame of {size_px}x{size_px} px or more; expected the folders of "
            f"{', '.join(PERMISSIVE_SETS)}: leave data out to use simulated scenes alone, or choose a smaller size"
        )
    return found


def given_scenes(frames: Sequence[NDArray[Any]], size_px: int) -> list[NDArray[np.float32]]:
    """Clean frames of the caller's own, scaled as training scales them: background 0, 99.9 percentile 1.

    Raises
    ------
    TrainingError : not 2-D, not finite, constant, or smaller than 64 px
    """
    return [_scaled(np.asarray(frame), size_px, index) for index, frame in enumerate(frames)]


def _scaled(frame: NDArray[Any], size_px: int, index: int) -> NDArray[np.float32]:
    if frame.ndim != 2 or frame.dtype.kind not in "uif" or min(frame.shape) < 64:
        raise TrainingError(
            f"clean frame {index} is {frame.dtype} of shape {frame.shape}; expected (H, W) numbers, 64 px or more"
        )
    side = min(*frame.shape, size_px) // 16 * 16
    y, x = ((n - side) // 2 for n in frame.shape)
    crop = frame[y : y + side, x : x + side].astype(np.float32)
    low, high = np.percentile(crop, (0.5, 99.9))
    if not np.isfinite(crop).all() or not high > low:
        raise TrainingError(f"clean frame {index} is constant or not finite; expected a frame with structure")
    return (crop - np.float32(low)) / np.float32(high - low)


def _centre(field: NDArray[np.float32], size_px: int) -> NDArray[np.float32] | None:
    if min(field.shape) < size_px:
        return None
    y, x = ((n - size_px) // 2 for n in field.shape)
    crop = field[y : y + size_px, x : x + size_px]
    return crop if np.ptp(crop) > 0.2 else None  # an empty centre tells nothing about structure


def _spread(items: list[NDArray[np.float32]], count: int) -> Iterator[NDArray[np.float32]]:
    if items:
        for index in sorted(set(np.linspace(0, len(items) - 1, count).round().astype(int).tolist())):
            yield items[index]
