"""Noise schedules made elsewhere: a diffusers scheduler, plain alphas_cumprod, or the time grid of a bridge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

from ..runtime.errors import TrainingError
from ..runtime.manifest import End, Start

DIFFUSERS_PREDICTIONS: Final = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}


@dataclass(frozen=True, kw_only=True)
class Bridge:
    """The time grid of a bridge from the degraded frame to the clean image; make one with `i2sb` or `resshift`.

    Parameters
    ----------
    sigmas : noise level per timestep index, rising, model units
    timesteps : what the network is told at each index, where that is not the index
    noisy_start : noise of the last level is added to the frame before the walk
    end : ``zero``, or ``first_level``: the walk ends at the level of index 0
    """

    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...] | None = None
    noisy_start: bool = False
    end: End = "zero"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What a schedule argument came down to."""

    start: Start
    alphas_cumprod: tuple[float, ...] | None = None
    sigmas: tuple[float, ...] | None = None
    timesteps: tuple[float, ...] | None = None
    end: End = "zero"
    notes: tuple[str, ...] = ()


def i2sb(betas: Sequence[float], *, timesteps: Sequence[float] | None = None) -> Bridge:
    """An I2SB bridge: sigma_t^2 is the running sum of beta; eps is (x_t - x0) / sigma_t.

    Parameters
    ----------
    betas : variance increment per timestep, above 0
    timesteps : what the network is told at each index; None tells it the index

    Source: Liu et al. 2023, arXiv:2302.05872, section 3.
    """
    sigmas = tuple(float(total) ** 0.5 for total in accumulate(float(beta) for beta in betas))
    return Bridge(sigmas=sigmas, timesteps=_floats(timesteps), end="first_level")


def resshift(etas: Sequence[float], kappa: float) -> Bridge:
    """A ResShift bridge: x_t = x0 + eta_t (y - x0) + kappa sqrt(eta_t) noise, so sigma_t = kappa sqrt(eta_t).

    Parameters
    ----------
    etas : eta per timestep, rising from near 0 to near 1
    kappa : noise strength, above 0

    Source: Yue et al. 2023, arXiv:2307.12348, section 3.1.
    """
    return Bridge(sigmas=tuple(float(kappa) * float(eta) ** 0.5 for eta in etas), noisy_start=True)


def grid_of(schedule: Any, prediction: str, start: str) -> Grid:
    """The grid of levels in any of the forms that `wrap` takes."""
    if start not in ("measured", "noise"):
        raise TrainingError(f"start is {start!r}; choose measured or noise; a bridge's start follows from its schedule")
    if isinstance(schedule, Bridge):
        if start == "noise":
            raise TrainingError("start is 'noise' with a Bridge, which starts at the frame; leave start out")
        if schedule.timesteps is not None and len(schedule.timesteps) != len(schedule.sigmas):
            raise TrainingError(
                f"the bridge has {len(schedule.sigmas)} sigmas and {len(schedule.timesteps)} timesteps; "
                "expected as many"
            )
        begins: Start = "noisy_degraded" if schedule.noisy_start else "degraded"
        return Grid(
            start=begins, sigmas=_floats(schedule.sigmas), timesteps=schedule.timesteps, end=schedule.end
        )  # fmt: skip
    begins = "noise" if start == "noise" else "measured"
    if schedule is None:
        return Grid(start=begins)
    if not hasattr(schedule, "config"):
        return Grid(start=begins, alphas_cumprod=_floats(schedule))
    if not hasattr(schedule, "alphas_cumprod"):
        raise TrainingError(
            f"schedule is a {type(schedule).__name__} without alphas_cumprod; expected a variance-preserving "
            "scheduler, such as DDPMScheduler or DDIMScheduler, or a Bridge"
        )
    settings = schedule.config
    says = DIFFUSERS_PREDICTIONS.get(settings.get("prediction_type", "epsilon"))
    if says is not None and says != prediction:
        raise TrainingError(f"prediction is {prediction!r}, the scheduler was made for {says!r}; they must agree")
    notes = []
    if settings.get("clip_sample") or settings.get("thresholding"):
        bound = settings.get("clip_sample_range", 1.0)
        notes.append(f"the scheduler clips x0 to +-{bound}; the bundle does so only with clip_x0=({-bound}, {bound})")
    return Grid(start=begins, alphas_cumprod=_floats(schedule.alphas_cumprod), notes=tuple(notes))


def _floats(values: Any) -> tuple[float, ...] | None:
    """Plain numbers of a list, an array or a tensor."""
    if values is None:
        return None
    try:
        flat = tuple(float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise TrainingError(
            f"schedule is a {type(values).__name__}; expected numbers, one per timestep, a diffusers scheduler or a "
            f"Bridge: {error}"
        ) from None
    return flat
