"""Train a denoiser: ``python -m photonstep.models.train --tier base --data DATA -o runs/base``.

A plain loop: EDM loss in the stabilised domain, AdamW with a cosine schedule, an exponential moving average of the
weights, checkpoints that a later call resumes (`models.loop`). Batch ``i`` of a run depends on the seed and ``i``
alone, so a run that was interrupted sees the batches that an uninterrupted one would have seen.

Source: Karras et al. 2022 (EDM), arXiv:2206.00364, for preconditioning and loss weight.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .checkpoint import load_network
from .data import FieldPool, load_pool
from .loop import LoopSettings, run_loop, to_device
from .network import TIERS, Denoiser, grow_into, kmac_per_px, parameter_count
from .noise import Batch, CameraRanges, observe
from .run_folder import run_settings

HELD_OUT = 2**40  # no training comes near this index


@dataclass(frozen=True, kw_only=True)
class TrainConfig(LoopSettings):
    """One training run; everything that, with the data, decides the weights."""

    tier: str
    batch: int = 16
    patch_px: int = 128
    measured_share: float = 0.5
    simulated_fields: int = 2000


def train(config: TrainConfig, data: Path | None, output: Path, *, start_from: Path | None = None) -> Path:
    """Run or resume one training.

    Parameters
    ----------
    data : folder that holds ``clean/`` (see its README for licences), or None: simulated fields and samples only
    start_from : ``weights.pt`` of an earlier run of the same tier to start from; None starts from random weights
    output : run folder; gets ``config.json``, ``log.csv``, ``checkpoint.pt`` and at the end ``weights.pt``

    Returns
    -------
    path of ``weights.pt``, the averaged weights with their network configuration
    """
    network = _start(config, start_from)
    pool = load_pool(data, output.parent / "cache", simulated=config.simulated_fields, seed=config.seed)
    fields = load_pool(data, output.parent / "cache", simulated=64, seed=config.seed, split="val")
    count, cost = parameter_count(network), kmac_per_px(network.config)
    print(f"{config.tier}: {count:,} parameters, {cost:.1f} kMAC per pixel")
    return run_loop(
        network, config, output,
        batch=lambda index: make_batch(pool, config, index), loss=edm_loss,
        held_out=lambda average: validate(average, fields, config),
        record=run_settings("train", config, network, started_from=start_from),
    )  # fmt: skip


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


def _start(config: TrainConfig, start_from: Path | None) -> Denoiser:
    torch.manual_seed(config.seed)
    network = Denoiser(TIERS[config.tier])
    if start_from is not None:
        grow_into(network, load_network(start_from))
    return network


def make_batch(pool: FieldPool, config: TrainConfig, index: int) -> Batch:
    """Batch ``index`` of a run, the same whenever it is asked for."""
    rng = np.random.default_rng((config.seed, index))
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    fields, low_high = pool.crops(config.batch, config.patch_px, rng)
    return observe(fields, low_high, generator, CameraRanges(measured_share=config.measured_share))


@torch.no_grad()
def validate(network: nn.Module, pool: FieldPool, config: TrainConfig, batches: int = 12) -> float:
    """EDM loss on held-out fields with fixed noise, float32."""
    device = next(network.parameters()).device
    losses = [
        edm_loss(network, to_device(make_batch(pool, config, HELD_OUT - 1 - index), device)).item()
        for index in range(batches)
    ]
    return float(np.mean(losses))


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
