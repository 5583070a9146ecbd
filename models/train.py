"""Train a denoiser: ``python -m photonstep.models.train --tier base --data DATA -o runs/base``.

A plain loop: EDM loss in the stabilised domain, AdamW with a cosine schedule, an exponential moving average of the
weights, checkpoints that a later call resumes. Batch ``i`` of a run depends on the seed and ``i`` alone, so a run that
was interrupted sees the batches that an uninterrupted one would have seen.

Source: Karras et al. 2022 (EDM), arXiv:2206.00364, for preconditioning and loss weight.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .checkpoint import load_network
from .data import FieldPool, load_pool
from .network import TIERS, Denoiser, NetworkConfig, grow_into, kmac_per_px, parameter_count
from .noise import Batch, CameraRanges, observe


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run; everything that, with the data, decides the weights."""

    tier: str
    steps: int
    batch: int = 16
    patch_px: int = 128
    learning_rate: float = 2e-3
    warmup_steps: int = 500
    ema_decay: float = 0.9995
    measured_share: float = 0.5
    simulated_fields: int = 2000
    seed: int = 20261122
    validate_every: int = 2000
    checkpoint_seconds: float = 120.0


@dataclass
class RunState:
    """What a checkpoint holds."""

    network: Denoiser
    average: Denoiser
    optimiser: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0

    def save(self, path: Path) -> None:
        partial = path.with_suffix(".partial")
        state = {k: v.state_dict() for k, v in vars(self).items() if hasattr(v, "state_dict")}
        torch.save({**state, "step": self.step, "seconds": self.seconds}, partial)
        partial.rename(path)

    def load(self, path: Path) -> None:
        saved = torch.load(path, weights_only=True)
        for part in ("network", "average", "optimiser"):
            getattr(self, part).load_state_dict(saved[part])
        self.step, self.seconds = saved["step"], saved["seconds"]


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
    output.mkdir(parents=True, exist_ok=True)
    network_config = TIERS[config.tier]
    record: dict[str, object] = {"train": asdict(config), "network": network_config.as_dict()}
    if start_from is not None:
        record["started_from"] = str(start_from)
    (output / "config.json").write_text(json.dumps(record))
    pool = load_pool(data, output.parent / "cache", simulated=config.simulated_fields, seed=config.seed)
    held_out = load_pool(data, output.parent / "cache", simulated=64, seed=config.seed, split="val")
    state = _start(network_config, config, output / "checkpoint.pt", start_from)
    count, cost = parameter_count(state.network), kmac_per_px(network_config)
    print(f"{config.tier}: {count:,} parameters, {cost:.1f} kMAC per pixel")
    _loop(state, config, pool, held_out, output)
    weights = output / "weights.pt"
    torch.save({"network": network_config.as_dict(), "state": state.average.state_dict(), "step": state.step}, weights)
    return weights


def edm_residual(batch: Batch, sigma_data: float) -> Tensor:
    """What the network should say: ``F = (x0 - c_skip x) / c_out``; its plain mean square is EDM's weighted loss."""
    total = batch.sigma**2 + sigma_data**2
    return (batch.x0 - sigma_data**2 / total * batch.x) * total.sqrt() / (batch.sigma * sigma_data)


def network_planes(batch: Batch, sigma_data: float) -> Tensor:
    """(N, 4, H, W) float32: ``c_in x``, ``log(sigma)/4``, noise correlation along y and x."""
    scaled = batch.x / (batch.sigma**2 + sigma_data**2).sqrt()
    correlation = batch.noise_correlation[:, :, None, None].expand(-1, -1, *batch.x.shape[-2:])
    return torch.cat([scaled, batch.sigma.log() / 4, correlation], 1)


def _start(
    network_config: NetworkConfig, config: TrainConfig, checkpoint: Path, start_from: Path | None = None
) -> RunState:
    torch.manual_seed(config.seed)
    network = Denoiser(network_config).to(memory_format=torch.channels_last)
    if start_from is not None:
        grow_into(network, load_network(start_from))
    average = Denoiser(network_config).requires_grad_(False)
    average.load_state_dict(network.state_dict())
    optimiser = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)
    state = RunState(network, average, optimiser)
    if checkpoint.exists():
        state.load(checkpoint)
        print(f"resuming at step {state.step}")
    return state


def _loop(state: RunState, config: TrainConfig, pool: FieldPool, held_out: FieldPool, output: Path) -> None:
    started, saved = time.monotonic() - state.seconds, time.monotonic()
    losses: list[float] = []
    for batch in _batches(pool, config, state.step):
        losses.append(_step(state, batch, config))
        state.step += 1
        state.seconds = time.monotonic() - started
        if state.step % config.validate_every == 0 or state.step == config.steps:
            _log(output / "log.csv", state, float(np.mean(losses)), validate(state.average, held_out, config))
            losses.clear()
        if time.monotonic() - saved > config.checkpoint_seconds or state.step == config.steps:
            state.save(output / "checkpoint.pt")
            saved = time.monotonic()


def _step(state: RunState, batch: Batch, config: TrainConfig) -> float:
    sigma_data = state.network.config.sigma_data
    for group in state.optimiser.param_groups:
        group["lr"] = config.learning_rate * _schedule(state.step, config)
    planes = network_planes(batch, sigma_data).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        residual = state.network(planes)
    loss = (residual.float() - edm_residual(batch, sigma_data)).square().mean()
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(state.network.parameters(), 0.5)
    state.optimiser.step()
    decay = min(config.ema_decay, (state.step + 1) / (state.step + 10))
    with torch.no_grad():
        torch._foreach_lerp_(list(state.average.parameters()), list(state.network.parameters()), 1 - decay)
    return loss.item()


def _schedule(step: int, config: TrainConfig) -> float:
    warm = min(1.0, (step + 1) / config.warmup_steps)
    return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(step / config.steps, 1.0))))


def make_batch(pool: FieldPool, config: TrainConfig, index: int) -> Batch:
    """Batch ``index`` of a run, the same whenever it is asked for."""
    rng = np.random.default_rng((config.seed, index))
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    fields, low_high = pool.crops(config.batch, config.patch_px, rng)
    return observe(fields, low_high, generator, CameraRanges(measured_share=config.measured_share))


def _batches(pool: FieldPool, config: TrainConfig, first: int) -> Iterator[Batch]:
    """Batches ``first`` to the last, each prepared while the one before is being learnt."""
    with ThreadPoolExecutor(1) as ahead:
        upcoming = ahead.submit(make_batch, pool, config, first)
        for index in range(first, config.steps):
            batch = upcoming.result()
            upcoming = ahead.submit(make_batch, pool, config, index + 1)
            yield batch


@torch.no_grad()
def validate(network: Denoiser, pool: FieldPool, config: TrainConfig, batches: int = 12) -> float:
    """EDM loss on held-out fields with fixed noise, float32."""
    losses = []
    for index in range(batches):
        batch = make_batch(pool, config, -1 - index + 2**40)
        residual = network(network_planes(batch, network.config.sigma_data))
        losses.append((residual - edm_residual(batch, network.config.sigma_data)).square().mean().item())
    return float(np.mean(losses))


def _log(path: Path, state: RunState, train_loss: float, held_out_loss: float) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(["step", "seconds", "train_loss", "held_out_loss"])
        writer.writerow([state.step, round(state.seconds), f"{train_loss:.5f}", f"{held_out_loss:.5f}"])
    print(
        f"step {state.step:6d}  {state.seconds:6.0f} s  train {train_loss:.4f}  held out {held_out_loss:.4f}",
        flush=True,
    )


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
