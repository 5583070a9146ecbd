"""What a network speaks: its prediction converted to x0_hat, and its input scaled and conditioned, in one place.

All in variance-exploding coordinates (see `runtime.schedule`): ``x = x0 + sigma eps``. A variance-preserving network
sees ``x_t = sqrt(alpha_bar) x`` with ``alpha_bar = 1 / (1 + sigma**2)``.

| prediction | the network returns | x0_hat |
| --- | --- | --- |
| eps | eps | x - sigma eps |
| x0 | x0 | x0 |
| v | sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0 | alpha_bar x - sigma sqrt(alpha_bar) v |
| edm_f | (x0 - c_skip x) / c_out | c_skip x + c_out F |
| score | d log p(x; sigma) / dx | x + sigma^2 score |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Final, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from .errors import PlanError, ShapeError
from .schedule import FloatArray, level_like, sigma_from_alpha_bar

Prediction = Literal["eps", "x0", "v", "edm_f", "score"]
Conditioning = Literal["sigma_map", "timestep", "gamma"]
InputScaling = Literal["edm", "vp", "none"]
PREDICTIONS: Final[tuple[Prediction, ...]] = get_args(Prediction)
CONDITIONINGS: Final[tuple[Conditioning, ...]] = get_args(Conditioning)
INPUT_SCALINGS: Final[tuple[InputScaling, ...]] = get_args(InputScaling)

# A frame's level is measured and so carries an error; this much above a schedule's end is still the end.
SIGMA_TOLERANCE = 1e-3


class EdmCoefficients(NamedTuple):
    """``x0 = c_skip x + c_out F(c_in x)``: floats, or maps where sigma is a map."""

    c_in: float | FloatArray
    c_skip: float | FloatArray
    c_out: float | FloatArray


def edm_coefficients(sigma: float | FloatArray, sigma_data: float) -> EdmCoefficients:
    """EDM's preconditioning: the network's input and target have unit variance at every noise level.

    Source: Karras et al. 2022, arXiv:2206.00364, table 1.
    """
    c_in = 1 / (sigma**2 + sigma_data**2) ** 0.5
    weight = sigma_data * c_in
    return EdmCoefficients(c_in=c_in, c_skip=weight**2, c_out=sigma * weight)


def c_noise(sigma: float | FloatArray, sigma_min: float) -> float | FloatArray:
    """EDM's noise conditioning ``log(sigma) / 4``; a level below ``sigma_min`` (a noiseless pixel) counts as it."""
    logarithm: FloatArray = np.log(np.maximum(sigma, sigma_min)) / 4
    return logarithm if np.ndim(sigma) else float(logarithm)


def to_x0(
    kind: Prediction,
    output: FloatArray,
    x: FloatArray,
    sigma: float | FloatArray,
    *,
    sigma_data: float | None = None,
) -> FloatArray:
    """The clean-image estimate that a network's output means.

    Parameters
    ----------
    kind : what the network predicts, one of `PREDICTIONS`
    output, x : network output and state, same shape, float32 or float64; the state is unscaled (not ``c_in x``)
    sigma : noise level of ``x``, float or map that broadcasts to it; 0 or more
    sigma_data : standard deviation of clean data in model units, for ``edm_f`` only

    Returns
    -------
    x0_hat of x's shape and dtype

    Raises
    ------
    PlanError : unknown kind, sigma out of range, or ``edm_f`` without sigma_data
    ShapeError : shapes or dtypes differ
    """
    check_choice("prediction", kind, PREDICTIONS)
    _check_pair(output, x)
    level = level_like(sigma, x)
    if kind == "eps":
        return x - level * output
    if kind == "v":
        alpha_bar = 1 / (1 + level**2)
        return alpha_bar * x - level * alpha_bar**0.5 * output
    if kind == "edm_f":
        c = edm_coefficients(level, require_sigma_data(sigma_data))
        x0: FloatArray = c.c_out * output
        x0 += c.c_skip * x
        return x0
    if kind == "score":
        return x + level**2 * output
    return output


def from_x0(
    kind: Prediction,
    x0: FloatArray,
    x: FloatArray,
    sigma: float | FloatArray,
    *,
    sigma_data: float | None = None,
) -> FloatArray:
    """The inverse of `to_x0`: what a network of this kind would return for ``x0``. Needs sigma > 0 except for x0."""
    check_choice("prediction", kind, PREDICTIONS)
    _check_pair(x0, x)
    if kind == "x0":
        return x0
    level = level_like(sigma, x)
    if not np.min(level) > 0:
        raise PlanError(f"lowest sigma is {np.min(level)}; expected more than 0, where {kind} is defined")
    if kind == "eps":
        return (x - x0) / level
    if kind == "v":
        alpha_bar = 1 / (1 + level**2)
        return (alpha_bar * x - x0) / (level * alpha_bar**0.5)
    if kind == "edm_f":
        c = edm_coefficients(level, require_sigma_data(sigma_data))
        return (x0 - c.c_skip * x) / c.c_out
    return (x0 - x) / level**2


@dataclass(frozen=True, kw_only=True)
class Parameterisation:
    """How a network is fed and read. Everything that a sampler needs to see only x0_hat.

    Parameters
    ----------
    prediction : what the network returns, one of `PREDICTIONS`
    conditioning : how it learns the noise level. ``sigma_map``: a plane like the image that holds ``log(sigma) / 4``
        with EDM scaling, sigma otherwise. ``timestep``: an index into ``alphas_cumprod``. ``gamma``: alpha_bar
    input_scaling : what the image is multiplied by. ``edm``: c_in; ``vp``: sqrt(alpha_bar); ``none``: 1. Left out, it
        follows: edm_f -> edm; sigmas -> none; v, timestep and gamma -> vp; otherwise none. See `scaling`
    sigma_data : standard deviation of clean data in model units; edm only
    sigma_min : lowest level that the network was trained on, model units; ``log(sigma)`` goes no lower
    alphas_cumprod : alpha_bar per timestep, descending, each in (0, 1); timestep conditioning only
    sigmas : instead, the noise level per timestep, rising: the grid of a bridge, which has no alpha_bar
    integer_timestep : round to the nearest timestep (lookup tables); False interpolates in log(sigma)
    clip_x0 : x0_hat is clipped to this (low, high); None leaves it alone

    Raises
    ------
    PlanError : an unknown choice, or a number that is missing or out of range
    """

    prediction: Prediction
    conditioning: Conditioning
    input_scaling: InputScaling | None = None
    sigma_data: float | None = None
    sigma_min: float = 0.002
    alphas_cumprod: Sequence[float] | None = None
    sigmas: Sequence[float] | None = None
    integer_timestep: bool = True
    clip_x0: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        check_choice("prediction", self.prediction, PREDICTIONS)
        check_choice("conditioning", self.conditioning, CONDITIONINGS)
        if self.input_scaling is not None:
            check_choice("input_scaling", self.input_scaling, INPUT_SCALINGS)
        if self.prediction == "edm_f" or self.scaling == "edm":
            require_sigma_data(self.sigma_data)
        if not 0 < self.sigma_min < np.inf:
            raise PlanError(f"sigma_min is {self.sigma_min}; expected a finite level above 0")
        if self.alphas_cumprod is not None:
            values = tuple(float(value) for value in self.alphas_cumprod)
            _check_alphas_cumprod(values)
            object.__setattr__(self, "alphas_cumprod", values)  # a tuple: frozen and hashable like the rest
        if self.sigmas is not None:
            levels = tuple(float(value) for value in self.sigmas)
            _check_sigmas(levels, self)
            object.__setattr__(self, "sigmas", levels)
        elif self.alphas_cumprod is None and self.conditioning == "timestep":
            raise PlanError(
                "timestep conditioning needs alphas_cumprod or sigmas, to know which timestep a noise level is"
            )
        if self.clip_x0 is not None and not -np.inf < self.clip_x0[0] < self.clip_x0[1] < np.inf:
            raise PlanError(f"clip_x0 is {self.clip_x0}; expected (low, high), finite, low below high")

    @property
    def scaling(self) -> InputScaling:
        """The input scaling in force."""
        if self.input_scaling is not None:
            return self.input_scaling
        if self.prediction == "edm_f":
            return "edm"
        if self.sigmas is not None:
            return "none"
        return "vp" if self.prediction == "v" or self.conditioning != "sigma_map" else "none"

    def network_input(self, x: FloatArray, sigma: float | FloatArray) -> tuple[FloatArray, NDArray[Any]]:
        """What the network is fed at a state.

        Parameters
        ----------
        x : state, float32 or float64, any shape
        sigma : its noise level, float or map that broadcasts to ``x``; timestep and gamma take one level per image

        Returns
        -------
        x_in : of x's shape and dtype
        cond : ``sigma_map``: like ``x``. ``timestep``: 0-d int64, or of x's dtype when interpolated. ``gamma``: 0-d of
            x's dtype

        Raises
        ------
        PlanError : sigma out of range, or a map where the network takes one level
        ShapeError : the map does not broadcast to ``x``
        """
        level = level_like(sigma, x)
        if self.scaling == "edm":
            x_in = edm_coefficients(level, require_sigma_data(self.sigma_data)).c_in * x
        elif self.scaling == "vp":
            x_in = x / (1 + level**2) ** 0.5
        else:
            x_in = x
        return x_in, self._condition(level, x)

    def x0(self, output: FloatArray, x: FloatArray, sigma: float | FloatArray) -> FloatArray:
        """x0_hat from the network's output at the state ``x`` (unscaled); see `to_x0`."""
        x0 = to_x0(self.prediction, output, x, sigma, sigma_data=self.sigma_data)
        return x0 if self.clip_x0 is None else np.clip(x0, *self.clip_x0)

    def timestep(self, sigma: float) -> float:
        """The (fractional) timestep whose noise level is sigma, linear in log(sigma); sigma below the first is 0.

        Raises
        ------
        PlanError : sigma lies above the schedule
        """
        log_sigmas = self._log_sigmas
        if sigma > np.exp(log_sigmas[-1]) * (1 + SIGMA_TOLERANCE):
            raise PlanError(
                f"noise level {sigma:.4g} is above the schedule's last, {np.exp(log_sigmas[-1]):.4g}; bin the frame"
            )
        if sigma <= 0:
            return 0.0
        return float(np.interp(np.log(sigma), log_sigmas, np.arange(log_sigmas.size)))

    @cached_property
    def _log_sigmas(self) -> NDArray[np.float64]:
        if self.sigmas is not None:
            return np.log(np.asarray(self.sigmas, dtype=np.float64))
        if self.alphas_cumprod is None:
            raise PlanError("this parameterisation has no alphas_cumprod, so a noise level has no timestep")
        alpha_bar: NDArray[np.float64] = np.asarray(self.alphas_cumprod, dtype=np.float64)
        return np.log(sigma_from_alpha_bar(alpha_bar))

    def _condition(self, level: float | FloatArray, x: FloatArray) -> NDArray[Any]:
        if self.conditioning == "sigma_map":
            value = c_noise(level, self.sigma_min) if self.scaling == "edm" else level
            return np.full(x.shape, value, dtype=x.dtype)
        single = _one_level(level, self.conditioning)
        if self.conditioning == "gamma":
            return np.asarray(1 / (1 + single**2), dtype=x.dtype)
        index = self.timestep(single)
        return np.asarray(round(index), dtype=np.int64) if self.integer_timestep else np.asarray(index, dtype=x.dtype)


def check_choice(what: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise a `PlanError` that names the choices unless ``value`` is one of them."""
    if value not in choices:
        raise PlanError(f"{what} is {value!r}; choose one of {', '.join(choices)}")


def require_sigma_data(sigma_data: float | None) -> float:
    """sigma_data, or a `PlanError` where EDM's maths cannot do without it."""
    if sigma_data is None or not 0 < sigma_data < np.inf:
        raise PlanError(f"sigma_data is {sigma_data}; EDM needs the clean data's standard deviation, above 0")
    return sigma_data


def _one_level(level: float | FloatArray, conditioning: str) -> float:
    low, high = float(np.min(level)), float(np.max(level))
    if low != high:
        raise PlanError(
            f"sigma map spans {low:.4g} to {high:.4g}, but {conditioning} conditioning takes one level per image; "
            "pass a single level, or use a network with sigma_map conditioning"
        )
    return low


def _check_pair(output: FloatArray, x: FloatArray) -> None:
    if x.dtype not in (np.float32, np.float64) or output.dtype != x.dtype or output.shape != x.shape:
        raise ShapeError(
            f"network output is {output.shape} {output.dtype}, state is {x.shape} {x.dtype}; expected the same shape "
            "and float32 or float64 for both"
        )


def _check_alphas_cumprod(values: tuple[float, ...]) -> None:
    if len(values) < 2:
        raise PlanError(f"alphas_cumprod has {len(values)} values; expected one per timestep, at least 2")
    if not all(0 < value < 1 for value in values):
        raise PlanError(
            f"alphas_cumprod spans {min(values)} to {max(values)}; expected values inside (0, 1): at 0 (zero terminal "
            "SNR) sigma is infinite, drop that timestep"
        )
    if any(after >= before for before, after in pairwise(values)):
        raise PlanError("alphas_cumprod does not descend; expected the cleanest timestep first, the noisiest last")


def _check_sigmas(values: tuple[float, ...], network: Parameterisation) -> None:
    if network.alphas_cumprod is not None:
        raise PlanError("alphas_cumprod and sigmas are both given; expected one grid of levels: leave the other out")
    if network.conditioning != "timestep":
        raise PlanError(f"sigmas came with {network.conditioning} conditioning; expected timestep conditioning")
    if len(values) < 2 or not 0 < min(values) <= max(values) < np.inf:
        raise PlanError(f"sigmas has {len(values)} values; expected one per timestep, at least 2, finite and above 0")
    if any(after <= before for before, after in pairwise(values)):
        raise PlanError("sigmas does not rise; expected the cleanest timestep first, the noisiest last")
