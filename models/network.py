"""The denoiser: a small convolutional U-Net on the pixel-unshuffled grid, conditioned on a sigma map.

Made for both targets of the runtime (CPU and TensorRT): full 3x3 convolutions, ReLU, skips by addition, no
normalisation, no attention, widths in multiples of 16. It returns the EDM residual ``F``; the preconditioning
``x0 = c_skip x + c_out F`` stays outside, in float32, so that quantisation error scales with sigma.

Source: preconditioning, Karras et al. 2022 (EDM), arXiv:2206.00364.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

INPUT_PLANES = 4  # c_in x, c_noise = log(sigma)/4, lag-1 noise correlation along y, along x


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The shape of a denoiser.

    Parameters
    ----------
    width : channels at the finest level
    mults : channel multiplier per level, finest first; a level halves the grid
    blocks : residual blocks per level and side
    unshuffle : pixel-unshuffle factor of the stem
    sigma_data : standard deviation of clean frames in model units (EDM)
    """

    width: int
    mults: tuple[int, ...] = (1, 2, 2)
    blocks: int = 1
    unshuffle: int = 2
    sigma_data: float = 0.25

    def __post_init__(self) -> None:
        if self.width % 16 or self.width <= 0:
            raise ValueError(f"width is {self.width}; expected a positive multiple of 16")
        if len(self.mults) < 1 or self.blocks < 1 or self.unshuffle < 1:
            raise ValueError(
                f"mults {self.mults}, blocks {self.blocks}, unshuffle {self.unshuffle}: each needs at least 1"
            )

    @property
    def multiple(self) -> int:
        """Height and width of an input must be multiples of this."""
        return self.unshuffle * 2 ** (len(self.mults) - 1)

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


TIERS: dict[str, NetworkConfig] = {
    "base": NetworkConfig(width=32, mults=(1, 2, 2, 2)),
    "live": NetworkConfig(width=16, mults=(1, 1, 2, 2)),
}


class ResidualBlock(nn.Module):
    """``x + conv(relu(conv(relu(x))))``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(torch.relu(self.conv1(torch.relu(x))))


class Denoiser(nn.Module):
    """``F = network(planes)``: (N, 4, H, W) float32 planes in, (N, 1, H, W) float32 EDM residual out."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.width * m for m in config.mults]
        cells = config.unshuffle**2
        self.unshuffle = nn.PixelUnshuffle(config.unshuffle)
        self.shuffle = nn.PixelShuffle(config.unshuffle)
        self.stem = nn.Conv2d(INPUT_PLANES * cells, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(_blocks(w, config.blocks) for w in widths[:-1])
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairwise(widths))
        self.middle = _blocks(widths[-1], 2 * config.blocks)
        self.ups = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairwise(widths))
        self.up_blocks = nn.ModuleList(_blocks(w, config.blocks) for w in widths[:-1])
        self.head = nn.Conv2d(widths[0], cells, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, planes: Tensor) -> Tensor:
        h = self.stem(self.unshuffle(planes))
        skips: list[Tensor] = []
        for blocks, down in zip(self.down_blocks, self.downs, strict=True):
            h = blocks(h)
            skips.append(h)
            h = down(h)
        h = self.middle(h)
        for index in reversed(range(len(self.ups))):
            h = nn.functional.interpolate(self.ups[index](h), scale_factor=2.0, mode="nearest") + skips[index]
            h = self.up_blocks[index](h)
        residual: Tensor = self.shuffle(self.head(torch.relu(h)))
        return residual


def _blocks(channels: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(channels) for _ in range(count)))


def parameter_count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def kmac_per_px(config: NetworkConfig) -> float:
    """Thousand multiply-accumulates per input pixel of one evaluation."""
    widths = [config.width * m for m in config.mults]
    cells = config.unshuffle**2
    total = 9.0 * INPUT_PLANES * cells * widths[0] + 9.0 * widths[0] * cells
    for level, width in enumerate(widths):
        share = 0.25**level
        total += share * 2 * config.blocks * 2 * 9.0 * width**2  # both sides, or the doubled middle
        if level:
            above = widths[level - 1]
            total += share * (4.0 + 1.0) * above * width  # 2x2 strided down, 1x1 up
    return total / cells / 1000.0


def receptive_radius_px(config: NetworkConfig) -> int:
    """Input pixels that an output pixel can see to each side: the halo that a tile needs."""
    radius = 0.0
    for level in range(len(config.mults)):
        cell = config.unshuffle * 2**level
        convolutions = 4 * config.blocks + (2 if level == 0 else 0)
        radius += convolutions * cell
        if level:
            radius += cell  # the strided convolution and the nearest upsampling reach to their cell's far edge
    return int(radius + config.unshuffle)
