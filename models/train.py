"""Train a denoiser: ``python -m photonstep.models.train --tier base --data DATA -o runs/base``.

A plain loop: EDM loss in the stabilised domain, AdamW with a cosine schedule, an exponential moving average of the
weights, checkpoints that a later call resumes (`models.loop`). Batch ``i`` of a run depends on the seed and ``i``
alone, so a run that was interrupted sees the batches that an uninterrupted one would have seen.

A user's own recordings come in as ``sources`` (`models/recordings.py`); `models/fine_tune.py` has settings for them.

Source: Karras et al. 2022 (EDM), arXiv:2206.00364, for preconditioning and loss weight.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..runtime.errors import TrainingError
from .best_weights import BestWeights
from .checkpoint import load_network, task_of
from .data import FieldPool, load_pool
from .guide import NetworkGuide
from .loop import LoopSettings, Progress, print_progress, run_loop, to_device
from .material import Drawing, Material, Recordings, gather, held_out_material, training_data, training_material
from .network import INPUT_PLANES, TIERS, Denoiser, grow_into, kmac_per_px, parameter_count
from .noise import Batch
from .recordings import Source
from .run_folder import run_settings

HELD_OUT = 2**40  # no training comes near this index
HELD_OUT_BATCHES = 12


@dataclass(frozen=True, kw_only=True)
class TrainConfig(LoopSettings):
    """One training run; everything that, with the data, decides the weights.

    Parameters
    ----------
    tier : size of the network, a key of ``TIERS``; None takes the shape of the network that the run starts from
    batch, patch_px : samples of a step, and the side of each
    measured_share : of samples that stay at the camera's own noise level; the others lie on the way to zero
    simulated_fields : how many the simulator draws for the built-in pool
    recordings_share : of every batch that comes from the user's recordings, where there are any
    held_out_share : of the user's fields of view that are not trained on but tell how well it goes
    """

    tier: str | None = None
    batch: int = 16
    patch_px: int = 128
    measured_share: float = 0.5
    simulated_fields: int = 2000
    recordings_share: float = 0.75
    held_out_share: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tier is not None and self.tier not in TIERS:
            raise TrainingError(f"tier is {self.tier!r}; expected one of {', '.join(TIERS)}")
        if self.batch < 1 or self.patch_px < 16 or self.simulated_fields < 1:
            raise TrainingError(
                f"batch {self.batch}, patch_px {self.patch_px}, simulated_fields {self.simulated_fields}; expected at "
                "least 1, 16 and 1"
            )
        for name in ("measured_share", "recordings_share", "held_out_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise TrainingError(f"{name} is {getattr(self, name)}; expected a share between 0 and 1")

    @property
    def drawing(self) -> Drawing:
        return Drawing(
            batch=self.batch, patch_px=self.patch_px, measured_share=self.measured_share,
            recordings_share=self.recordings_share, seed=self.seed,
        )  # fmt: skip


def train(
    config: TrainConfig,
    data: Path | None,
    output: Path,
    *,
    start_from: str | Path | None = None,
    sources: Sequence[Source] = (),
    progress: Callable[[Progress], None] | None = print_progress,
) -> Path:
    """Run or resume one training.

    Parameters
    ----------
    data : folder of the built-in pool, holds ``clean/`` (see its README for licences), or None: simulated fields and
        samples only
    output : run folder; gets ``config.json``, ``log.csv``, ``checkpoint.pt`` and at the end ``weights.pt``
    start_from : a run folder, ``weights.pt`` or bundle to start from; None starts from random weights
    sources : the user's recordings. A part of their fields is held out, and ``weights.pt`` are the averaged weights
        that did best on it, those of the start included
    progress : called after every step

    Returns
    -------
    path of ``weights.pt``, the averaged weights with their network configuration

    Raises
    ------
    TrainingError : settings, recordings or a run folder that do not fit
    """
    recordings = gather(sources, config.held_out_share)
    network = _start(config, start_from)
    cache = (output if sources else output.parent) / "cache"
    pool = load_pool(data, cache, simulated=config.simulated_fields, seed=config.seed).at_least(config.patch_px)
    count, cost = parameter_count(network), kmac_per_px(network.config)
    print(f"{config.tier or start_from}: {count:,} parameters, {cost:.1f} kMAC per pixel")
    guide = _guide(recordings, start_from)
    material = training_material(recordings.train, pool, config.drawing, guide)
    best: BestWeights | None = None
    if recordings.held_out:
        held_out = held_out_material(recordings.held_out, guide)
        best = BestWeights(output, lambda average: material_loss(average, held_out, config))
        best.begin(network if start_from is not None else None)
    else:
        fields = load_pool(data, cache, simulated=64, seed=config.seed, split="val").at_least(config.patch_px)
    weights = run_loop(
        network, config, output,
        batch=lambda index: material.batch(config.drawing, index), loss=edm_loss,
        held_out=best or (lambda average: validate(average, fields, config)),
        record=run_settings(
            "train", config, network, started_from=start_from,
            training_data=training_data(sources, recordings, pool), recordings=recordings.marks,
        ),
        progress=progress,
    )  # fmt: skip
    if best is not None:
        best.finish()
    return weights


def edm_loss(network: nn.Module, batch: Batch) -> Tensor:
    """Mean square of what the network says less what it should say, a scalar."""
    sigma_data = network.config.sigma_data
    planes = network_planes(batch, sigma_data).contiguous(memory_format=torch.channels_last)
    residual: Tensor = network(planes)
    return (residual.float() - edm_residual(batch, sigma_data)).square().mean()


def edm_residual(batch: Batch, sigma_data: float) -> Tensor:
    """What the network should say: ``F = (x0 - c_skip x) / c_out``; its plain mean square is EDM's weighted loss."""
    total = batch.sigma**2 + sigma_data**2
    return (batch.x0 - sigma_data**2 / total * batch.x) * total.sqrt() / (batch.sigma * sigma_data)


def network_planes(batch: Batch, sigma_data: float) -> Tensor:
    """(N, 4, H, W) float32: ``c_in x``, ``log(sigma)/4``, noise correlation along y and x."""
    scaled = batch.x / (batch.sigma**2 + sigma_data**2).sqrt()
    correlation = batch.noise_correlation[:, :, None, None].expand(-1, -1, *batch.x.shape[-2:])
    return torch.cat([scaled, batch.sigma.log() / 4, correlation], 1)


def _start(config: TrainConfig, start_from: str | Path | None) -> Denoiser:
    torch.manual_seed(config.seed)
    if start_from is None:
        if config.tier is None:
            raise TrainingError(f"no tier, and nothing to start from; choose a tier: {', '.join(TIERS)}")
        return Denoiser(TIERS[config.tier])
    earlier = load_network(start_from)
    task = task_of(start_from)
    if task != "denoise" or earlier.config.planes != INPUT_PLANES:
        what = f"is made for {task}" if task != "denoise" else "has a detail knob"
        raise TrainingError(f"{start_from} {what}; training on recordings starts from a denoiser such as base")
    if config.tier is None:
        return earlier
    network = Denoiser(TIERS[config.tier])
    try:
        grow_into(network, earlier)
    except ValueError as error:
        raise TrainingError(f"{start_from} cannot start a network of tier {config.tier}: {error}") from None
    return network


def _guide(recordings: Recordings, start_from: str | Path | None) -> NetworkGuide | None:
    """Frames without any reference are read with the help of the network that the run starts from, or of base."""
    if not any(scene.kind == "noisy" for scene in (*recordings.train, *recordings.held_out)):
        return None
    return NetworkGuide(load_network("base" if start_from is None else start_from))


def make_batch(pool: FieldPool, config: TrainConfig, index: int) -> Batch:
    """Batch ``index`` of a run on the pool alone, the same whenever it is asked for."""
    return Material(pool, None, 0.0).batch(config.drawing, index)


def validate(network: nn.Module, pool: FieldPool, config: TrainConfig, batches: int = HELD_OUT_BATCHES) -> float:
    """EDM loss on held-out fields with fixed noise, float32."""
    return material_loss(network, Material(pool, None, 0.0), config, batches)


@torch.no_grad()
def material_loss(
    network: nn.Module, material: Material, config: TrainConfig, batches: int = HELD_OUT_BATCHES
) -> float:
    """EDM loss on fixed batches, float32."""
    device = next(network.parameters()).device
    losses = [
        edm_loss(network, to_device(material.batch(config.drawing, HELD_OUT - 1 - index), device)).item()
        for index in range(batches)
    ]
    mean = float(np.mean(losses))
    if not math.isfinite(mean):
        raise TrainingError(f"the loss on held-out fields is {mean}; look for frames that are not finite")
    return mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tier", choices=sorted(TIERS), required=True, help="size of the network")
    parser.add_argument("--steps", type=int, required=True, help="optimiser steps")
    parser.add_argument(
        "--data", type=Path, help="folder that holds clean/; without it only simulated fields and samples"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="run folder; an interrupted run resumes there")
    parser.add_argument("--from", dest="start_from", type=Path, help="weights.pt of an earlier run to fine-tune")
    parser.add_argument("--learning-rate", type=float, default=TrainConfig.learning_rate)
    parser.add_argument(
        "--measured-share",
        type=float,
        default=TrainConfig.measured_share,
        help="share of samples at the camera's own noise level: more favours K = 1, less favours K = 2 to 4",
    )
    parser.add_argument("--seed", type=int, default=TrainConfig.seed)
    arguments = parser.parse_args()
    config = TrainConfig(
        tier=arguments.tier,
        steps=arguments.steps,
        learning_rate=arguments.learning_rate,
        measured_share=arguments.measured_share,
        seed=arguments.seed,
    )
    print(f"wrote {train(config, arguments.data, arguments.output, start_from=arguments.start_from)}")


if __name__ == "__main__":
    main()
