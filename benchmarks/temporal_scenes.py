"""Simulated scenes that stand still, move, blink and fade, photographed by a known camera: what fusion is judged on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

import photonstep as ps

Image = NDArray[np.float64]
Scene = Callable[[int], Image]  # frame number -> mean photoelectrons

CAMERA: Final = ps.Camera(offset_adu=100.0, gain_e_per_adu=0.46, readout_noise_e=1.6)  # a common sCMOS camera
SIDE_PX: Final = 128
BACKGROUND_E: Final = 3.0
SPOT_SIGMA_PX: Final = 1.4
GRID: Final = 4  # spots a side
LYSOSOME: Final = Path(__file__).resolve().parent.parent / "tests" / "data" / "lysosome.tif"


@dataclass(frozen=True, kw_only=True)
class Spots:
    """Spots on a grid, each at a place of its own below a pixel: (N, 2) centres (y, x) of frame 0, px."""

    start_px: Image
    peak_e: float

    def places(self, shift_px: float) -> list[tuple[float, float, int]]:
        """(y, x, direction) of every spot that moved so far; they go left and right by turns: the scene stays."""
        ways = [1 - 2 * ((n + n // GRID) % 2) for n in range(len(self.start_px))]
        return [(y, x + way * shift_px, way) for (y, x), way in zip(self.start_px, ways, strict=True)]

    def at(self, shift_px: float = 0.0, weight: float = 1.0) -> Image:
        """Mean photoelectrons with all spots moved along x and their light scaled."""
        y, x = np.mgrid[:SIDE_PX, :SIDE_PX].astype(np.float64)
        light = np.full((SIDE_PX, SIDE_PX), BACKGROUND_E)
        for row, column, _ in self.places(shift_px):
            near = np.exp(-((y[:, 0] - row) ** 2) / (2 * SPOT_SIGMA_PX**2))
            along = np.exp(-((x[0] - column) ** 2) / (2 * SPOT_SIGMA_PX**2))
            light += weight * self.peak_e * near[:, None] * along[None]
        return light


def spots(peak_e: float, seed: int) -> Spots:
    """A grid of spots at random fractions of a pixel."""
    pitch = SIDE_PX // GRID
    corner = np.stack(np.meshgrid(np.arange(GRID), np.arange(GRID), indexing="ij"), -1).reshape(-1, 2) * pitch
    jitter = np.random.default_rng(seed).uniform(-1, 1, corner.shape)
    return Spots(start_px=corner + np.array([pitch / 2, pitch / 2]) + jitter, peak_e=peak_e)


def structures(seed: int, count: int = 4) -> Iterator[tuple[str, Image]]:
    """Relative brightness, 0 to about 1: a real confocal frame of high signal, and simulated structures."""
    import tifffile

    from photonstep.models.simulate import simulate_field

    clean = tifffile.imread(LYSOSOME).astype(np.float64)
    low, high = np.percentile(clean, [0.5, 99])
    yield "lysosomes", np.clip((clean - low) / (high - low), 0, 2)
    rng = np.random.default_rng(seed)
    for index in range(count):
        yield f"simulated {index + 1}", np.asarray(simulate_field(rng, SIDE_PX), np.float64)


def drifting(field: Image, light_e: float, step_px: float) -> Scene:
    """A field that moves along x by a fraction of a pixel a frame, shifted in Fourier space, and wraps around."""
    spectrum = np.fft.rfft(field, axis=1)
    frequency = np.fft.rfftfreq(field.shape[1])

    def scene(t: int) -> Image:
        moved = np.fft.irfft(spectrum * np.exp(-2j * np.pi * frequency * step_px * t), n=field.shape[1], axis=1)
        return 1.0 + light_e * np.maximum(moved, 0)

    return scene


def uncovered(light_e: float, step_px: int, texture: Image) -> Scene:
    """A bright plate that moves to the left over a textured, dim background and uncovers it."""

    def scene(t: int) -> Image:
        light = BACKGROUND_E * (0.7 + 0.6 * texture)
        light[:, : max(SIDE_PX * 3 // 4 - step_px * t, 0)] = light_e
        return light

    return scene


def photograph(photons: Image, rng: np.random.Generator) -> NDArray[np.uint16]:
    """(H, W) uint16 frame of `CAMERA` from (H, W) mean photoelectrons."""
    electrons = rng.poisson(photons) + rng.normal(0.0, float(CAMERA.readout_noise_e), photons.shape)
    counts = electrons / float(CAMERA.gain_e_per_adu) + float(CAMERA.offset_adu)
    return np.asarray(np.clip(np.rint(counts), 0, 65535), np.uint16)


class Player:
    """Restores a scene frame by frame, with fusion or without; photoelectrons out.

    Parameters
    ----------
    restorer : a `photonstep` restorer
    fusion : a `TemporalFusion`, or None for each frame by itself
    """

    def __init__(self, restorer: Any, fusion: Any | None) -> None:
        self._restorer, self._fusion, self._tracker = restorer, fusion, restorer.tracker()

    def __call__(self, frame: NDArray[np.uint16]) -> NDArray[np.float32]:
        image: NDArray[np.float32] = self._restorer.restore(
            frame, camera=CAMERA, steps=1, output="photoelectrons", tracker=self._tracker, fusion=self._fusion
        ).image
        return image


def locate(image: NDArray[Any], row: float, column: float) -> tuple[float, float]:
    """Centre (y, x) of a spot near a place: the point that a Gaussian mask of the spot's width is centred on."""
    reach = 5
    top, left = max(round(row) - reach, 0), max(round(column) - reach, 0)
    window = image[top : top + 2 * reach + 1, left : left + 2 * reach + 1].astype(np.float64) - BACKGROUND_E
    y, x = top + np.arange(window.shape[0])[:, None], left + np.arange(window.shape[1])[None]
    for _ in range(12):
        mask = window * np.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * SPOT_SIGMA_PX**2))
        total = float(mask.sum())
        if total <= 0:
            break
        row, column = float((mask * y).sum() / total), float((mask * x).sum() / total)
    return row, column


def light_of(image: NDArray[Any], row: float, column: float) -> float:
    """Amplitude of a spot at a known place, photoelectrons: least squares of its profile on a constant."""
    reach = 5
    top, left = round(row) - reach, round(column) - reach
    window = image[top : top + 2 * reach + 1, left : left + 2 * reach + 1].astype(np.float64)
    y, x = top + np.arange(window.shape[0])[:, None], left + np.arange(window.shape[1])[None]
    profile = np.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * SPOT_SIGMA_PX**2))
    profile -= profile.mean()
    return float((profile * (window - window.mean())).sum() / (profile**2).sum())
