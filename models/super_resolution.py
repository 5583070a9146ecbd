"""Train super-resolution: ``python -m photonstep.models.super_resolution --steps N --data DATA -o runs/sr2``.

The body is a denoiser's on the coarse grid: on the fine grid its stem unshuffles by four, and its last convolution is
shuffled back. It starts at ``x_1``, the stabilised noisy frame interpolated to twice the side, and walks the line
``x_t = x0 + t (x_1 - x0)`` to the clean fine field ``x0`` (InDI). The noise level that it is told is
``t hypot(sigma, degradation_sigma)``: what the camera adds, and how far interpolation lies from the truth without it.

Source: Delbracio & Milanfar 2023 (InDI), arXiv:2303.11435; preconditioning, Karras et al. 2022, arXiv:2206.00364.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from .checkpoint import load_network
from .data import Field, FieldPool, load_pool
from .loop import LoopSettings, run_loop, to_device
from .network import Denoiser, NetworkConfig, kmac_per_px, parameter_count
from .noise import Batch, CameraRanges, Draw, FrontEnd, illuminate, photograph
from .optics import SCALE, OpticsRanges, blur, integrate, through_the_microscope, upsample2
from .run_folder import run_settings
from .train import HELD_OUT, edm_loss

BODY = NetworkConfig(widths=(32, 64, 64, 64), unshuffle=4)
COARSE_BLOCK_PX = 8  # the runtime takes levels from 4x4 blocks of the coarse frame: these, on the fine grid
DEGRADATION_SIGMA = 0.05  # rms of interpolated noise-free frames less the truth, see `measure_degradation`


@dataclass(frozen=True, kw_only=True)
class SuperResolutionConfig(LoopSettings):
    """One training run; everything that, with the data, decides the weights.

    Parameters
    ----------
    patch_px : side of a patch on the fine grid
    measured_share : of the samples at t = 1, where K = 1 restores; the others lie on the bridge
    sharp_share : of the patches that are cut at twice the side and averaged down, so that they hold the finest detail
    psf_sigma_px, truth_sigma_px : see `models.optics.OpticsRanges`
    """

    batch: int = 16
    patch_px: int = 128
    measured_share: float = 0.65
    sharp_share: float = 0.5
    simulated_fields: int = 2000
    degradation_sigma: float = DEGRADATION_SIGMA
    psf_sigma_px: tuple[float, float] = OpticsRanges.psf_sigma_px
    truth_sigma_px: tuple[float, float] = OpticsRanges.truth_sigma_px

    def optics(self) -> OpticsRanges:
        return OpticsRanges(psf_sigma_px=self.psf_sigma_px, truth_sigma_px=self.truth_sigma_px)


def train(config: SuperResolutionConfig, data: Path | None, output: Path, *, start_from: str | None = None) -> Path:
    """Run or resume one training.

    Parameters
    ----------
    data : folder that holds ``clean/``, or None: simulated fields and scikit-image's samples only
    output : run folder; gets ``config.json``, ``log.csv``, ``checkpoint.pt`` and at the end ``weights.pt``
    start_from : a run folder, weights or bundle: of a denoiser, whose body is taken over while stem and head start
        anew, or of super-resolution

    Returns
    -------
    path of ``weights.pt``, the averaged weights with their network configuration
    """
    torch.manual_seed(config.seed)
    network = Denoiser(BODY)
    if start_from is not None:
        take_body(network, load_network(start_from))
    pool = coarse_levels(load_pool(data, output.parent / "cache", simulated=config.simulated_fields, seed=config.seed))
    held_out = coarse_levels(load_pool(data, output.parent / "cache", simulated=64, seed=config.seed, split="val"))
    print(f"sr2: {parameter_count(network):,} parameters, {kmac_per_px(network.config):.1f} kMAC per fine pixel")
    return run_loop(
        network, config, output,
        batch=lambda index: make_batch(pool, config, index), loss=edm_loss,
        held_out=lambda average: validate(average, held_out, config),
        record=run_settings("train", config, network, task="super_resolution", started_from=start_from),
    )  # fmt: skip


def take_body(network: Denoiser, denoiser: Denoiser) -> int:
    """Copy every weight of the same name and shape; returns how many tensors that were."""
    state = network.state_dict()
    alike = {n: v for n, v in denoiser.state_dict().items() if n in state and state[n].shape == v.shape}
    network.load_state_dict({**state, **alike})
    return len(alike)


def coarse_levels(pool: FieldPool) -> FieldPool:
    """The pool with every field's percentiles taken over the blocks that the runtime sees on the coarse grid."""
    fields = {
        name: [Field.of(f.brightness.float().numpy(), COARSE_BLOCK_PX) for f in group]
        for name, group in pool.fields.items()
    }
    return FieldPool(fields, pool.shares)


def make_batch(pool: FieldPool, config: SuperResolutionConfig, index: int) -> Batch:
    """Batch ``index`` of a run on the fine grid, the same whenever it is asked for."""
    rng = np.random.default_rng((config.seed, index))
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    sharp = round(config.sharp_share * config.batch)
    wide, wide_levels = pool.at_least(SCALE * config.patch_px).crops(sharp, SCALE * config.patch_px, rng)
    plain, plain_levels = pool.crops(config.batch - sharp, config.patch_px, rng)
    fields = torch.cat([integrate(wide), plain])
    return observe(fields, torch.cat([wide_levels, plain_levels]), generator, config)


def observe(fields: Tensor, low_high: Tensor, generator: torch.Generator, config: SuperResolutionConfig) -> Batch:
    """Photograph fields through a wider microscope with coarser pixels; states on the bridge, on the fine grid.

    Parameters
    ----------
    fields : (N, H, W) float32, relative brightness; even sides
    low_high : (N, 2) float32, low and high percentile of the whole field's coarse blocks
    """
    ranges, draw = CameraRanges(), Draw(generator, len(fields))
    photons, levels = illuminate(fields, low_high, draw, ranges)
    photons, coarse = form_images(photons, draw, config.optics())
    exposure = photograph(coarse, levels, draw, ranges)
    front_end = FrontEnd.of(exposure, draw, ranges)
    x1, x0 = upsample2(front_end.to_model(exposure.electrons))[:, None], front_end.to_model(photons)[:, None]
    t = torch.where(draw.uniform() < config.measured_share, torch.ones(draw.count, 1), draw.range(0.08, 1.0))
    told = front_end.sigma * torch.exp(ranges.sigma_error * draw.normal())
    sigma = (t * torch.hypot(told, torch.tensor(config.degradation_sigma)))[:, :, None, None]
    x = x0 + t[:, :, None, None] * (x1 - x0)
    return Batch(x=x, x0=x0, sigma=sigma.expand_as(x), noise_correlation=front_end.noise_correlation)


def form_images(photons: Tensor, draw: Draw, optics: OpticsRanges) -> tuple[Tensor, Tensor]:
    """Band-limited fine images, and what coarse pixels expect of them behind a random point-spread function."""
    fine = blur(photons, draw.range(*optics.truth_sigma_px)[:, 0])
    width, skirt = draw.range(*optics.psf_sigma_px)[:, 0], draw.range(*optics.skirt_share)[:, 0]
    return fine, integrate(through_the_microscope(fine, width, skirt, optics.skirt_width))


@torch.no_grad()
def validate(network: nn.Module, pool: FieldPool, config: SuperResolutionConfig, batches: int = 8) -> float:
    """EDM loss on held-out fields with fixed noise, float32."""
    device = next(network.parameters()).device
    losses = [
        edm_loss(network, to_device(make_batch(pool, config, HELD_OUT - 1 - index), device)).item()
        for index in range(batches)
    ]
    return float(np.mean(losses))


def measure_degradation(pool: FieldPool, config: SuperResolutionConfig, batches: int = 40) -> float:
    """Root mean square, in model units, of interpolated noise-free frames less the truth: ``degradation_sigma``."""
    squares = []
    for index in range(batches):
        rng = np.random.default_rng((config.seed, index))
        fields, low_high = pool.crops(config.batch, config.patch_px, rng)
        draw = Draw(torch.Generator().manual_seed(index), len(fields))
        photons, levels = illuminate(fields, low_high, draw, CameraRanges())
        fine, coarse = form_images(photons, draw, config.optics())
        front_end = FrontEnd.of(photograph(coarse, levels, draw, CameraRanges()), draw, CameraRanges())
        error = upsample2(front_end.to_model(coarse)) - front_end.to_model(fine)
        squares.append(float(functional.mse_loss(error, torch.zeros_like(error))))
    return float(np.sqrt(np.mean(squares)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, required=True, help="optimiser steps")
    parser.add_argument("--data", type=Path, help="folder that holds clean/; without it simulated fields and samples")
    parser.add_argument("-o", "--output", type=Path, required=True, help="run folder; an interrupted run resumes there")
    parser.add_argument("--from", dest="start_from", help="run, weights or bundle to start from, also a denoiser's")
    parser.add_argument("--learning-rate", type=float, default=SuperResolutionConfig.learning_rate)
    parser.add_argument("--batch", type=int, default=SuperResolutionConfig.batch)
    parser.add_argument("--seed", type=int, default=SuperResolutionConfig.seed)
    parser.add_argument("--validate-every", type=int, default=SuperResolutionConfig.validate_every)
    parser.add_argument(
        "--measured-share", type=float, default=SuperResolutionConfig.measured_share,
        help="share of samples at t = 1: more favours K = 1, less favours K = 2 to 4",
    )  # fmt: skip
    for name, meaning in (("psf", "the wider point-spread function"), ("truth", "the band limit of the truth")):
        parser.add_argument(
            f"--{name}-sigma", type=float, nargs=2, metavar=("LOW", "HIGH"),
            default=getattr(OpticsRanges, f"{name}_sigma_px"), help=f"Gaussian sigma of {meaning}, fine pixels",
        )  # fmt: skip
    arguments = parser.parse_args()
    config = SuperResolutionConfig(
        steps=arguments.steps, learning_rate=arguments.learning_rate, batch=arguments.batch, seed=arguments.seed,
        validate_every=arguments.validate_every, measured_share=arguments.measured_share,
        psf_sigma_px=tuple(arguments.psf_sigma), truth_sigma_px=tuple(arguments.truth_sigma),
    )  # fmt: skip
    print(f"wrote {train(config, arguments.data, arguments.output, start_from=arguments.start_from)}")


if __name__ == "__main__":
    main()
