"""Simulated microscope structures: clean fields for training and tests, never shown as measured data.

``simulate_field`` draws one field of one to three kinds of structure (filaments, membranes, vesicles, nuclei,
mitochondria, texture), adds out-of-focus haze and a slow background, and blurs everything with a point-spread
function. Values are relative brightness: 0 is dark, about 1 is the brightest ordinary structure.
`models/noise.py` turns such fields into photons and camera counts.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage
from scipy.spatial import cKDTree

Field = NDArray[np.float32]
Draw = Callable[[np.random.Generator, int], Field]


def simulate_field(rng: np.random.Generator, size_px: int = 256) -> Field:
    """Draw one clean field.

    Parameters
    ----------
    rng : source of all randomness; the same state gives the same field
    size_px : height and width, pixels

    Returns
    -------
    (size_px, size_px) float32, relative brightness >= 0, 99.9 percentile scaled to 1
    """
    kinds = list(STRUCTURES.values())
    field = np.zeros((size_px, size_px), np.float32)
    for draw in rng.choice(len(kinds), size=rng.choice([1, 1, 2, 3]), replace=False):
        layer = kinds[draw](rng, size_px)
        field += layer * (rng.uniform(0.2, 1.0) / max(float(np.percentile(layer, 99.9)), 1e-6))
    field = blur(field, rng.uniform(0.5, 2.2))
    field += _haze(rng, field)
    return field / max(float(np.percentile(field, 99.9)), 1e-6)


def blur(field: Field, sigma_px: float) -> Field:
    """Gaussian blur with mirrored borders; a fair stand-in for the core of a widefield or confocal PSF."""
    return ndimage.gaussian_filter(field, sigma_px, mode="reflect", truncate=3.0)


def filaments(rng: np.random.Generator, size_px: int) -> Field:
    """Semi-flexible curves (actin, microtubules), alone or in bundles, of varying brightness."""
    count, length = int(rng.integers(5, 120)), int(size_px * rng.uniform(0.5, 1.6))
    stiffness = 10 ** rng.uniform(-2.2, -1.0)
    angle = rng.uniform(0, 2 * np.pi, (count, 1))
    if rng.random() < 0.4:  # aligned, as in stress fibres
        angle = rng.uniform(0, 2 * np.pi) + rng.normal(0, 0.25, (count, 1))
    heading = angle + np.cumsum(rng.normal(0, stiffness, (count, 2 * length)), axis=1)
    start = rng.uniform(-0.2, 1.2, (2, count, 1)) * size_px
    y, x = start[0] + np.cumsum(np.sin(heading), 1) * 0.5, start[1] + np.cumsum(np.cos(heading), 1) * 0.5
    weight = np.repeat(rng.lognormal(0, 0.6, (count, 1)), 2 * length, axis=1)
    return blur(splat(y, x, weight, size_px), rng.uniform(0.4, 1.0))


def vesicles(rng: np.random.Generator, size_px: int) -> Field:
    """Spots, discs and rings, spread evenly or in clusters."""
    count = int(10 ** rng.uniform(0.8, 3.0))
    centre = rng.uniform(0, size_px, (2, count))
    if rng.random() < 0.5:
        hubs = rng.uniform(0, size_px, (2, max(1, count // 30)))
        centre = hubs[:, rng.integers(0, hubs.shape[1], count)] + rng.normal(0, size_px * 0.08, (2, count))
    brightness = rng.lognormal(0, rng.uniform(0.2, 1.0), count)
    radius, ring = rng.uniform(0.0, 5.0), rng.random() < 0.4
    points = 24
    turn = rng.uniform(0, 2 * np.pi, (count, points))
    reach = radius * (np.ones((count, points)) if ring else np.sqrt(rng.random((count, points))))
    y, x = centre[0][:, None] + reach * np.sin(turn), centre[1][:, None] + reach * np.cos(turn)
    spots = splat(y, x, np.repeat(brightness[:, None], points, 1), size_px)
    return blur(spots, 0.4 + 0.35 * radius * (not ring))


def nuclei(rng: np.random.Generator, size_px: int) -> Field:
    """Filled smooth shapes with chromatin texture."""
    spacing = rng.uniform(18, 90)
    shape = _smooth_noise(rng, size_px, spacing * 0.35)
    mask = np.clip((shape - np.quantile(shape, rng.uniform(0.5, 0.9))) * rng.uniform(2, 12), 0, 1)
    level = 1 + 0.35 * _smooth_noise(rng, size_px, spacing)
    chromatin = 1 + rng.uniform(0, 0.45) * _smooth_noise(rng, size_px, rng.uniform(1.2, 5.0))
    return (mask * np.clip(level * chromatin, 0.05, None)).astype(np.float32)


def membranes(rng: np.random.Generator, size_px: int) -> Field:
    """Closed lines: borders of a Voronoi-like tissue or contours of smooth cells."""
    if rng.random() < 0.5:
        count = int(rng.integers(6, 90))
        seeds = rng.uniform(0, size_px, (count, 2))
        grid = np.stack(np.mgrid[:size_px, :size_px], -1).reshape(-1, 2).astype(np.float32)
        warp = np.stack([_smooth_noise(rng, size_px, 12).ravel() for _ in range(2)], -1) * rng.uniform(0, 4)
        nearest, _ = cKDTree(seeds).query(grid + warp, k=2)
        gap = (nearest[:, 1] - nearest[:, 0]).reshape(size_px, size_px)
        lines = np.exp(-((gap / rng.uniform(0.8, 2.5)) ** 2))
    else:
        surface = _smooth_noise(rng, size_px, rng.uniform(8, 40))
        slope = np.hypot(*np.gradient(surface)) + 1e-3
        lines = np.zeros_like(surface)
        for level in rng.normal(0, 0.8, int(rng.integers(1, 4))):
            lines += np.exp(-(((surface - level) / slope / rng.uniform(0.8, 2.0)) ** 2))
    return (lines * np.clip(1 + 0.4 * _smooth_noise(rng, size_px, 10), 0.1, None)).astype(np.float32)


def mitochondria(rng: np.random.Generator, size_px: int) -> Field:
    """Short thick worms, crowded around some centres."""
    count, length = int(rng.integers(20, 260)), int(rng.integers(12, 70))
    hubs = rng.uniform(0, size_px, (2, int(rng.integers(1, 5))))
    start = hubs[:, rng.integers(0, hubs.shape[1], count)] + rng.normal(0, size_px * rng.uniform(0.1, 0.4), (2, count))
    heading = rng.uniform(0, 2 * np.pi, (count, 1)) + np.cumsum(rng.normal(0, 0.12, (count, length)), axis=1)
    y = start[0][:, None] + np.cumsum(np.sin(heading), 1) * 0.5
    x = start[1][:, None] + np.cumsum(np.cos(heading), 1) * 0.5
    weight = np.repeat(rng.lognormal(0, 0.4, (count, 1)), length, axis=1)
    return blur(splat(y, x, weight, size_px), rng.uniform(0.8, 2.2))


def texture(rng: np.random.Generator, size_px: int) -> Field:
    """A power-law random field, sometimes thresholded: tissue, electron-microscope-like contrast, dense labels."""
    frequency = np.hypot(fft.fftfreq(size_px)[:, None], fft.rfftfreq(size_px)[None])
    spectrum = 1.0 / np.maximum(frequency, 2.0 / size_px) ** rng.uniform(1.0, 2.2)
    noise = fft.rfft2(rng.normal(size=(size_px, size_px)))
    field = fft.irfft2(noise * spectrum, s=(size_px, size_px))
    field = (field - field.mean()) / field.std()
    if rng.random() < 0.4:
        field = np.tanh(field * rng.uniform(1, 5))
    return np.clip(1 + 0.5 * field, 0, None).astype(np.float32)


STRUCTURES: dict[str, Draw] = {
    "filaments": filaments,
    "vesicles": vesicles,
    "nuclei": nuclei,
    "membranes": membranes,
    "mitochondria": mitochondria,
    "texture": texture,
}


def splat(y: NDArray[np.float64], x: NDArray[np.float64], weight: NDArray[np.float64], size_px: int) -> Field:
    """Add points to a grid with bilinear weights; points outside are dropped."""
    y, x, weight = y.ravel(), x.ravel(), weight.ravel()
    inside = (y >= 0) & (y < size_px - 1) & (x >= 0) & (x < size_px - 1)
    y, x, weight = y[inside], x[inside], weight[inside]
    row, column = y.astype(np.int64), x.astype(np.int64)
    fy, fx = y - row, x - column
    grid = np.zeros(size_px * size_px)
    for dy, wy in ((0, 1 - fy), (1, fy)):
        for dx, wx in ((0, 1 - fx), (1, fx)):
            grid += np.bincount((row + dy) * size_px + column + dx, weight * wy * wx, minlength=size_px * size_px)
    return grid.reshape(size_px, size_px).astype(np.float32)


def _smooth_noise(rng: np.random.Generator, size_px: int, sigma_px: float) -> Field:
    noise = ndimage.gaussian_filter(rng.normal(size=(size_px, size_px)).astype(np.float32), sigma_px, mode="wrap")
    return noise / max(float(noise.std()), 1e-9)


def _haze(rng: np.random.Generator, field: Field) -> Field:
    """Out-of-focus light of the structure itself and a slow background."""
    haze = np.zeros_like(field)
    if rng.random() < 0.6:
        haze += rng.uniform(0, 1.0) * blur(field, rng.uniform(5, 20))
    if rng.random() < 0.4:
        slow = _smooth_noise(rng, field.shape[0], field.shape[0] * rng.uniform(0.1, 0.4))
        haze += rng.uniform(0, 0.15) * np.clip(1 + slow, 0, None).astype(np.float32)
    return haze
