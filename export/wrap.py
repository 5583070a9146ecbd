"""Bring your own denoiser: a torch module made elsewhere becomes a bundle that the runtime restores with.

    wrap(unet, schedule=DDPMScheduler(), prediction="eps", conditioning="timestep", output="mine.photonstep")
    ps.load("mine.photonstep")(frame)

Three kinds are known, by where sampling starts (`runtime.start`): a denoiser starts at the measured frame; a
conditional model looks at the frame and starts at noise (SR3, EMDiffuse); a bridge runs from the frame to the clean
image (I2SB, ResShift). `docs/bring_your_own.md` walks through one of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import nn

from ..models.data import BLOCK_PX, HIGH_PERCENT, LOW_PERCENT
from ..runtime.bundle import Bundle, write_bundle
from ..runtime.errors import PlanError, TrainingError
from ..runtime.manifest import MAX_SIDE_PX
from ..runtime.prediction import InputScaling, Parameterisation, Prediction, check_choice
from ..runtime.restore import load
from ..runtime.samplers import SAMPLERS
from .foreign_module import (
    IMAGE,
    LEVEL,
    MEASUREMENT,
    OUTPUT,
    Adapter,
    Call,
    Calling,
    Findings,
    Order,
    Told,
    adapt,
    examine,
    example,
    to_graph,
)
from .foreign_schedule import Bridge, Grid, grid_of, i2sb, resshift
from .onnx import OPSET

__all__ = ["About", "Bridge", "Details", "Wrapped", "i2sb", "resshift", "wrap"]

MEMBER: Final = "step_fp32.onnx"
TOLD: Final[tuple[Told, ...]] = ("timestep", "gamma", "sqrt_gamma", "sigma", "sigma_map")
DEFAULT_STEPS: Final = {"measured": 1, "noise": 50, "degraded": 10, "noisy_degraded": 15}
DEFAULT_SAMPLER: Final = {"measured": "ddim", "noise": "ddim", "degraded": "ot_ode", "noisy_degraded": "ddpm"}
AGREEMENT: Final = 1e-3  # of the largest output: a graph that took another branch is off by far more
EDM_RANGE: Final = (0.002, 80.0)  # noise levels where no schedule says them, in model units


@dataclass(frozen=True, kw_only=True)
class Details:
    """What is rarely needed, with defaults that follow from the rest.

    Parameters
    ----------
    input_scaling : what the image is multiplied by, see `runtime.prediction`; None follows from the conventions
    integer_timestep : the network takes whole timesteps; False: anything in between
    sigma_data : standard deviation of clean data in model units; EDM scaling needs it
    sigma_range : lowest and highest noise level that the network knows, model units; None takes the schedule's
    clip_x0 : clip every clean-image estimate to (low, high), as many samplers do; cuts spots brighter than data_range
    steps, sampler : the default plan; a walk along a schedule has at most as many steps as timesteps
    max_steps : the most steps that were validated; None takes the default plan's
    multiple : grid in px that height and width must fit; None tries
    receptive_radius_px : how far an output pixel sees; None measures, 8192 means the whole frame
    """

    input_scaling: InputScaling | None = None
    integer_timestep: bool = True
    sigma_data: float | None = None
    sigma_range: tuple[float, float] | None = None
    clip_x0: tuple[float, float] | None = None
    steps: int | None = None
    max_steps: int | None = None
    sampler: str | None = None
    multiple: int | None = None
    receptive_radius_px: int | None = None


@dataclass(frozen=True, kw_only=True)
class About:
    """Who made the network and what may be done with it; ``training_data`` is (name, licence, source) per set."""

    name: str | None = None
    version: str = "1.0.0"
    licence: str = "NOASSERTION"
    authors: tuple[str, ...] = ("unknown",)
    provenance: str = "a torch module made elsewhere, converted by photonstep.export.wrap"
    training_data: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Wrapped:
    """The bundle, what was found out about the module, and what its user should know.

    ``difference`` is the largest one between the graph in the runtime and the module in torch, over several noise
    levels, as a share of the largest output.
    """

    bundle: Bundle
    findings: Findings
    difference: float
    notes: tuple[str, ...]


def wrap(
    module: nn.Module,
    *,
    output: str | Path,
    prediction: Prediction = "eps",
    conditioning: Told = "timestep",
    schedule: Any = None,
    start: Literal["measured", "noise"] = "measured",
    measurement: Order | Literal["apart"] | None = None,
    data_range: tuple[float, float] = (-1.0, 1.0),
    call: Call | None = None,
    details: Details | None = None,
    about: About | None = None,
    overwrite: bool = False,
) -> Wrapped:
    """Write a bundle of a torch module and check that the runtime computes what torch does.

    Parameters
    ----------
    module : maps one channel (N, 1, H, W) and a noise level to one channel; any device and dtype, not modified
    output : the ``.photonstep`` file
    prediction : what it returns: eps, x0, v, edm_f or score (`runtime.prediction`)
    conditioning : what it is told, see `foreign_module.Calling`; SR3 is told ``sqrt_gamma``, papers often ``gamma``
    schedule : a diffusers scheduler or its alphas_cumprod (T,); a `Bridge`; None where it is told sigma
    start : ``measured``: at the frame, at its own noise level. ``noise``: at the schedule's top. A `Bridge` says itself
    measurement : the frame is concatenated to the image's channel ``first`` or ``last``, or given to ``call`` ``apart``
    data_range : where the darkest and brightest structures lie in model units; VP models mostly (-1, 1), some (0, 1)
    call : ``call(module, image, level, measurement) -> tensor`` for modules with another signature
    overwrite : replace an existing file

    Raises
    ------
    TrainingError : the module cannot be a bundle, or the conventions contradict one another; the message says which
    BundleError : the file exists or cannot be written
    """
    details, about, path = details or Details(), about or About(), Path(output)
    grid = grid_of(schedule, prediction, start)
    speaks = _conventions(prediction, conditioning, grid, details)
    if measurement == "apart" and call is None:
        raise TrainingError("measurement is 'apart' without call=; expected call(module, image, level, measurement)")
    calling = Calling(
        told=conditioning, integer_timestep=details.integer_timestep, timesteps=grid.timesteps, call=call,
        measurement=None if measurement == "apart" else measurement,
    )  # fmt: skip
    adapter = adapt(module, calling, takes_measurement=measurement is not None)
    findings = examine(adapter, details.multiple, details.receptive_radius_px)
    graph = to_graph(adapter, findings.multiple)
    fields = _manifest(path, speaks, grid, findings, measurement is not None, data_range, details, about)
    notes = (*grid.notes, *_notes(grid, findings, details))
    members = {MEMBER: graph, "model_card.md": _card(fields, notes).encode()}
    draft = Path(f"{path}.draft.photonstep")
    try:
        difference = _difference(adapter, write_bundle(draft, fields, members, True), findings.multiple)
    finally:
        draft.unlink(missing_ok=True)
    return Wrapped(
        bundle=write_bundle(path, fields, members, overwrite), findings=findings, difference=difference, notes=notes
    )


def _conventions(prediction: Prediction, told: Told, grid: Grid, details: Details) -> Parameterisation:
    """The runtime's own checks of the conventions, before anything is exported."""
    try:
        check_choice("conditioning", told, TOLD)
        speaks = Parameterisation(
            prediction=prediction,
            conditioning={"sqrt_gamma": "gamma", "sigma": "sigma_map"}.get(told, told),  # type: ignore[arg-type]
            input_scaling=details.input_scaling,
            sigma_data=details.sigma_data,
            alphas_cumprod=grid.alphas_cumprod,
            sigmas=grid.sigmas,
            integer_timestep=details.integer_timestep,
            clip_x0=details.clip_x0,
        )
    except PlanError as error:
        raise TrainingError(f"these conventions do not go together: {error}") from None
    if grid.start == "noise" and speaks.conditioning == "gamma" and grid.alphas_cumprod is None:
        raise TrainingError("start is 'noise' without a schedule; expected alphas_cumprod, to know where noise begins")
    if details.sampler is not None and details.sampler not in SAMPLERS:
        raise TrainingError(f"sampler is {details.sampler!r}; choose one of {', '.join(SAMPLERS)}")
    return speaks


def _manifest(
    path: Path, speaks: Parameterisation, grid: Grid, findings: Findings, takes_measurement: bool,
    data_range: tuple[float, float], details: Details, about: About,
) -> dict[str, Any]:  # fmt: skip
    low_u, high_u = (float(end) for end in data_range)
    if not low_u < high_u:
        raise TrainingError(f"data_range is {data_range}; expected (low, high), such as (-1, 1)")
    sigma_min, sigma_max = details.sigma_range or _known_levels(speaks, grid)
    room = len(speaks.sigmas or speaks.alphas_cumprod or ()) - (grid.end == "first_level")
    steps = details.steps or DEFAULT_STEPS[grid.start]
    if grid.start != "measured" and room > 0:
        steps = min(steps, room)
    model = {
        "prediction": speaks.prediction,
        "conditioning": speaks.conditioning,
        "input_scaling": speaks.scaling,
        "integer_timestep": speaks.integer_timestep,
        "sigma_data": details.sigma_data or (high_u - low_u) / 4,
        "noise_correlation_input": False,
        "measurement_input": takes_measurement,
        "start": grid.start,
        "end": grid.end,
        "input_names": [IMAGE, LEVEL, MEASUREMENT][: 2 + takes_measurement],
        "output_name": OUTPUT,
        "channels": 1,
        "multiple": findings.multiple,
        "receptive_radius_px": findings.receptive_radius_px,
        "alphas_cumprod": speaks.alphas_cumprod,
        "sigmas": speaks.sigmas,
        "clip_x0": speaks.clip_x0,
        "parameters": findings.parameters,
        "kmac_per_px": findings.kmac_per_px,
    }
    return {
        "name": about.name or path.stem.lower(),
        "version": about.version,
        "created": date.today().isoformat(),
        "task": "denoise",
        "scale": 1,
        "licence": about.licence,
        "authors": list(about.authors),
        "provenance": about.provenance,
        "training_data": [dict(zip(("name", "licence", "source"), row, strict=True)) for row in about.training_data],
        "model": {name: value for name, value in model.items() if value is not None},
        "normalisation": {
            "method": "block_percentile",
            "block_px": BLOCK_PX,
            "low_percent": LOW_PERCENT,
            "high_percent": HIGH_PERCENT,
            "minimum_range_z": 4.0,
            "low_u": low_u,
            "high_u": high_u,
        },
        "networks": [{"precision": "fp32", "member": MEMBER, "opset": OPSET}],
        "defaults": {
            "steps": steps,
            "sampler": details.sampler or DEFAULT_SAMPLER[grid.start],
            "max_steps": details.max_steps or steps,
        },
        "operating_range": {
            "sigma_min": sigma_min,
            "sigma_max": sigma_max,
            "photons_min": 0.0,
            "photons_max": 1e6,
            "max_noise_correlation": 0.25,
        },
        "model_card": "model_card.md",
    }


def _known_levels(speaks: Parameterisation, grid: Grid) -> tuple[float, float]:
    """Noise levels that a frame may have: those of the schedule where sampling starts at the frame."""
    if grid.start == "measured" and speaks.alphas_cumprod is not None:
        ends = (speaks.alphas_cumprod[0], speaks.alphas_cumprod[-1])
        lowest, highest = (((1 - a) / a) ** 0.5 for a in ends)
        return lowest, highest
    return EDM_RANGE


def _notes(grid: Grid, findings: Findings, details: Details) -> list[str]:
    notes = []
    if findings.receptive_radius_px >= MAX_SIDE_PX:
        why = "attention, or normalisation over the image" if details.receptive_radius_px is None else "as it was said"
        notes.append(
            f"every pixel sees the whole frame ({why}): frames are restored in one piece and tiles are refused"
        )
    sampler = details.sampler or DEFAULT_SAMPLER[grid.start]
    if sampler in ("ddpm", "consistency") or grid.start in ("noise", "noisy_degraded"):
        notes.append("a restored frame is one seeded draw out of many, not a mean: another seed gives other details")
    return notes


def _card(fields: dict[str, Any], notes: Sequence[str]) -> str:
    lines = [
        f"# {fields['name']} {fields['version']}",
        "",
        f"{fields['provenance']}. Licence of the weights: {fields['licence']}.",
        "",
        "Converted, not validated: photonstep checked that its runtime computes what the module does in torch. What",
        "the network makes of real frames, and for which light levels, its authors must say.",
        "",
        *(f"- {note}" for note in notes),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _difference(adapter: Adapter, bundle: Bundle, multiple: int) -> float:
    """Largest difference between graph and module over levels and a size that the export did not see.

    Raises
    ------
    TrainingError : they disagree, so the module has a branch that the export froze
    """
    model = bundle.manifest.model
    count = len(model.alphas_cumprod or model.sigmas or ())
    levels = {"timestep": (0, count // 2, count - 1), "gamma": (0.02, 0.5, 0.98), "sigma_map": (-1.5, -0.25, 1.0)}
    cells = max(3, -(-32 // multiple))
    worst = 0.0
    restorer = load(bundle, precision="fp32")
    try:
        for level in levels[model.conditioning]:
            inputs = example(adapter, cells * multiple, (cells + 2) * multiple, level)
            with torch.no_grad():
                wanted = adapter(*inputs).numpy()
            fed = {name: tensor.numpy() for name, tensor in zip(model.input_names, inputs, strict=True)}
            scale = max(1e-6, float(np.abs(wanted).max()))
            worst = max(worst, float(np.abs(restorer.choice.session.run(fed) - wanted).max()) / scale)
            if not worst <= AGREEMENT:
                raise TrainingError(
                    f"the graph differs from the module by {worst:.2g} of its largest output at level {level}; "
                    f"expected at most {AGREEMENT}: a Python branch was frozen in the export, or float32 overflows"
                )
    finally:
        restorer.close()
    return worst
