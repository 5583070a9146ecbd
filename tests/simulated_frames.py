"""Cameras for the tests: clean photons in, camera counts out, with white or correlated noise of known strength."""

import numpy as np


def photons_of(clean, *, peak, background=2.0):
    """A real clean frame as photoelectrons: its brightest 1 % at about ``peak``."""
    low, high = np.percentile(clean, [0.5, 99])
    return background + peak * np.clip((clean.astype(np.float64) - low) / (high - low), 0, 2)


def photograph(photons, *, gain=0.5, offset=0.0, readout=1.0, kernel=None, dtype=np.float32, seed=0):
    """Counts of a camera: Poisson and readout noise, filtered by a separable kernel (y, x) of unit energy.

    The noise is filtered, not the scene, so the variance per pixel stays that of a flat scene.
    """
    rng = np.random.default_rng(seed)
    noise = rng.poisson(photons) - photons + rng.normal(0, readout, np.shape(photons))
    if kernel is not None:
        for axis, taps in enumerate(kernel):
            unit = np.asarray(taps, float) / np.sqrt(np.sum(np.square(taps)))
            noise = sum(w * np.roll(noise, k, axis) for k, w in enumerate(unit))
    counts = (photons + noise) / gain + offset
    if np.dtype(dtype).kind == "f":
        return counts.astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(counts), limits.min, limits.max).astype(dtype)


def lag_1(taps):
    """Lag-1 correlation of white noise that a kernel filtered."""
    taps = np.asarray(taps, float)
    return float(np.sum(taps[1:] * taps[:-1]) / np.sum(taps**2))
