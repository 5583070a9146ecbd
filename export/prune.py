"""Prune a run: ``python -m photonstep.export.prune runs/teacher -o runs/base --target-macs 0.6 --data DATA``.

Whole channels go, a few at a time, from where the loss misses them least for the milliseconds that they cost: the time
is measured on the runtime's own backend, since a third of the multiply-accumulates may be a tenth of the time. Then the
narrow network learns from the one it was cut from. ``pruning.json`` keeps every candidate with its measured time.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..models.checkpoint import load_network, steps_of
from ..models.loop import Progress, print_progress, to_device
from ..models.network import INPUT_PLANES, Denoiser, NetworkConfig, kmac_per_px
from ..models.run_folder import run_settings, save_whole
from ..models.train import edm_loss
from ..runtime.errors import TrainingError
from .channels import Axis, axes_of, importance, narrowed, width_of, without
from .distil import (
    Compressed,
    DistilSettings,
    Fields,
    add_arguments,
    learn_from,
    load_denoiser,
    outcome_of,
    photograph,
    settings_from,
)  # fmt: skip
from .shape_latency import LatencyTable, Measure, MeasuredLatency, neighbourhood, shape_key

PRUNED, PRUNING = "pruned.pt", "pruning.json"
IMPORTANCE_FROM = 2**41  # batch indices of the samples that importance is measured on
NOISE_OF_MS = 0.01  # of a network's time: two measurements of one shape differ by about that


@dataclass(frozen=True, kw_only=True)
class PruneSettings(DistilSettings):
    """One pruning and its recovery.

    Parameters
    ----------
    target_macs : share of the multiply-accumulates to keep, 0 to 1; or
    target_ms : time of one evaluation to reach, on one frame of ``frame_px`` squared
    multiple : channels that go together, and what every width stays a multiple of: 8 or 16
    backend, backend_precision, threads : where time is measured; auto is bf16 where the CPU has it
    importance_samples : small batches, of 4 patches, whose gradients tell which channels matter
    """

    target_macs: float | None = None
    target_ms: float | None = None
    multiple: int = 16
    backend: str = "openvino"
    backend_precision: str = "auto"
    threads: int = 1
    frame_px: int = 512
    importance_samples: int = 48

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.target_macs is None) == (self.target_ms is None):
            raise TrainingError(
                f"target_macs is {self.target_macs}, target_ms is {self.target_ms}; give one of the two"
            )
        if self.target_macs is not None and not 0 < self.target_macs < 1:
            raise TrainingError(f"target_macs is {self.target_macs}; expected the share to keep, such as 0.5")
        if self.target_ms is not None and not self.target_ms > 0:
            raise TrainingError(f"target_ms is {self.target_ms}; expected milliseconds above 0")
        if self.multiple not in (8, 16, 32):
            raise TrainingError(f"multiple is {self.multiple}; expected 8, 16 or 32 channels")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Channels that might go: what the loss would rise by, and what the network without them takes."""

    axis: str
    width: int
    importance: float
    ms: float
    saved_ms: float
    kmac_per_px: float


def prune(
    run: str | Path,
    output: Path,
    *,
    target_macs: float | None = None,
    target_ms: float | None = None,
    data: Path | None = None,
    teacher: str | Path | None = None,
    settings: PruneSettings | None = None,
    fields: Fields | None = None,
    measure: Measure | None = None,
    latency_table: Path | None = None,
    progress: Callable[[Progress], None] | None = print_progress,
) -> Compressed:
    """Take channels out of a run and let the rest recover.

    Parameters
    ----------
    run : what is pruned: run folder, ``weights.pt`` or bundle; a student of 2 or 4 steps stays one
    output : run folder of the pruned network; an interrupted call resumes there
    target_macs, target_ms : one of them, see `PruneSettings`
    data : folder that holds ``clean/``; None uses simulated fields and samples alone
    teacher : what the pruned network learns from; None is ``run`` itself
    settings : their ``target_macs`` and ``target_ms`` are used where none is given here
    measure : milliseconds of a network of a configuration, in place of measuring it
    latency_table : JSON of measured times by shape to begin with and to add to; default ``output/latency.json``

    Returns
    -------
    teacher and pruned network on the same held-out batches

    Raises
    ------
    TrainingError : the target is out of reach, or the output holds another run
    """
    settings = settings or PruneSettings(target_macs=target_macs, target_ms=target_ms)
    if target_macs is not None or target_ms is not None:
        settings = replace(settings, target_macs=target_macs, target_ms=target_ms)
    network, steps = load_denoiser(run), steps_of(run)
    if network.config.planes > INPUT_PLANES:
        raise TrainingError(f"{run} has a detail knob, which pruning would not train; prune the mean's network first")
    if steps > 1:  # a student of few steps recovers step by step: each of its steps is the finest that it has
        settings = replace(settings, student_steps=steps, substeps=1 if teacher is None else settings.substeps)
    fields = fields or Fields.load(data, output, settings)
    output.mkdir(parents=True, exist_ok=True)
    pruned = _pruned_before(output, settings)
    if pruned is None:
        measure = measure or MeasuredLatency(
            network.config, frame_px=settings.frame_px, backend=settings.backend,
            precision=settings.backend_precision, threads=settings.threads,
        )  # fmt: skip
        table = LatencyTable(measure, latency_table or output / "latency.json")
        pruned = select(network, settings, table, fields, output)
    guide = network if teacher is None else load_denoiser(teacher)
    record = run_settings(
        "prune", settings, pruned, started_from=run, teacher=teacher or run, training_data=fields.sources
    )
    return learn_from(guide, pruned, settings, output, fields=fields, record=record, progress=progress)


def select(
    network: Denoiser, settings: PruneSettings, latency: Measure, fields: Fields, output: Path | None = None
) -> Denoiser:
    """Drop channels until the target is met: each time those whose importance per millisecond saved is least.

    Writes ``pruning.json`` and ``pruned.pt`` (before recovery) to ``output``.
    """
    full = network.config
    small = replace(settings, batch=4, measured_share=1.0)

    def loss(trial: Denoiser, index: int) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=settings.precision == "bf16"):
            return edm_loss(trial, to_device(photograph(fields.train, small, index), torch.device("cpu")))

    rounds: list[dict[str, Any]] = []
    savings: dict[str, float] = {}
    while not _reached(network.config, full, settings, latency):
        samples = range(IMPORTANCE_FROM, IMPORTANCE_FROM + settings.importance_samples)
        missed = importance(network, loss, samples)
        candidates = _candidates(network.config, missed, settings.multiple, latency, savings)
        if not candidates:
            raise TrainingError(f"{network.config} cannot be narrowed further; ask for less than {_target(settings)}")
        chosen = min(candidates, key=lambda axis: _price(candidates[axis], latency(network.config)))
        rounds.append(
            {
                "before": shape_key(network.config), "ms": latency(network.config),
                "kmac_per_px": round(kmac_per_px(network.config), 3), "dropped": str(chosen),
                "candidates": [asdict(candidate) for candidate in candidates.values()],
            }
        )  # fmt: skip
        network = without(network, chosen, missed[chosen].argsort()[: settings.multiple])
        print(
            f"{len(rounds):3d}  {settings.multiple} channels of {chosen!s:9}  {kmac_per_px(network.config):6.2f} "
            f"kMAC/px  {latency(network.config):7.2f} ms",
            flush=True,
        )
        if output is not None:
            _write_report(output, full, network.config, settings, latency, rounds)
    if output is not None:
        _write_report(output, full, network.config, settings, latency, rounds)
        save_whole({"network": network.config.as_dict(), "state": network.state_dict(), "step": 0}, output / PRUNED)
    return network


def _candidates(
    config: NetworkConfig, missed: dict[Axis, Tensor], multiple: int, latency: Measure, savings: dict[str, float]
) -> dict[Axis, Candidate]:
    """Every axis that can lose channels; ``savings`` are those measured so far, by what they depend on."""
    now = latency(config)
    found = {}
    for axis in axes_of(config):
        width = width_of(config, axis)
        if width <= multiple:
            continue
        smaller = narrowed(config, axis, multiple)
        near = neighbourhood(config, axis)
        if near not in savings:
            savings[near] = now - latency(smaller)
        found[axis] = Candidate(
            axis=str(axis), width=width, importance=float(missed[axis].sort().values[:multiple].sum()),
            ms=now - savings[near], saved_ms=savings[near], kmac_per_px=round(kmac_per_px(smaller), 3),
        )  # fmt: skip
    return found


def _price(candidate: Candidate, ms: float) -> float:
    """Importance per millisecond saved; a saving below the noise of a measurement counts as that noise."""
    return candidate.importance / max(candidate.saved_ms, NOISE_OF_MS * ms)


def _reached(config: NetworkConfig, full: NetworkConfig, settings: PruneSettings, latency: Measure) -> bool:
    if settings.target_ms is not None:
        return latency(config) <= settings.target_ms
    return kmac_per_px(config) <= (settings.target_macs or math.inf) * kmac_per_px(full)


def _target(settings: PruneSettings) -> str:
    return f"{settings.target_ms} ms" if settings.target_ms is not None else f"{settings.target_macs} of the MACs"


def _write_report(
    output: Path,
    full: NetworkConfig,
    config: NetworkConfig,
    settings: PruneSettings,
    latency: Measure,
    rounds: list[Any],
) -> None:
    report = {
        "target": _target(settings),
        "measured": {
            "backend": settings.backend, "precision": settings.backend_precision, "threads": settings.threads,
            "frame_px": settings.frame_px,
        },
        "before": {"network": full.as_dict(), "ms": latency(full), "kmac_per_px": kmac_per_px(full)},
        "after": {"network": config.as_dict(), "ms": latency(config), "kmac_per_px": kmac_per_px(config)},
        "rounds": rounds,
    }  # fmt: skip
    partial = output / f"{PRUNING}.partial"
    partial.write_text(json.dumps(report, indent=1) + "\n")
    partial.replace(output / PRUNING)


def _pruned_before(output: Path, settings: PruneSettings) -> Denoiser | None:
    """The channels that an interrupted call chose for the same target."""
    if not (output / PRUNED).exists():
        return None
    target = json.loads((output / PRUNING).read_text())["target"]
    if target != _target(settings):
        raise TrainingError(
            f"{output} was pruned to {target}, now asked for {_target(settings)}; choose another folder"
        )
    return load_network(output / PRUNED)


def main() -> int:
    """The command; returns 2 where it could not be done."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", help="what to prune: run folder, weights.pt or bundle")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--target-macs", type=float, help="share of the multiply-accumulates to keep, such as 0.5")
    target.add_argument("--target-ms", type=float, help="milliseconds of one evaluation to reach")
    defaults = PruneSettings(target_macs=0.5)
    parser.add_argument("--teacher", help="what the pruned network learns from; default: the unpruned one")
    parser.add_argument("--training-steps", type=int, default=defaults.steps, help="optimiser steps of the recovery")
    parser.add_argument("--latency-table", type=Path, help="JSON of measured times to begin with and to add to")
    for name, text in (
        ("multiple", "channels that go together: 8, 16 or 32"), ("backend", "openvino or onnxruntime"),
        ("backend_precision", "auto, fp32 or bf16"), ("threads", "of the measured backend"),
        ("frame_px", "side of the measured frame"), ("importance_samples", "small batches for the importance"),
    ):  # fmt: skip
        value = getattr(defaults, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"{text} ({value})")
    add_arguments(parser, defaults)
    given = parser.parse_args()
    return outcome_of(
        lambda: prune(
            given.run, given.output, target_macs=given.target_macs, target_ms=given.target_ms, data=given.data,
            teacher=given.teacher, settings=settings_from(given, defaults, steps=given.training_steps),
            latency_table=given.latency_table,
        )
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
