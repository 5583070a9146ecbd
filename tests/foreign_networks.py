"""Tiny networks with the calling conventions of other projects, random weights, and their published sampling loops.

The loops are written from the papers' equations, in their own variables, so that they share nothing with the samplers
that they check.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn


def seeded(network: nn.Module, seed: int = 0) -> nn.Module:
    """Weights that all matter, those that training starts at zero too."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            spread = max(parameter[0].numel(), 8) ** -0.5 if parameter.ndim > 1 else 0.1
            parameter.copy_(spread * torch.randn(parameter.shape, generator=draw))
    return network.eval()


def diffusers_unet(seed: int = 0) -> nn.Module:
    """A UNet2DModel with attention on its coarse level; sides must be even."""
    from diffusers import UNet2DModel

    unet = UNet2DModel(
        sample_size=32, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 16),
        norm_num_groups=4, attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return seeded(unet, seed)


class Told(nn.Module):
    """Convolutions whose features are shifted by an embedding of one number, as SR3, I2SB and ResShift do."""

    def __init__(self, channels: int, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.first = nn.Conv2d(channels, 8, 3, padding=1)
        self.embed = nn.Linear(4, 8)
        self.down = nn.Conv2d(8, 8, 2, stride=2)
        self.middle = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, image: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        angle = told.to(image.dtype)[:, None] * self.scale * torch.tensor([1.0, 3.0], dtype=image.dtype)
        shift = self.embed(torch.cat([angle.sin(), angle.cos()], dim=1))[:, :, None, None]
        fine = nn.functional.silu(self.first(image) + shift)
        coarse = nn.functional.silu(self.middle(self.down(fine)))
        return self.last(fine + nn.functional.interpolate(coarse, scale_factor=2.0))


class WithCondition(nn.Module):
    """ResShift's signature: ``net(x, timesteps, lq=frame)``."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Told(2, scale=0.3)

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, lq: torch.Tensor) -> torch.Tensor:
        return self.net(torch.cat([x, lq], dim=1), timesteps)


def sr3_loop(network, frame, alphas_cumprod, start, noises, *, root=True, clip=None):
    """SR3's refinement of pure noise, every timestep: arXiv:2104.07636, algorithm 2 and equations 9 to 11.

    ``y`` is the paper's state; gamma is the running product of alpha. Noise of the last step is not drawn.
    """
    gammas, y = [float(a) for a in alphas_cumprod], start
    for t in reversed(range(len(gammas))):
        gamma, before = gammas[t], gammas[t - 1] if t else 1.0
        alpha = gamma / before
        told = torch.full((1,), gamma**0.5 if root else gamma, dtype=y.dtype)
        eps = network(torch.cat([frame, y], dim=1), told)
        y0 = (y - (1 - gamma) ** 0.5 * eps) / gamma**0.5
        if clip is not None:
            y0 = y0.clamp(*clip)
        mean = before**0.5 * (1 - alpha) / (1 - gamma) * y0 + alpha**0.5 * (1 - before) / (1 - gamma) * y
        y = mean if t == 0 else mean + ((1 - before) * (1 - alpha) / (1 - gamma)) ** 0.5 * next(noises)
    return y


def i2sb_loop(network, frame, betas, told, steps, noises, *, ode):
    """I2SB from the degraded image on an even grid of timesteps down to the first: arXiv:2302.05872, algorithm 2."""
    variance = np.cumsum(np.asarray(betas, np.float64))
    grid = [round(i * (len(betas) - 1) / steps) for i in range(steps + 1)]
    x = frame
    for now, then in zip(grid[:0:-1], grid[-2::-1], strict=True):
        eps = network(x, torch.full((1,), float(told[now]), dtype=x.dtype))
        x0 = x - variance[now] ** 0.5 * eps
        passed = variance[now] - variance[then]
        x = (passed * x0 + variance[then] * x) / (passed + variance[then])
        if not ode and then > 0:
            x = x + (variance[then] * passed / (passed + variance[then])) ** 0.5 * next(noises)
    return x


def resshift_loop(network, frame, etas, kappa, noises):
    """ResShift, every timestep: arXiv:2307.12348, equations 7 and 8; the network returns x0."""
    x = frame + kappa * etas[-1] ** 0.5 * next(noises)
    for t in reversed(range(len(etas))):
        eta, before = etas[t], etas[t - 1] if t else 0.0
        x0 = network(x, torch.tensor([t]), lq=frame)
        x = before / eta * x + (eta - before) / eta * x0
        if t:
            x = x + kappa * (before / eta * (eta - before)) ** 0.5 * next(noises)
    return x
