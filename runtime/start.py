"""Where a walk begins and which levels it visits: at the measured frame, at pure noise, or at the end of a bridge.

| `start` | first state | levels | scale |
| --- | --- | --- | --- |
| measured | the frame, upsampled for super-resolution | relative, 1 -> 0 | the frame's noise level |
| noise | seeded noise at the schedule's top | of the schedule, absolute | 1 |
| degraded | the frame, as the bridge's far end | of the bridge, absolute | 1 |
| noisy_degraded | the frame plus seeded noise of the bridge's last level | of the bridge, absolute | 1 |

The first is what photonstep's own networks do; from an upsampled frame it is InDI's bridge (arXiv:2303.11435). The
others are for networks made elsewhere: a conditional model looks at the frame as a further input and starts from noise
(SR3, arXiv:2104.07636); a bridge runs from the frame to the clean image (I2SB, arXiv:2302.05872, starts at the frame;
ResShift, arXiv:2307.12348, adds noise to it).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..kernels import ops
from . import samplers, schedule
from .denoiser import parameterisation
from .errors import PlanError
from .manifest import Manifest
from .samplers import Noise, Table
from .schedule import FloatArray, Levels

START_NOISE: Final = 2**31  # index of the start's noise: no row has it, and it is the same for every number of steps


def is_measured(manifest: Manifest) -> bool:
    """Whether sampling starts at the measured frame, at its own noise level."""
    return manifest.model.start == "measured"


def rows(manifest: Manifest, sampler: str, steps: int) -> Table:
    """The sampler's table for the bundle's network: of relative levels where it starts at the measured frame.

    Raises
    ------
    PlanError : an unknown sampler, or more steps than the schedule has room for
    """
    table = samplers.table(sampler, levels(manifest, steps))
    if manifest.model.end == "first_level":  # I2SB adds no noise in the step that ends the walk
        return (*table[:-1], replace(table[-1], n=0.0))
    return table


def levels(manifest: Manifest, steps: int) -> Levels:
    """Descending levels of a walk of ``steps`` evaluations, relative (1 -> 0) or absolute: see the module's table."""
    model = manifest.model
    if model.start == "measured":
        return schedule.measured(steps)
    if model.sigmas is not None:
        if model.end == "first_level":
            return tuple(model.sigmas[t] for t in schedule.first_to_last(steps, len(model.sigmas)))
        return (*(model.sigmas[t] for t in schedule.trailing(steps, len(model.sigmas))), 0.0)
    if model.alphas_cumprod is not None:
        return schedule.from_alphas_cumprod(model.alphas_cumprod, schedule.trailing(steps, len(model.alphas_cumprod)))
    return schedule.karras(steps, manifest.operating_range.sigma_max, manifest.operating_range.sigma_min)


def on_the_grid(manifest: Manifest, frame: NDArray[np.float32]) -> NDArray[np.float32]:
    """A frame in model units on the grid that the network works on: twice the side for super-resolution."""
    return frame if manifest.scale == 1 else ops.upsample2(frame)


def sigma_scale(
    manifest: Manifest, sigma: float, noise: float | NDArray[np.float32] = 1.0
) -> float | NDArray[np.float32]:
    """What the levels of a walk are multiplied by, for a frame of noise level ``sigma`` in model units.

    A frame that was upsampled lies off the truth by its noise and by what it does not resolve. ``noise`` is the
    level of a fused frame in units of ``sigma``, a number or a map.
    """
    if not is_measured(manifest):
        return 1.0
    level = np.hypot(sigma * noise, manifest.model.degradation_sigma)
    return np.asarray(level, np.float32) if isinstance(noise, np.ndarray) else float(level)


def check_fusable(manifest: Manifest) -> None:
    """Raise a `PlanError` where the network cannot be told the noise of a fused frame, which is a map.

    Networks that do not start at the measured frame are not told its noise at all.
    """
    told = manifest.model.conditioning
    if is_measured(manifest) and told != "sigma_map":
        raise PlanError(
            f"bundle {manifest.name} takes one noise level per image ({told}), fused frames have one per pixel; leave "
            "fusion (temporal) out, or use a bundle with sigma_map conditioning"
        )


def needs_noise(manifest: Manifest, table: Table) -> bool:
    """Whether a walk is random, so that it needs a seed: its start or one of its rows."""
    return manifest.model.start in ("noise", "noisy_degraded") or samplers.is_stochastic(table)


def first_state(manifest: Manifest, frame: FloatArray, table: Table, noise: Noise | None) -> FloatArray:
    """The state that a walk begins with.

    Parameters
    ----------
    frame : the measured frame or a tile of it, model units
    table : from `rows`
    noise : unit normal arrays like ``frame`` by index; the start's has the index `START_NOISE`

    Returns
    -------
    array like ``frame``, in variance-exploding coordinates

    Raises
    ------
    PlanError : the start is random, and no noise was given
    """
    start = manifest.model.start
    if start in ("measured", "degraded"):
        return frame
    if noise is None:
        raise PlanError(f"start is {start!r}, but no noise was given; pass noise=seeded_noise(seed, shape)")
    drawn, sigma = noise(START_NOISE), table[0].sigma
    if start == "noisy_degraded":
        return np.asarray(frame + sigma * drawn, frame.dtype)
    # A variance-preserving model starts at x_T ~ N(0, 1) exactly, which is x = x_T / sqrt(alpha_bar_T) here.
    spread = (1 + sigma**2) ** 0.5 if parameterisation(manifest).scaling == "vp" else sigma
    return np.asarray(spread * drawn, frame.dtype)
