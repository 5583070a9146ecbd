"""Distil a run into a student: ``python -m photonstep.export.distil runs/teacher -o runs/base --tier base``.

One step: the student learns the mean, from half the teacher's output and half the truth. The truth is right on average
but one draw of many that the frame allows; the teacher says what they have in common but with errors of its own. Since
the loss is a square, learning from both is learning from their mixture: a quarter of the variance of the truth, half
the error of the teacher.

Two or four steps: at each level that the runtime will visit, the student learns where the teacher's finer walk arrives
at the next one, written as the x0 that takes a DDIM step there (progressive distillation in variance-exploding
coordinates).

Source: Salimans & Ho 2022, arXiv:2202.00512, appendix G; Karras et al. 2022, arXiv:2206.00364 for preconditioning.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from dataclasses import fields as dataclass_fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..models.checkpoint import load_network, task_of
from ..models.data import FieldPool, load_pool
from ..models.loop import LoopSettings, Progress, print_progress, run_loop, to_device
from ..models.material import Recordings, training_data
from ..models.network import INPUT_PLANES, TIERS, Denoiser, grow_into, kmac_per_px, parameter_count
from ..models.noise import Batch, CameraRanges, observe
from ..models.run_folder import run_settings
from ..models.train import HELD_OUT, edm_residual, network_planes
from ..runtime import schedule
from ..runtime.errors import PhotonstepError, TrainingError

HELD_OUT_BATCHES = 12
OUTCOME = "distillation.json"


@dataclass(frozen=True, kw_only=True)
class DistilSettings(LoopSettings):
    """One distillation.

    Parameters
    ----------
    student_steps : evaluations that a restoration will take: 1, 2 or 4
    truth_share : of the target, with one step; the rest is the teacher's output
    teacher_steps : evaluations of the teacher's walk, with one step: where two of them are better than one, one
        evaluation of the student learns the outcome of both
    substeps : teacher's steps for one of the student's, with two or four
    measured_share : share of samples at the camera's own noise level, with one step; the others lie on the way to
        zero, so that the mean's student can still walk a few steps
    """

    steps: int = 8000
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    ema_decay: float = 0.999
    validate_every: int = 1000
    student_steps: int = 1
    batch: int = 16
    patch_px: int = 128
    truth_share: float = 0.5
    teacher_steps: int = 1
    substeps: int = 4
    measured_share: float = 0.85
    simulated_fields: int = 2000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.student_steps not in (1, 2, 4):
            raise TrainingError(f"student_steps is {self.student_steps}; a student takes 1, 2 or 4")
        if not (0 <= self.truth_share <= 1 and 0 <= self.measured_share <= 1):
            raise TrainingError(
                f"truth_share {self.truth_share}, measured_share {self.measured_share}; expected shares of 0 to 1"
            )
        if self.substeps < 1 or self.teacher_steps < 1:
            raise TrainingError(
                f"substeps {self.substeps}, teacher_steps {self.teacher_steps}; expected at least one of each"
            )


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A network on the held-out batches: one evaluation from the measured level, against the clean frames."""

    kmac_per_px: float
    parameters: int
    held_out_loss: float
    psnr_db: float


@dataclass(frozen=True, kw_only=True)
class Compressed:
    """What a stage of compression cost and gained."""

    run: Path
    teacher: Standing
    student: Standing
    seconds: float

    def __str__(self) -> str:
        rows = [f"{'':8}  kMAC/px  parameters  held-out loss  PSNR"]
        for name, one in (("teacher", self.teacher), ("student", self.student)):
            rows.append(
                f"{name:8}  {one.kmac_per_px:7.2f}  {one.parameters:10,}  {one.held_out_loss:13.5f}  "
                f"{one.psnr_db:.3f} dB"
            )
        ratio = self.student.kmac_per_px / self.teacher.kmac_per_px
        gained = self.student.psnr_db - self.teacher.psnr_db
        return "\n".join([*rows, f"{ratio:.2f} of the cost, {gained:+.3f} dB, {self.seconds:.0f} s: {self.run}"])


@dataclass(frozen=True)
class Fields:
    """Clean fields to photograph, and others to judge by."""

    train: FieldPool
    held_out: FieldPool

    @classmethod
    def load(cls, data: Path | None, output: Path, settings: DistilSettings) -> Fields:
        """The built-in pool; simulated fields are kept beside the run folder ``output``, as training does."""
        simulated, seed, cache = settings.simulated_fields, settings.seed, output.parent / "cache"
        pool = load_pool(data, cache, simulated=simulated, seed=seed)
        held_out = load_pool(data, cache, simulated=min(64, simulated), seed=seed, split="val")
        return cls(pool.at_least(settings.patch_px), held_out.at_least(settings.patch_px))

    @property
    def sources(self) -> list[dict[str, str]]:
        """Name, licence and source of every set that is trained on."""
        return training_data((), Recordings([], []), self.train)


def distill(
    run: str | Path,
    output: Path,
    *,
    steps: int = 1,
    data: Path | None = None,
    tier: str | None = None,
    start_from: str | Path | None = None,
    settings: DistilSettings | None = None,
    fields: Fields | None = None,
    progress: Callable[[Progress], None] | None = print_progress,
) -> Compressed:
    """Train a student of fewer steps, or a smaller one, on what the teacher says.

    Parameters
    ----------
    run : teacher: run folder, ``weights.pt`` or bundle
    output : run folder of the student; an interrupted run resumes there
    steps : evaluations that a restoration with the student takes: 1 (the mean), 2 or 4
    data : folder that holds ``clean/``; None trains on simulated fields and samples alone
    tier : size of the student, see `TIERS`; without it and ``start_from`` the student starts as the teacher
    start_from : run or bundle whose weights and shape the student starts with
    fields : in place of ``data``, for programs that bring their own

    Raises
    ------
    TrainingError : nothing to learn from, or the output holds another run
    """
    settings = replace(settings or DistilSettings(), student_steps=steps)
    teacher = load_denoiser(run)
    student = student_of(teacher, tier, start_from, settings.seed)
    if student.config.planes > INPUT_PLANES:
        raise TrainingError(
            f"{start_from or run} has a detail knob, which this would not train; distil from the teacher that it "
            "came from, or with --detail"
        )
    fields = fields or Fields.load(data, output, settings)
    record = run_settings(
        "distill", settings, student, started_from=start_from or (None if tier else run), teacher=run,
        training_data=fields.sources,
    )  # fmt: skip
    return learn_from(teacher, student, settings, output, fields=fields, record=record, progress=progress)


def learn_from(
    teacher: Denoiser,
    student: Denoiser,
    settings: DistilSettings,
    output: Path,
    *,
    fields: Fields,
    record: dict[str, object],
    progress: Callable[[Progress], None] | None = print_progress,
) -> Compressed:
    """The distillation proper, also the recovery after pruning; arguments as in `distill`."""
    began = time.monotonic()
    target = mean_target if settings.student_steps == 1 else walk_target
    guide = copy.deepcopy(teacher).requires_grad_(False).eval()
    guide.to(settings.torch_device(), memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        return (residual_of(network, batch) - target(guide, batch, settings)).square().mean()

    def judged(average: nn.Module) -> float:
        if settings.student_steps == 1:
            return standing_of(average, 1, fields, settings).held_out_loss
        with torch.no_grad():
            return float(np.mean([loss(average, batch).item() for batch in _held_out(fields, settings)]))

    run_loop(
        student, settings, output, batch=lambda index: photograph(fields.train, settings, index), loss=loss,
        held_out=judged, record=record, progress=progress,
    )  # fmt: skip
    finer = settings.student_steps * settings.substeps if settings.student_steps > 1 else settings.teacher_steps
    result = Compressed(
        run=output,
        teacher=standing_of(guide, finer, fields, settings),
        student=standing_of(load_network(output), settings.student_steps, fields, settings),
        seconds=time.monotonic() - began,
    )
    write_outcome(asdict(result), output)
    return result


def write_outcome(result: dict[str, Any], output: Path) -> None:
    """``distillation.json`` of a run folder: teacher and student on the same held-out batches."""
    told = {name: value for name, value in result.items() if name != "run"}
    (output / OUTCOME).write_text(json.dumps(told, indent=1) + "\n")


@dataclass(frozen=True)
class WalkBatch(Batch):
    """A batch on the levels of a K-step walk; ``levels`` (N, substeps + 1) descend from 1 to the next level's ratio."""

    levels: Tensor


def photograph(pool: FieldPool, settings: DistilSettings, index: int) -> Batch:
    """Batch ``index``, the same whenever it is asked for; with K > 1 steps, samples lie at the K levels of the walk."""
    rng = np.random.default_rng((settings.seed, index))
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    crops, low_high = pool.crops(settings.batch, settings.patch_px, rng)
    student_steps, substeps = settings.student_steps, settings.substeps
    measured_share = settings.measured_share if student_steps == 1 else 1.0
    batch = observe(crops, low_high, generator, CameraRanges(measured_share=measured_share))
    if student_steps == 1:
        return batch
    finer = torch.tensor(schedule.measured(student_steps * substeps))  # every level of the student is among them
    first = torch.from_numpy(rng.integers(student_steps, size=settings.batch)) * substeps
    levels = finer[first[:, None] + torch.arange(substeps + 1)]
    share = levels[:, :1, None, None]
    x = batch.x0 + share * (batch.x - batch.x0)
    return WalkBatch(x, batch.x0, batch.sigma * share, batch.noise_correlation, levels / levels[:, :1])


@torch.no_grad()
def mean_target(teacher: Denoiser, batch: Batch, settings: DistilSettings) -> Tensor:
    """(N, 1, H, W) float32 EDM residual: the teacher's, mixed with that of the truth."""
    truth = edm_residual(batch, teacher.config.sigma_data)
    if settings.truth_share == 1:
        return truth
    arrived = _walk(teacher, batch, torch.tensor([schedule.measured(settings.teacher_steps)], device=batch.x.device))
    said = edm_residual(replace(batch, x0=arrived), teacher.config.sigma_data)
    return torch.lerp(said, truth, settings.truth_share)


@torch.no_grad()
def walk_target(teacher: Denoiser, batch: Batch, settings: DistilSettings) -> Tensor:
    """(N, 1, H, W) float32 EDM residual whose DDIM step lands where the teacher's finer walk does."""
    if not isinstance(batch, WalkBatch):
        raise TypeError(f"got {type(batch).__name__}; expected a WalkBatch")
    arrived, ratio = _walk(teacher, batch, batch.levels), batch.levels[:, -1, None, None, None]
    return edm_residual(replace(batch, x0=(arrived - ratio * batch.x) / (1 - ratio)), teacher.config.sigma_data)


def _walk(network: Denoiser, batch: Batch, levels: Tensor) -> Tensor:
    """DDIM along (N or 1, K + 1) levels relative to the batch's sigma; the last state, (N, 1, H, W) float32."""
    state = batch.x
    for now, then in pairwise(levels[:, :, None, None, None].unbind(1)):
        x0 = restored(network, Batch(state, batch.x0, batch.sigma * now, batch.noise_correlation))
        state = x0 + then / now * (state - x0)
    return state


def restored(network: Denoiser, batch: Batch) -> Tensor:
    """(N, 1, H, W) float32: the network's x0_hat, ``c_skip x + c_out F``."""
    sigma_data = network.config.sigma_data
    total = batch.sigma**2 + sigma_data**2
    return sigma_data**2 / total * batch.x + batch.sigma * sigma_data / total.sqrt() * residual_of(network, batch)


def residual_of(network: nn.Module, batch: Batch) -> Tensor:
    """(N, 1, H, W) float32: what the network says; a detail knob stands at 0, the mean."""
    planes = network_planes(batch, network.config.sigma_data)
    if network.config.planes > planes.shape[1]:
        planes = torch.cat([planes, torch.zeros_like(planes[:, :1])], 1)
    residual: Tensor = network(planes.contiguous(memory_format=torch.channels_last))
    return residual.float()


def _held_out(fields: Fields, settings: DistilSettings) -> Iterator[Batch]:
    device = settings.torch_device()
    for index in range(HELD_OUT_BATCHES):
        yield to_device(photograph(fields.held_out, settings, HELD_OUT - 1 - index), device)


@torch.no_grad()
def standing_of(network: nn.Module, steps: int, fields: Fields, settings: DistilSettings) -> Standing:
    """Restore held-out frames from their measured level in ``steps`` evaluations, float32."""
    network = network.to(settings.torch_device())
    levels = torch.tensor([schedule.measured(steps)], device=settings.torch_device())
    losses, psnrs = [], []
    for batch in _held_out(fields, replace(settings, student_steps=1, measured_share=1.0)):
        result, sigma_data = _walk(network, batch, levels), network.config.sigma_data
        got, wanted = (edm_residual(replace(batch, x0=x0), sigma_data) for x0 in (result, batch.x0))
        losses.append((got - wanted).square().mean().item())
        psnrs.append(-10 * (result - batch.x0).square().mean((1, 2, 3)).log10().mean().item())
    return Standing(
        kmac_per_px=kmac_per_px(network.config),
        parameters=parameter_count(network),
        held_out_loss=float(np.mean(losses)),
        psnr_db=float(np.mean(psnrs)),
    )


def load_denoiser(source: str | Path) -> Denoiser:
    """`load_network` of what was made to denoise: super-resolution learns from other frames.

    Raises
    ------
    TrainingError : also for a run or bundle of another task
    """
    task = task_of(source)
    if task != "denoise":
        raise TrainingError(
            f"{source} is made for {task}; distillation and pruning take denoisers. Train a smaller network for that "
            "task instead"
        )
    return load_network(source)


def student_of(teacher: Denoiser, tier: str | None, start_from: str | Path | None, seed: int) -> Denoiser:
    if tier is not None and tier not in TIERS:
        raise TrainingError(f"tier is {tier!r}; choose one of {', '.join(TIERS)}")
    if tier is None:
        return copy.deepcopy(teacher) if start_from is None else load_denoiser(start_from)
    torch.manual_seed(seed)
    student = Denoiser(TIERS[tier])
    if start_from is not None:
        grow_into(student, load_denoiser(start_from))
    return student


def add_arguments(parser: argparse.ArgumentParser, defaults: DistilSettings) -> None:
    """What distillation and pruning share on the command line."""
    parser.add_argument("-o", "--output", type=Path, required=True, help="run folder; an interrupted run resumes there")
    parser.add_argument("--data", type=Path, help="folder that holds clean/; without it simulated fields and samples")
    for name, text in (
        ("batch", "patches a step"), ("patch_px", "side of a patch"), ("learning_rate", "its highest value"),
        ("truth_share", "of the target; the rest is the teacher's output"), ("seed", "of batches and weights"),
        ("teacher_steps", "evaluations of the teacher's walk that one of the student's learns"),
        ("measured_share", "share of samples at the camera's own noise level"), ("validate_every", "steps"),
        ("simulated_fields", "how many"), ("ema_decay", "of the averaged weights"), ("device", "auto, cpu or cuda"),
    ):  # fmt: skip
        value = getattr(defaults, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"{text} ({value})")


def settings_from(arguments: argparse.Namespace, defaults: DistilSettings, **others: object) -> DistilSettings:
    given = {f.name: getattr(arguments, f.name) for f in dataclass_fields(defaults) if hasattr(arguments, f.name)}
    return replace(defaults, **(given | others))  # type: ignore[arg-type]


def outcome_of(work: Callable[[], object]) -> int:
    """Do what a stage's command asks for and print its result; 2, after a line of error, where that cannot be done."""
    try:
        result = work()
    except PhotonstepError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(result)
    return 0


def main() -> int:
    """The command; returns 2 where it could not be done."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", help="the teacher: run folder, weights.pt or bundle")
    parser.add_argument("--steps", type=int, default=1, choices=(1, 2, 4), help="evaluations of a restoration")
    parser.add_argument("--tier", choices=sorted(TIERS), help="size of the student; default: the teacher's")
    parser.add_argument("--from", dest="start_from", help="run or bundle whose weights the student starts with")
    parser.add_argument("--training-steps", type=int, default=DistilSettings.steps, help="optimiser steps")
    add_arguments(parser, DistilSettings())
    given = parser.parse_args()
    return outcome_of(
        lambda: distill(
            given.run, given.output, steps=given.steps, data=given.data, tier=given.tier, start_from=given.start_from,
            settings=settings_from(given, DistilSettings(), steps=given.training_steps),
        )
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
