"""Channels of a denoiser: which weights belong to one, how much the loss would miss it, and the network without it.

A channel of the residual stream runs through a whole level: every block of that level adds to it, the skip carries it
and the neighbouring levels read it, so it can only be taken from all of them at once. A hidden channel lives inside one
block. These two kinds are all there is; input and output planes stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..models.network import Denoiser, NetworkConfig


@dataclass(frozen=True, order=True)
class Axis:
    """Channels that are taken together: of the stream at a level, or hidden in one block."""

    kind: str  # "stream" or "hidden"
    index: int  # level, or block in the order of `NetworkConfig.block_widths`

    def __str__(self) -> str:
        return f"{self.kind} {self.index}"


@dataclass(frozen=True)
class Block:
    """Where a residual block's weights are, and the level of its stream."""

    prefix: str
    level: int


def blocks_of(config: NetworkConfig) -> tuple[Block, ...]:
    """Every residual block in the order of `NetworkConfig.block_widths`."""
    last = len(config.widths) - 1
    down = [Block(f"down_blocks.{level}.{j}", level) for level in range(last) for j in range(config.blocks)]
    middle = [Block(f"middle.{j}", last) for j in range(2 * config.blocks)]
    up = [Block(f"up_blocks.{level}.{j}", level) for level in range(last) for j in range(config.blocks)]
    return (*down, *middle, *up)


def axes_of(config: NetworkConfig) -> tuple[Axis, ...]:
    streams = [Axis("stream", level) for level in range(len(config.widths))]
    return (*streams, *(Axis("hidden", index) for index in range(config.block_count)))


def width_of(config: NetworkConfig, axis: Axis) -> int:
    return config.widths[axis.index] if axis.kind == "stream" else config.block_widths[axis.index][1]


def narrowed(config: NetworkConfig, axis: Axis, channels: int) -> NetworkConfig:
    """The configuration with ``channels`` fewer on one axis; hidden widths are spelt out."""
    hidden = [h for _, h in config.block_widths]
    if axis.kind == "hidden":
        hidden[axis.index] -= channels
        return replace(config, hidden=tuple(hidden))
    widths = list(config.widths)
    widths[axis.index] -= channels
    return replace(config, widths=tuple(widths), hidden=tuple(hidden))


def axes_of_weights(config: NetworkConfig) -> Iterator[tuple[str, Axis | None, Axis | None]]:
    """(name of a convolution, axis of its output channels, axis of its input channels); None is a fixed plane."""
    stream = [Axis("stream", level) for level in range(len(config.widths))]
    yield "stem", stream[0], None
    yield "head", None, stream[0]
    for level in range(len(config.widths) - 1):
        yield f"downs.{level}", stream[level + 1], stream[level]
        yield f"ups.{level}", stream[level], stream[level + 1]
    for index, block in enumerate(blocks_of(config)):
        yield f"{block.prefix}.conv1", Axis("hidden", index), stream[block.level]
        yield f"{block.prefix}.conv2", stream[block.level], Axis("hidden", index)


def without(network: Denoiser, axis: Axis, dropped: Tensor) -> Denoiser:
    """A new network that computes what ``network`` does with some channels held at zero.

    Parameters
    ----------
    dropped : (n,) int64, indices of channels on ``axis``; n leaves a multiple of 8
    """
    mask = torch.ones(width_of(network.config, axis), dtype=torch.bool)
    mask[dropped] = False
    kept = mask.nonzero()[:, 0]
    state = {name: value.detach() for name, value in network.state_dict().items()}
    for name, produced, read in axes_of_weights(network.config):
        if produced == axis:
            state[f"{name}.weight"], state[f"{name}.bias"] = state[f"{name}.weight"][kept], state[f"{name}.bias"][kept]
        if read == axis:
            state[f"{name}.weight"] = state[f"{name}.weight"][:, kept]
    smaller = Denoiser(narrowed(network.config, axis, int((~mask).sum())))
    smaller.load_state_dict(state)
    return smaller.eval()


def importance(
    network: Denoiser, loss: Callable[[Denoiser, int], Tensor], samples: Iterable[int]
) -> dict[Axis, Tensor]:
    """How much the loss is expected to rise without each channel: half the Fisher information of a gate on it.

    The gate's gradient on a batch is the sum of weight times gradient over the weights that produce the channel; its
    mean square over batches is the second-order term of the loss, since a trained network has no first-order one.

    Parameters
    ----------
    loss : of the network on sample ``index``; a few patches each, many samples

    Returns
    -------
    axis -> (channels,) float32

    Source: Theis et al. 2018, arXiv:1801.05787, eq. 7; Molchanov et al. 2019, arXiv:1906.10771.
    """
    network.requires_grad_(True).train()
    total = {axis: torch.zeros(width_of(network.config, axis)) for axis in axes_of(network.config)}
    count = 0
    for index in samples:
        network.zero_grad(set_to_none=True)
        loss(network, index).backward()  # type: ignore[no-untyped-call]
        for axis, gradient in _gate_gradients(network).items():
            total[axis] += 0.5 * gradient.square()
        count += 1
    network.zero_grad(set_to_none=True)
    network.eval()
    return {axis: value / max(count, 1) for axis, value in total.items()}


def _gate_gradients(network: Denoiser) -> dict[Axis, Tensor]:
    parameters = dict(network.named_parameters())
    gates: dict[Axis, Tensor] = {}
    for name, produced, _ in axes_of_weights(network.config):
        if produced is None:
            continue
        for part in (parameters[f"{name}.weight"], parameters[f"{name}.bias"]):
            if part.grad is None:
                continue
            share = (part.detach() * part.grad).flatten(1).sum(1) if part.ndim > 1 else part.detach() * part.grad
            gates[produced] = gates.get(produced, torch.zeros_like(share, device="cpu")) + share.float().cpu()
    return gates
