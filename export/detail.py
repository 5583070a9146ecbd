"""A student with a knob: ``python -m photonstep.export.detail runs/teacher -o runs/detail --data DATA``.

One network with a fifth input plane, k. At k = 0 it gives the mean. At k = 1 it does in one or two evaluations what the
teacher does in 16 Heun steps from the same measured frame: the texture that the mean averages away. Between them it
gives ``mean + k (detail - mean)``; in EDM's residual that mixture is the same, because ``c_skip x`` is common to both.

The teacher's walk takes 31 evaluations, so it is walked once over a set of patches, which are kept in the run folder
and shown to the student again and again. They are flipped and turned before the walk, not after it: a flipped frame's
detail differs from the frame's detail flipped by an eighth of its energy (measured on a base network), which would be
noise in the target. Every fourth batch is fresh, at k = 0, where the teacher needs one evaluation only.

Source: Karras et al. 2022, arXiv:2206.00364, algorithm 1 (Heun); Luhman & Luhman 2021, arXiv:2101.02388 (distilling a
deterministic walk into one evaluation).
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..models.checkpoint import load_network
from ..models.data import FieldPool
from ..models.loop import Progress, print_progress, run_loop, to_device
from ..models.network import INPUT_PLANES, TIERS, Denoiser, grow_into
from ..models.noise import Batch
from ..models.run_folder import run_settings, save_whole, write_whole
from ..models.train import HELD_OUT, edm_residual, network_planes
from ..runtime import samplers, schedule
from ..runtime.errors import TrainingError
from .distil import (
    DistilSettings,
    Fields,
    Standing,
    add_arguments,
    load_denoiser,
    mean_target,
    outcome_of,
    photograph,
    residual_of,
    restored,
    settings_from,
    standing_of,
    student_of,
    write_outcome,
)  # fmt: skip

CACHE = "detail"
HELD_OUT_WALKS = 3
FRESH_EVERY = 4


@dataclass(frozen=True, kw_only=True)
class DetailSettings(DistilSettings):
    """One distillation of detail.

    Parameters
    ----------
    heun_steps : Heun steps of the teacher; a multiple of ``student_steps``
    cached_batches : batches that the teacher walks over, once
    """

    heun_steps: int = 16
    cached_batches: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.student_steps > 2 or self.heun_steps % self.student_steps or self.cached_batches < 1:
            raise TrainingError(
                f"student_steps {self.student_steps}, heun_steps {self.heun_steps}, cached_batches "
                f"{self.cached_batches}; expected 1 or 2, a multiple of it, and at least one batch"
            )


@dataclass(frozen=True)
class Walked:
    """Patches with what the teacher made of them, on CPU or GPU.

    Parameters
    ----------
    image : (N, 2, H, W), the first two of `network_planes`: the scaled state and its noise level
    correlation : (N, 2), of the noise along y and x
    mean, detail : (N, 1, H, W), EDM residual of one evaluation, and the one that arrives where the walk does
    knob : (N, 1, 1, 1) float32, k
    """

    image: Tensor
    correlation: Tensor
    mean: Tensor
    detail: Tensor
    knob: Tensor

    def with_knob(self) -> Tensor:
        """(N, 5, H, W) float32: the network's planes, k in the last."""
        size = self.image.shape[-2:]
        numbers = torch.cat([self.correlation[:, :, None, None], self.knob], 1).expand(-1, -1, *size)
        return torch.cat([self.image, numbers], 1).contiguous(memory_format=torch.channels_last)

    def take(self, chosen: Tensor | slice) -> Walked:
        """Some of the patches, in float32."""
        return Walked(*(getattr(self, key)[chosen].float() for key in (*KEPT, "knob")))

    def at(self, knob: float) -> Walked:
        return replace(self, knob=torch.full_like(self.knob, knob))


KEPT = ("image", "correlation", "mean", "detail")


@dataclass(frozen=True, kw_only=True)
class DetailResult:
    """What the student is worth: its mean beside the teacher's, and how much of the walk's detail it gives at k = 1.

    Parameters
    ----------
    explained : share of the variance of (walk - mean) that the student reproduces, at most 1
    energy : its own (k = 1) - (k = 0) against the walk's, mean squares: 1 is as much detail, right or wrong
    evaluations : of the teacher's walk and of the student
    """

    run: Path
    teacher: Standing
    student: Standing
    explained: float
    energy: float
    evaluations: tuple[int, int]
    seconds: float

    def __str__(self) -> str:
        walk, own = self.evaluations
        spent = walk * self.teacher.kmac_per_px, own * self.student.kmac_per_px
        return (
            f"k = 0: teacher {self.teacher.psnr_db:.3f} dB, student {self.student.psnr_db:.3f} dB\n"
            f"k = 1: {self.explained:.0%} of the variance of the teacher's detail, {self.energy:.0%} of its energy, in "
            f"{own} evaluation{'s' if own > 1 else ''} for {walk}: {spent[1]:.1f} kMAC/px for {spent[0]:.1f}\n"
            f"{self.seconds:.0f} s: {self.run}"
        )


def distill_detail(
    run: str | Path,
    output: Path,
    *,
    steps: int = 1,
    data: Path | None = None,
    tier: str | None = None,
    start_from: str | Path | None = None,
    settings: DetailSettings | None = None,
    fields: Fields | None = None,
    progress: Callable[[Progress], None] | None = print_progress,
) -> DetailResult:
    """Train a student with a detail knob; arguments as in `distil.distill`, ``steps`` is 1 or 2.

    The teacher's walks are kept in ``output/detail``; an interrupted call goes on there too.
    """
    began = time.monotonic()
    settings = replace(settings or DetailSettings(), student_steps=steps)
    teacher = load_denoiser(run)
    plain = student_of(teacher, tier, start_from, settings.seed)
    student = plain
    if plain.config.planes == INPUT_PLANES:
        student = Denoiser(replace(plain.config, planes=INPUT_PLANES + 1))
        grow_into(student, plain)
    fields = fields or Fields.load(data, output, settings)
    guide = copy.deepcopy(teacher).requires_grad_(False).to(settings.torch_device())
    walks, held_out = walked(guide, run, fields, settings, output / CACHE)
    record = run_settings(
        "distill", settings, student, started_from=start_from or (None if tier else run), teacher=run,
        training_data=fields.sources,
    )  # fmt: skip
    run_loop(
        student, settings, output,
        batch=lambda index: _batch(walks, fields, settings, index),
        loss=lambda network, batch: _loss(network, guide, batch, settings),
        held_out=lambda average: _judged(average, guide, held_out, settings), record=record, progress=progress,
    )  # fmt: skip
    trained = load_network(output).to(settings.torch_device())
    explained, energy = _detail_given(trained, held_out)
    result = DetailResult(
        run=output,
        teacher=standing_of(guide, 1, fields, settings),
        student=standing_of(trained, 1, fields, settings),
        explained=explained,
        energy=energy,
        evaluations=(2 * settings.heun_steps - 1, steps),
        seconds=time.monotonic() - began,
    )
    write_outcome(asdict(result), output)
    return result


# --- what the teacher does ---


def walked(
    teacher: Denoiser, name: str | Path, fields: Fields, settings: DetailSettings, folder: Path
) -> tuple[Walked, Walked]:
    """The teacher's walks over patches to learn from and over held-out ones; those on disk are not walked again.

    Raises
    ------
    TrainingError : the folder holds walks of another teacher, other settings or other fields
    """
    folder.mkdir(parents=True, exist_ok=True)
    decisive = ("seed", "batch", "patch_px", "student_steps", "heun_steps", "simulated_fields", "precision")
    sides = {"train": fields.train, "held_out": fields.held_out}
    made_with = {
        "teacher": str(name),
        **{key: asdict(settings)[key] for key in decisive},
        "fields": {side: {name: len(group) for name, group in pool.fields.items()} for side, pool in sides.items()},
    }
    note = folder / "walks.json"
    before = json.loads((note.read_text() if note.exists() else "") or "{}")
    for key, value in made_with.items():
        if key in before and before[key] != value:  # older notes say nothing about the fields
            raise TrainingError(
                f"{folder} holds walks made with {key} = {before[key]}, now asked for {value}; go on with the same "
                "teacher, settings and data, or choose another output folder"
            )
    write_whole(json.dumps(made_with) + "\n", note)

    def gather(pool: FieldPool, names: dict[str, int]) -> Walked:
        return _gather(teacher, pool, settings, {folder / f"{name}.pt": index for name, index in names.items()})

    to_learn = {f"{index:05d}": index for index in range(settings.cached_batches)}
    to_judge = {f"held-out-{index}": HELD_OUT + index for index in range(HELD_OUT_WALKS)}
    return gather(fields.train, to_learn), gather(fields.held_out, to_judge)


def _gather(teacher: Denoiser, pool: FieldPool, settings: DetailSettings, files: dict[Path, int]) -> Walked:
    """Walk over the batches whose file is missing, and read them all; float16 on disk and in memory."""
    measured = replace(settings, student_steps=1, measured_share=1.0)
    parts = []
    for path, index in files.items():
        if not path.exists():
            batch = to_device(photograph(pool, measured, index), settings.torch_device())
            walks = _walk_of(teacher, batch, settings)
            save_whole({key: torch.cat([getattr(w, key) for w in walks]).half().cpu() for key in KEPT}, path)
        parts.append(torch.load(path, weights_only=True))
    kept = {key: torch.cat([part[key] for part in parts]) for key in KEPT}
    return Walked(**kept, knob=torch.zeros(len(kept["image"]), 1, 1, 1))


@torch.no_grad()
def _walk_of(teacher: Denoiser, batch: Batch, settings: DetailSettings) -> list[Walked]:
    """The teacher's Heun walk, as one target for each of the student's levels."""
    levels = schedule.measured(settings.heun_steps)
    stops = levels[:: settings.heun_steps // settings.student_steps]
    with torch.autocast(batch.x.device.type, dtype=torch.bfloat16, enabled=settings.precision == "bf16"):
        states = dict(zip(levels, heun_walk(teacher, batch, levels), strict=True))
        found, sigma_data = [], teacher.config.sigma_data
        for now, then in pairwise(stops):
            here = replace(batch, x=states[now], sigma=batch.sigma * now)
            arrives = replace(here, x0=(states[then] - then / now * here.x) / (1 - then / now))
            image = network_planes(here, sigma_data)[:, :2]
            mean, detail = residual_of(teacher, here), edm_residual(arrives, sigma_data)
            found.append(Walked(image, here.noise_correlation, mean, detail, image[:, :1, :1, :1]))
    return found


def heun_walk(network: Denoiser, batch: Batch, levels: tuple[float, ...]) -> Iterator[Tensor]:
    """The states, (N, 1, H, W) float32, at each of the descending relative levels; the first is the batch's own."""
    state = batch.x
    yield state
    for pair in pairwise(levels):
        x0_prev = state
        for row in samplers.heun(pair):
            x0 = restored(network, replace(batch, x=state, sigma=batch.sigma * row.sigma))
            state = row.a * state + row.b * x0 + row.p * x0_prev
            x0_prev = x0
        yield state


# --- what the student learns ---


def _batch(walks: Walked, fields: Fields, settings: DetailSettings, index: int) -> Walked | Batch:
    if index % FRESH_EVERY == 0:
        return photograph(fields.train, replace(settings, student_steps=1), index + settings.cached_batches)
    rng = np.random.default_rng((settings.seed, index, 1))
    shown = walks.take(torch.from_numpy(rng.integers(len(walks.image), size=settings.batch)))
    knob = rng.choice([0.0, 1.0, -1.0], p=[0.25, 0.5, 0.25], size=settings.batch)
    knob = np.where(knob < 0, rng.random(settings.batch), knob).astype(np.float32)
    return replace(shown, knob=torch.from_numpy(knob)[:, None, None, None])


def _loss(network: nn.Module, teacher: Denoiser, batch: Walked | Batch, settings: DetailSettings) -> Tensor:
    if isinstance(batch, Walked):
        said = network(batch.with_knob()).float()
        return (said - torch.lerp(batch.mean, batch.detail, batch.knob)).square().mean()
    return (residual_of(network, batch) - mean_target(teacher, batch, settings)).square().mean()


@torch.no_grad()
def _judged(network: nn.Module, teacher: Denoiser, held_out: Walked, settings: DetailSettings) -> float:
    """Loss on held-out walks, the mean over k = 0, 1/2 and 1."""
    shown = [part.at(knob) for part in _parts(held_out, settings.batch) for knob in (0.0, 0.5, 1.0)]
    losses = [_loss(network, teacher, to_device(part, settings.torch_device()), settings).item() for part in shown]
    return float(np.mean(losses))


@torch.no_grad()
def _detail_given(network: Denoiser, held_out: Walked) -> tuple[float, float]:
    """Shares of the walk's detail at k = 1: variance explained, energy."""
    missed = energy = whole = 0.0
    device = next(network.parameters()).device
    for part in _parts(held_out, 8):
        here = to_device(part, device)
        none, all_of_it = (network(here.at(k).with_knob()) for k in (0.0, 1.0))
        wanted, given = here.detail - here.mean, all_of_it - none
        missed += (given - wanted).square().sum().item()
        energy += given.square().sum().item()
        whole += wanted.square().sum().item()
    return 1 - missed / whole, energy / whole


def _parts(walks: Walked, size: int) -> Iterator[Walked]:
    for first in range(0, len(walks.image), size):
        yield walks.take(slice(first, first + size))


def main() -> int:
    """The command; returns 2 where it could not be done."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    defaults = DetailSettings()
    parser.add_argument("run", help="the teacher: run folder, weights.pt or bundle")
    parser.add_argument("--steps", type=int, default=1, choices=(1, 2), help="evaluations of a restoration")
    parser.add_argument("--tier", choices=sorted(TIERS), help="size of the student; default: the teacher's")
    parser.add_argument("--from", dest="start_from", help="run or bundle whose weights the student starts with")
    parser.add_argument("--training-steps", type=int, default=defaults.steps, help="optimiser steps")
    parser.add_argument("--heun-steps", type=int, default=defaults.heun_steps, help="Heun steps of the teacher")
    parser.add_argument("--cached-batches", type=int, default=defaults.cached_batches, help="walked by the teacher")
    add_arguments(parser, defaults)
    given = parser.parse_args()
    return outcome_of(
        lambda: distill_detail(
            given.run, given.output, steps=given.steps, data=given.data, tier=given.tier, start_from=given.start_from,
            settings=settings_from(given, defaults, steps=given.training_steps),
        )
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
