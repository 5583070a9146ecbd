"""The camera that the ground truth reveals: what a blind estimate is measured against.

Source: affine mean-variance relation of a Poisson-Gaussian camera, Foi et al. 2008, IEEE TIP 17:1737.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from photonstep import Camera

from .datasets import Pair

BINS = 60  # equally filled brightness bins: enough for a line, thousands of pixels in each at 512x512
SATURATED_SHARE = 0.01  # a bin with more pixels at the ceiling has lost its upper tail


def fit_camera(pair: Pair) -> Camera:
    """Camera fitted to frame minus reference: ``var = a * mean + b`` and the lag-1 correlation of the noise.

    Parameters
    ----------
    pair : a noisy frame and its reference

    Returns
    -------
    Camera in the frame's units; only ``a`` and ``b`` are identifiable, so a positive ``b`` becomes readout noise at
    offset 0 and a negative one an offset without readout noise
    """
    mean = expected_frame(pair)
    residual = np.asarray(pair.frame, dtype=np.float64) - mean
    slope, intercept = fit_variance(pair, mean, residual)
    gain = 1.0 / slope
    std = np.sqrt(np.maximum(slope * mean + intercept, 0.05 * np.mean(residual**2)))
    return Camera(
        offset_adu=max(0.0, -intercept * gain),
        gain_e_per_adu=gain,
        readout_noise_e=gain * float(np.sqrt(max(0.0, intercept))),
        noise_correlation=lag1_correlation(residual / std),
    )


def expected_frame(pair: Pair) -> NDArray[np.float64]:
    """(H, W) noise-free frame in the frame's units; protocol B pairs differ by an unknown gain and offset."""
    reference = np.asarray(pair.reference, dtype=np.float64)
    if pair.protocol == "A":
        return reference
    frame = np.asarray(pair.frame, dtype=np.float64)
    open_pixels = _below_ceiling(pair)
    slope, intercept = np.polyfit(reference[open_pixels], frame[open_pixels], 1)
    return np.asarray(slope * reference + intercept)


def fit_variance(pair: Pair, mean: NDArray[np.float64], residual: NDArray[np.float64]) -> tuple[float, float]:
    """Slope (ADU) and intercept (ADU^2) of the noise variance over the mean, weighted by each bin's own precision."""
    order = np.argsort(mean, axis=None, kind="stable")
    bins = [b for b in np.array_split(order, BINS) if np.mean(~_below_ceiling(pair).ravel()[b]) <= SATURATED_SHARE]
    x = np.array([mean.ravel()[b].mean() for b in bins])
    y = np.array([residual.ravel()[b].var() for b in bins])
    if (
        pair.reference_frames is not None
    ):  # the noisy frame is one of those averaged: Var(frame - mean of n) = (1-1/n) Var
        y *= pair.reference_frames / (pair.reference_frames - 1)
    floor = 1e-3 * y.mean()
    model = np.maximum(y, floor)
    slope = intercept = 0.0
    for _ in range(5):  # a variance's standard error is proportional to itself, so weigh by the current model
        slope, intercept = np.polyfit(x, y, 1, w=1.0 / model)
        model = np.maximum(slope * x + intercept, floor)
    least = 1e-2 * y.mean() / max(float(np.ptp(x)), np.finfo(float).tiny)  # additive noise only: a vanishing slope
    if slope < least:
        return float(least), float(np.average(y - least * x, weights=1.0 / model**2))
    return float(slope), float(intercept)


def lag1_correlation(noise: NDArray[np.float64]) -> tuple[float, float]:
    """Lag-1 autocorrelation (y, x) of (H, W) noise of equal variance everywhere."""
    noise = noise - noise.mean()
    power = float(np.mean(noise**2))
    return float(np.mean(noise[1:] * noise[:-1])) / power, float(np.mean(noise[:, 1:] * noise[:, :-1])) / power


def _below_ceiling(pair: Pair) -> NDArray[np.bool_]:
    ceiling = np.iinfo(pair.frame.dtype).max if pair.frame.dtype.kind == "u" else np.inf
    return np.asarray(pair.frame < ceiling)
