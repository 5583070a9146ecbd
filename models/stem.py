"""The stem in two forms: a 3x3 convolution of unshuffled pixels, or one of the frame itself whose stride unshuffles.

They compute the same. Training uses the first, exported graphs the second: one node in place of a transposition that
costs a CPU as much as the convolution.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from .network import Denoiser

KERNEL = 3


def with_strided_stem(network: Denoiser) -> Denoiser:
    """A copy that reads the planes with stride ``unshuffle`` and a kernel three times as wide."""
    strided, cells = copy.deepcopy(network), network.config.unshuffle
    stem = nn.Conv2d(
        network.config.planes, network.stem.out_channels, KERNEL * cells, stride=cells, padding=cells,
    )  # fmt: skip
    stem.weight.data, stem.bias.data = strided_weight(network.stem.weight.data, cells), network.stem.bias.data  # type: ignore[union-attr]
    strided.stem, strided.unshuffle = stem, nn.Identity()  # type: ignore[assignment]
    return strided


def strided_weight(weight: Tensor, cells: int) -> Tensor:
    """(O, P cells**2, 3, 3) over `torch.nn.PixelUnshuffle`'s channels as (O, P, 3 cells, 3 cells) over pixels."""
    out, planes = weight.shape[0], weight.shape[1] // cells**2
    apart = weight.reshape(out, planes, cells, cells, KERNEL, KERNEL)
    return apart.permute(0, 1, 4, 2, 5, 3).reshape(out, planes, KERNEL * cells, KERNEL * cells).contiguous()


def unshuffled_weight(weight: Tensor) -> Tensor:
    """The inverse of `strided_weight`; a 3x3 weight comes back as it is."""
    out, planes, cells = weight.shape[0], weight.shape[1], weight.shape[2] // KERNEL
    apart = weight.reshape(out, planes, KERNEL, cells, KERNEL, cells)
    return apart.permute(0, 1, 3, 5, 2, 4).reshape(out, planes * cells**2, KERNEL, KERNEL).contiguous()
