"""Noise levels: the descending sigmas that a sampler walks, always explicit and never a stride over timesteps.

Everything is in variance-exploding coordinates: ``x = x_t / sqrt(alpha_bar)`` is the clean image plus Gaussian noise
of standard deviation ``sigma = sqrt((1 - alpha_bar) / alpha_bar)``. Levels may be absolute (model units) or relative to
the measured level of a frame (1 -> 0); a sampler's table does not care, see `runtime.samplers.Row`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import PlanError, ShapeError

FloatArray = NDArray[np.floating]
Levels = tuple[float, ...]
FloatOrArray = TypeVar("FloatOrArray", float, FloatArray)

# Spacing of the levels from the measured one to zero. Walking from a frame's own noise level crosses about one decade
# of sigma, where EDM's rho = 7 (made for five decades) wastes its steps near zero. Compared by the distance to the
# exact probability-flow endpoint on analytic denoisers (Gaussians, sparse scale mixtures, spike and slab; K = 2, 4, 8),
# 1.5 is within 15 % of the best exponent in all of them. Against linear levels it is 10 to 25 % nearer at K = 4 where
# most structure is weaker than the noise, which is what the extra steps are for, and up to 10 % farther where it is
# stronger.
MEASURED_RHO = 1.5


def pairs(levels: Iterable[float]) -> tuple[tuple[float, float], ...]:
    """Consecutive ``(sigma, sigma_next)`` of a descending sequence: one pair per sampler step.

    Parameters
    ----------
    levels : two or more finite sigmas, strictly descending, all positive but the last, which may be 0

    Raises
    ------
    PlanError : the sequence is too short, not finite, not descending or negative
    """
    sequence = tuple(float(level) for level in levels)
    if len(sequence) < 2:
        raise PlanError(f"levels are {sequence}; expected a start and at least one lower level, such as (1.0, 0.0)")
    if not all(math.isfinite(level) and level >= 0 for level in sequence):
        raise PlanError(f"levels are {sequence}; expected finite sigmas of 0 or more")
    steps = tuple(pairwise(sequence))
    for index, (sigma, sigma_next) in enumerate(steps):
        if sigma_next >= sigma:
            raise PlanError(
                f"level {index + 1} is {sigma_next} after {sigma}; expected strictly descending sigmas: sort them "
                "from noisy to clean and drop repeats"
            )
    return steps


def measured(steps: int, *, rho: float = MEASURED_RHO) -> Levels:
    """Relative levels from the measured frame (1) to zero: ``((K - i) / K)**rho``. The default of the restore path.

    Parameters
    ----------
    steps : K, number of pairs; 1 is the posterior mean, 2 to 4 give detail back
    rho : spacing; 1 is linear, larger puts more levels near zero

    Returns
    -------
    K + 1 levels, the first 1 and the last 0; K = 2 gives (1, 0.354, 0)

    Source: Karras et al. 2022, arXiv:2206.00364, eq. 5 with sigma_min = 0.
    """
    _check_steps(steps)
    _check_rho(rho)
    return tuple(((steps - i) / steps) ** rho for i in range(steps + 1))


def karras(steps: int, sigma_start: float, sigma_min: float, *, rho: float = 7.0, to_zero: bool = True) -> Levels:
    """Levels evenly spaced in ``sigma**(1 / rho)``.

    Parameters
    ----------
    steps : number of pairs
    sigma_start, sigma_min : highest and lowest positive level, same units
    rho : spacing; 7 is EDM's choice for generation from pure noise
    to_zero : end with a pair to 0 (EDM), so that sigma_min is the last level but one; otherwise end at sigma_min

    Returns
    -------
    ``steps + 1`` levels; one step to zero is ``(sigma_start, 0)``

    Raises
    ------
    PlanError : steps, levels or rho out of range

    Source: Karras et al. 2022, arXiv:2206.00364, eq. 5.
    """
    _check_range(steps, sigma_start, sigma_min)
    _check_rho(rho)
    high, low = sigma_start ** (1 / rho), sigma_min ** (1 / rho)
    inner = [(high + f * (low - high)) ** rho for f in _fractions(steps, to_zero)]
    return _with_exact_ends(inner, sigma_start, sigma_min, to_zero)


def log_linear(steps: int, sigma_start: float, sigma_min: float, *, to_zero: bool = True) -> Levels:
    """Levels evenly spaced in ``log(sigma)``: equal steps in DPM-Solver's lambda. Arguments as in `karras`."""
    _check_range(steps, sigma_start, sigma_min)
    inner = [sigma_start * (sigma_min / sigma_start) ** f for f in _fractions(steps, to_zero)]
    return _with_exact_ends(inner, sigma_start, sigma_min, to_zero)


def linear(steps: int, sigma_start: float = 1.0, sigma_end: float = 0.0) -> Levels:
    """Levels evenly spaced in sigma, as InDI's t.

    Parameters
    ----------
    steps : number of pairs
    sigma_start, sigma_end : first and last level, same units; sigma_end may be 0

    Source: Delbracio & Milanfar 2023, arXiv:2303.11435.
    """
    _check_steps(steps)
    if not (0 <= sigma_end < sigma_start and math.isfinite(sigma_start)):
        raise PlanError(f"levels run from {sigma_start} to {sigma_end}; expected finite start > end >= 0")
    return tuple(sigma_start * ((steps - i) / steps) + sigma_end * (i / steps) for i in range(steps + 1))


def from_alphas_cumprod(alphas_cumprod: ArrayLike, timesteps: Iterable[int], *, to_zero: bool = True) -> Levels:
    """Levels of a discrete variance-preserving schedule at the given timesteps.

    Parameters
    ----------
    alphas_cumprod : (T,) alpha_bar per timestep, each in (0, 1]
    timesteps : descending indices into it
    to_zero : append a last level 0 (diffusers: ``set_alpha_to_one``)

    Raises
    ------
    PlanError : a timestep is outside the schedule, or the resulting levels do not descend
    """
    alpha_bar = np.asarray(alphas_cumprod, dtype=np.float64)
    if alpha_bar.ndim != 1:
        raise PlanError(f"alphas_cumprod has shape {alpha_bar.shape}; expected one value per timestep, (T,)")
    indices = [int(t) for t in timesteps]
    outside = [t for t in indices if not 0 <= t < alpha_bar.size]
    if outside:
        raise PlanError(f"timesteps {outside} are outside the schedule; expected 0 to {alpha_bar.size - 1}")
    levels = [sigma_from_alpha_bar(float(alpha_bar[t])) for t in indices]
    # A schedule that starts at alpha_bar = 1 is at zero already.
    if to_zero and not (levels and levels[-1] == 0):
        levels.append(0.0)
    pairs(levels)
    return tuple(levels)


def trailing(steps: int, count: int) -> tuple[int, ...]:
    """``steps`` descending timesteps of ``count``, from the last one on, evenly spaced: a walk that ends at zero.

    Source: Lin et al. 2024, arXiv:2305.08891, section 3.4; the numbers of diffusers' ``timestep_spacing="trailing"``.
    """
    _check_count(steps, count)
    return tuple(round(count - i * (count / steps)) - 1 for i in range(steps))


def first_to_last(steps: int, count: int) -> tuple[int, ...]:
    """``steps + 1`` descending timesteps of ``count``, the last and the first among them: ending at timestep 0.

    Source: the grid of I2SB, arXiv:2302.05872.
    """
    _check_count(steps, count - 1)
    return tuple(round(i * ((count - 1) / steps)) for i in range(steps, -1, -1))


def sigma_from_alpha_bar(alpha_bar: FloatOrArray) -> FloatOrArray:
    """``sqrt((1 - alpha_bar) / alpha_bar)``; float or array, alpha_bar in (0, 1]."""
    if not (np.min(alpha_bar) > 0 and np.max(alpha_bar) <= 1):
        raise PlanError(f"alpha_bar spans {np.min(alpha_bar)} to {np.max(alpha_bar)}; expected values in (0, 1]")
    sigma: FloatOrArray = ((1 - alpha_bar) / alpha_bar) ** 0.5  # mypy types a float's power as Any
    return sigma


def alpha_bar_from_sigma(sigma: FloatOrArray) -> FloatOrArray:
    """``1 / (1 + sigma**2)``; float or array, sigma of 0 or more."""
    if not np.min(sigma) >= 0:
        raise PlanError(f"lowest sigma is {np.min(sigma)}; expected 0 or more and no NaN")
    return 1 / (1 + sigma**2)


def level_like(sigma: float | FloatArray, x: FloatArray) -> float | FloatArray:
    """A noise level ready for arithmetic with ``x``: a plain float, or an array of x's dtype that broadcasts to x.

    Without this a NumPy float64 scalar or map would silently widen a float32 frame.

    Raises
    ------
    PlanError : sigma is negative, infinite or NaN somewhere
    ShapeError : the map does not broadcast to ``x``
    """
    low, high = float(np.min(sigma)), float(np.max(sigma))
    if not (low >= 0 and math.isfinite(high)):
        raise PlanError(f"sigma spans {low} to {high}; expected finite noise levels of 0 or more")
    if np.ndim(sigma) == 0:
        return low
    sigma_map = np.asarray(sigma, dtype=x.dtype)
    if sigma_map.ndim > x.ndim or any(
        m not in (1, n) for m, n in zip(sigma_map.shape[::-1], x.shape[::-1], strict=False)
    ):
        raise ShapeError(f"sigma map is {sigma_map.shape}, image is {x.shape}; expected a map that broadcasts to it")
    return sigma_map


def _fractions(steps: int, to_zero: bool) -> list[float]:
    """Positions of the positive levels between sigma_start (0) and sigma_min (1)."""
    count = steps if to_zero else steps + 1
    return [i / (count - 1) if count > 1 else 0.0 for i in range(count)]


def _with_exact_ends(inner: list[float], sigma_start: float, sigma_min: float, to_zero: bool) -> Levels:
    """Powers and roots leave a rounding error; the ends are promised exactly."""
    middle = inner[1:-1]
    if len(inner) == 1:
        return (sigma_start, 0.0)
    return (sigma_start, *middle, sigma_min, *((0.0,) if to_zero else ()))


def _check_steps(steps: int) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise PlanError(f"steps is {steps!r}; expected a whole number of 1 or more")


def _check_count(steps: int, most: int) -> None:
    _check_steps(steps)
    if steps > most:
        raise PlanError(f"steps is {steps}; this schedule has room for at most {most}")


def _check_rho(rho: float) -> None:
    if not (rho > 0 and math.isfinite(rho)):
        raise PlanError(f"rho is {rho}; expected a finite number above 0 (1 is linear, 7 is EDM's)")


def _check_range(steps: int, sigma_start: float, sigma_min: float) -> None:
    _check_steps(steps)
    if not (0 < sigma_min < sigma_start and math.isfinite(sigma_start)):
        raise PlanError(f"levels run from {sigma_start} to {sigma_min}; expected finite sigma_start > sigma_min > 0")
