"""The denoiser: a small convolutional U-Net on the pixel-unshuffled grid, conditioned on a sigma map.

Made for both targets of the runtime (CPU and TensorRT): full 3x3 convolutions, ReLU, skips by addition, no
normalisation, no attention, widths in multiples of 16. It returns the EDM residual ``F``; the preconditioning
``x0 = c_skip x + c_out F`` stays outside, in float32, so that quantisation error scales with sigma.

Source: preconditioning, Karras et al. 2022 (EDM), arXiv:2206.00364.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice, pairwise
from typing import Any

import torch
from torch import Tensor, nn

INPUT_PLANES = 4  # c_in x, c_noise = log(sigma)/4, lag-1 noise correlation along y, along x


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The shape of a denoiser.

    Parameters
    ----------
    widths : channels of the residual stream per level, finest first; a level halves the grid
    blocks : residual blocks per level and side; the coarsest level has twice as many
    hidden : channels inside every residual block, in the order of ``down_blocks``, ``middle``, ``up_blocks``; None
        makes each as wide as its stream. Pruning sets them one by one
    unshuffle : pixel-unshuffle factor of the stem
    planes : input planes; a fifth one is the detail knob
    sigma_data : standard deviation of clean frames in model units (EDM)
    """

    widths: tuple[int, ...]
    blocks: int = 1
    hidden: tuple[int, ...] | None = None
    unshuffle: int = 2
    planes: int = INPUT_PLANES
    sigma_data: float = 0.25

    def __post_init__(self) -> None:
        if not self.widths or self.blocks < 1 or self.unshuffle < 1 or self.planes < 1:
            raise ValueError(
                f"widths {self.widths}, blocks {self.blocks}, unshuffle {self.unshuffle}, planes {self.planes}: each "
                "needs at least 1"
            )
        if self.hidden is not None and len(self.hidden) != self.block_count:
            raise ValueError(f"hidden has {len(self.hidden)} numbers; expected {self.block_count}, one a block")
        for name, channels in (("widths", self.widths), ("hidden", self.hidden or ())):
            if any(c % 8 or c <= 0 for c in channels):
                raise ValueError(f"{name} are {channels}; expected positive multiples of 8")

    @property
    def block_count(self) -> int:
        return 2 * self.blocks * len(self.widths)

    @property
    def block_widths(self) -> tuple[tuple[int, int], ...]:
        """(stream, hidden) channels of every residual block, in the order of ``down_blocks, middle, up_blocks``."""
        *sides, coarsest = self.widths
        streams = [w for w in sides for _ in range(self.blocks)]
        streams = [*streams, *[coarsest] * (2 * self.blocks), *streams]
        return tuple(zip(streams, self.hidden or streams, strict=True))

    @property
    def multiple(self) -> int:
        """Height and width of an input must be multiples of this."""
        return self.unshuffle * 2 ** (len(self.widths) - 1)

    def as_dict(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> NetworkConfig:
        """The inverse of `as_dict`, also after a way through JSON."""
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})


TIERS: dict[str, NetworkConfig] = {
    "teacher": NetworkConfig(widths=(32, 64, 64, 64), blocks=2),
    "base": NetworkConfig(widths=(32, 64, 64, 64)),
    "live": NetworkConfig(widths=(16, 16, 32, 32)),
}


class ResidualBlock(nn.Module):
    """``x + conv(relu(conv(relu(x))))``."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, hidden, 3, padding=1)
        self.conv2 = nn.Conv2d(hidden, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(torch.relu(self.conv1(torch.relu(x))))


class Denoiser(nn.Module):
    """``F = network(planes)``: (N, planes, H, W) float32 in, (N, 1, H, W) float32 EDM residual out."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        widths, levels = config.widths, len(config.widths)
        cells = config.unshuffle**2
        blocks = [ResidualBlock(stream, hidden) for stream, hidden in config.block_widths]
        groups = [nn.Sequential(*group) for group in _grouped(blocks, config.blocks, levels)]
        self.unshuffle = nn.PixelUnshuffle(config.unshuffle)
        self.shuffle = nn.PixelShuffle(config.unshuffle)
        self.stem = nn.Conv2d(config.planes * cells, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(groups[: levels - 1])
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairwise(widths))
        self.middle = groups[levels - 1]
        self.ups = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairwise(widths))
        self.up_blocks = nn.ModuleList(groups[levels:])
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


def _grouped(blocks: list[ResidualBlock], per_side: int, levels: int) -> list[list[ResidualBlock]]:
    """Blocks of every level: downwards, the doubled middle, then the way up listed from the finest level."""
    sizes = [per_side] * (levels - 1) + [2 * per_side] + [per_side] * (levels - 1)
    ahead = iter(blocks)
    return [list(islice(ahead, size)) for size in sizes]


def config_of(state: Mapping[str, Tensor], *, sigma_data: float) -> NetworkConfig:
    """The shape of the network that a state dict belongs to, read off its weights.

    Parameters
    ----------
    state : names and shapes as `Denoiser.state_dict` gives them, whole

    Raises
    ------
    ValueError : not the weights of a `Denoiser`
    """
    try:
        unshuffle = math.isqrt(state["head.weight"].shape[0])
        levels = 1 + sum(name.startswith("downs.") and name.endswith(".weight") for name in state)
        widths = (state["stem.weight"].shape[0], *(state[f"downs.{i}.weight"].shape[0] for i in range(levels - 1)))
        middle = sum(name.startswith("middle.") and name.endswith("conv1.weight") for name in state)
        places = [f"{side}.{i}.{j}" for side in ("down_blocks",) for i in range(levels - 1) for j in range(middle // 2)]
        places += [f"middle.{j}" for j in range(middle)]
        places += [f"up_blocks.{i}.{j}" for i in range(levels - 1) for j in range(middle // 2)]
        hidden = tuple(state[f"{place}.conv1.weight"].shape[0] for place in places)
        planes = state["stem.weight"].shape[1] // unshuffle**2
    except KeyError as error:
        raise ValueError(
            f"no weight {error} among {len(state)}; expected the weights of a photonstep Denoiser"
        ) from None
    config = NetworkConfig(
        widths=widths, blocks=middle // 2, hidden=hidden, unshuffle=unshuffle, planes=planes, sigma_data=sigma_data
    )
    as_wide = tuple(stream for stream, _ in config.block_widths)
    return replace(config, hidden=None) if hidden == as_wide else config


def grow_into(larger: Denoiser, smaller: Denoiser) -> None:
    """Copy weights into a network with the same widths and as many residual blocks or more, and planes likewise.

    The larger network then computes what the smaller one did: added blocks end in zeros, added planes have no weight.

    Raises
    ------
    ValueError : other widths, or fewer blocks
    """
    state = {name: value.clone() for name, value in larger.state_dict().items()}
    for name, value in smaller.state_dict().items():
        if name == "stem.weight" and name in state and state[name].shape[1] > value.shape[1]:
            state[name].zero_()
            state[name][:, : value.shape[1]] = value  # pixel-unshuffle keeps a plane's cells together
        elif name not in state or state[name].shape != value.shape:
            raise ValueError(
                f"{smaller.config} does not fit into {larger.config}: {name} differs; give it the same widths"
            )
        else:
            state[name] = value
    larger.load_state_dict(state)


def parameter_count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def kmac_per_px(config: NetworkConfig) -> float:
    """Thousand multiply-accumulates per input pixel of one evaluation."""
    widths, cells = config.widths, config.unshuffle**2
    share = [0.25**level for level in range(len(widths))]
    of_block = [level for level in range(len(widths) - 1) for _ in range(config.blocks)]
    of_block = [*of_block, *[len(widths) - 1] * (2 * config.blocks), *of_block]
    total = 9.0 * config.planes * cells * widths[0] + 9.0 * widths[0] * cells
    for level, (stream, hidden) in zip(of_block, config.block_widths, strict=True):
        total += share[level] * 2 * 9.0 * stream * hidden
    for level in range(1, len(widths)):
        total += share[level] * (4.0 + 1.0) * widths[level - 1] * widths[level]  # 2x2 strided down, 1x1 up
    return total / cells / 1000.0


def receptive_radius_px(config: NetworkConfig) -> int:
    """Input pixels that an output pixel can see to each side: the halo that a tile needs."""
    radius = 0.0
    for level in range(len(config.widths)):
        cell = config.unshuffle * 2**level
        convolutions = 4 * config.blocks + (2 if level == 0 else 0)
        radius += convolutions * cell
        if level:
            radius += cell  # the strided convolution and the nearest upsampling reach to their cell's far edge
    return int(radius + config.unshuffle)
