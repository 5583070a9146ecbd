"""Consistency distillation: a model that starts at noise, made to arrive in one evaluation.

For conditional models that sample from pure noise (super-resolution or denoising with the measurement as a condition).
Along the teacher's deterministic walk every state belongs to one end; the student learns to name that end from any of
them: what it says at a noisier state should be what its own moving average says one teacher step further. At the lowest
level it is the identity by construction, which is what pins the ends to the data.

The runtime samples the result with ``table("consistency", levels, sigma_min=...)``.

Source: Song et al. 2023, arXiv:2303.01469, algorithm 2 and appendix C (parameterisation).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..models.loop import LoopSettings, Progress, print_progress, run_loop, to_device
from ..models.run_folder import run_settings, write_weights
from ..runtime import samplers, schedule
from ..runtime.errors import TrainingError

Denoise = Callable[[Tensor, Tensor, Tensor], Tensor]  # state, sigma (N, 1, 1, 1), condition -> x0_hat
Clean = Callable[[int], tuple[Tensor, Tensor]]  # index -> clean (N, 1, H, W), condition (N, C, H, W)


@dataclass(frozen=True, kw_only=True)
class ConsistencySettings(LoopSettings):
    """One consistency distillation.

    Parameters
    ----------
    sigma_min, sigma_max : lowest and highest noise level, model units; the model starts at the highest
    levels : of the teacher's walk
    sigma_data : standard deviation of clean data
    ema_decay : of the average that gives the targets, and that is the result
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    levels: int = 18
    sigma_data: float = 0.5
    ema_decay: float = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 < self.sigma_min < self.sigma_max and self.levels >= 2 and self.sigma_data > 0):
            raise TrainingError(
                f"sigma_min {self.sigma_min}, sigma_max {self.sigma_max}, levels {self.levels}, sigma_data "
                f"{self.sigma_data}; expected 0 < sigma_min < sigma_max, 2 levels or more, sigma_data above 0"
            )


class ConsistencyModel(nn.Module):
    """``f(x, sigma, condition) = c_skip x + c_out F``, the identity at ``sigma_min``.

    Parameters
    ----------
    network : (N, 2 + C, H, W) planes ``c_in x, log(sigma)/4, condition`` -> (N, 1, H, W)
    """

    def __init__(self, network: nn.Module, settings: ConsistencySettings) -> None:
        super().__init__()
        self.network = network
        self.sigma_min, self.sigma_data = settings.sigma_min, settings.sigma_data

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor) -> Tensor:
        """(N, 1, H, W) float32 end of the walk, of a state at ``sigma`` (N, 1, 1, 1)."""
        total, above = sigma**2 + self.sigma_data**2, sigma - self.sigma_min
        c_noise = (sigma.log() / 4).expand_as(x)
        said = self.network(torch.cat([x / total.sqrt(), c_noise, condition], 1)).float()
        c_skip = self.sigma_data**2 / (above**2 + self.sigma_data**2)
        return c_skip * x + above * self.sigma_data / total.sqrt() * said


@dataclass(frozen=True)
class NoisyBatch:
    """States (N, 1, H, W) at ``sigma``, whose next lower level is ``sigma_next``, both (N, 1, 1, 1)."""

    x: Tensor
    sigma: Tensor
    sigma_next: Tensor
    condition: Tensor


def distill_consistency(
    teacher: Denoise,
    network: nn.Module,
    settings: ConsistencySettings,
    output: Path,
    *,
    clean: Clean,
    record: dict[str, Any] | None = None,
    progress: Callable[[Progress], None] | None = print_progress,
) -> ConsistencyModel:
    """Train a one-step sampler from a many-step one.

    Parameters
    ----------
    teacher : x0_hat of a state, its sigma and its condition; any framework behind it
    network : of the student, see `ConsistencyModel`; starting from the teacher's weights helps
    clean : batch of clean images and their conditions; the same whenever it is asked for the same index

    Returns
    -------
    the averaged model, in evaluation mode; ``output`` is a run folder with its weights
    """
    student = ConsistencyModel(network, settings)
    average = copy.deepcopy(student).requires_grad_(False)

    def loss(model: nn.Module, batch: NoisyBatch) -> Tensor:
        return consistency_loss(model, average, teacher, batch)

    @torch.no_grad()
    def held_out(model: nn.Module) -> float:
        there = next(model.parameters()).device
        return consistency_loss(model, model, teacher, to_device(_noisy(clean, settings, 2**40), there)).item()

    run_loop(
        student, settings, output, batch=lambda index: _noisy(clean, settings, index), loss=loss, average=average,
        held_out=held_out, record=record or run_settings("distill", settings, network), progress=progress,
    )  # fmt: skip
    write_weights(average.network, output, settings.steps)
    return average.eval()


def consistency_loss(model: nn.Module, target: nn.Module, teacher: Denoise, batch: NoisyBatch) -> Tensor:
    """Mean square between what the model says here and what the target says one teacher step further."""
    with torch.no_grad():
        further = heun_step(teacher, batch)
        wanted = target(further, batch.sigma_next, batch.condition)
    said = model(batch.x, batch.sigma, batch.condition)
    return (said - wanted).square().mean()


def heun_step(denoise: Denoise, batch: NoisyBatch) -> Tensor:
    """The state at ``sigma_next``, second order; source: Karras et al. 2022, arXiv:2206.00364, algorithm 1."""
    slope = (batch.x - denoise(batch.x, batch.sigma, batch.condition)) / batch.sigma
    step = batch.sigma_next - batch.sigma
    ahead = batch.x + step * slope
    slope_ahead = (ahead - denoise(ahead, batch.sigma_next, batch.condition)) / batch.sigma_next
    return batch.x + step * (slope + slope_ahead) / 2


@torch.no_grad()
def many_steps(denoise: Denoise, start: Tensor, condition: Tensor, settings: ConsistencySettings) -> Tensor:
    """The teacher's own end from a start at ``sigma_max``: Heun over the same levels, then to zero."""
    levels = schedule.karras(settings.levels, settings.sigma_max, settings.sigma_min)
    x0_prev = state = start
    for row in samplers.heun(levels):
        x0 = denoise(state, torch.full((len(state), 1, 1, 1), row.sigma, device=state.device), condition)
        state, x0_prev = row.a * state + row.b * x0 + row.p * x0_prev, x0
    return state


def _noisy(clean: Clean, settings: ConsistencySettings, index: int) -> NoisyBatch:
    x0, condition = clean(index)
    rng = np.random.default_rng((settings.seed, index))
    levels = torch.tensor(schedule.karras(settings.levels - 1, settings.sigma_max, settings.sigma_min, to_zero=False))
    here = torch.from_numpy(rng.integers(settings.levels - 1, size=len(x0)))
    sigma, sigma_next = (levels[i][:, None, None, None] for i in (here, here + 1))
    noise = torch.from_numpy(rng.standard_normal(x0.shape, dtype=np.float32))
    return NoisyBatch(x0 + sigma * noise, sigma, sigma_next, condition)
