"""Optics of a super-resolution pair, in torch: point-spread function, pixel integration, start on the fine grid.

A clean field on the fine grid is what a sharper microscope with half the pixel size would expect. The camera sees it
through a wider point-spread function, averaged over pixels that hold two by two fine ones. Brightness is per coarse
pixel throughout, so the mean of the four fine pixels is the coarse one, and nothing is shifted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..kernels.reference import UPSAMPLE_TAPS

SCALE = 2
KERNEL_REACH_PX = 10


@dataclass(frozen=True, kw_only=True)
class OpticsRanges:
    """What the simulated microscopes do; all widths are Gaussian sigmas in fine pixels.

    Parameters
    ----------
    psf_sigma_px : of the point-spread function's core, beyond what the fine field has itself
    skirt_share : of the light that goes into a skirt ``skirt_width`` times as wide, as the rings of an Airy pattern and
        light out of focus do
    truth_sigma_px : band limit of the fine field: a fine pixel resolves no more than a sharper microscope would. Wide,
        because a network that has only seen the sharpest truths sharpens every soft frame
    """

    psf_sigma_px: tuple[float, float] = (0.5, 2.0)
    skirt_share: tuple[float, float] = (0.0, 0.3)
    skirt_width: float = 2.0
    truth_sigma_px: tuple[float, float] = (0.3, 1.6)


def blur(images: Tensor, sigma_px: Tensor) -> Tensor:
    """Gaussian blur with mirrored borders.

    Parameters
    ----------
    images : (N, H, W) float32
    sigma_px : (N,) widths, pixels; 0 leaves an image as it is

    Returns
    -------
    (N, H, W) float32
    """
    reach = KERNEL_REACH_PX
    offsets = torch.arange(-reach, reach + 1, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma_px.clamp_min(1e-3)[:, None]) ** 2)
    kernel = kernel / kernel.sum(1, keepdim=True)
    padded = functional.pad(images[None], (reach, reach, reach, reach), mode="reflect")
    tall = functional.conv2d(padded, kernel[:, None, :, None], groups=len(images))
    return functional.conv2d(tall, kernel[:, None, None, :], groups=len(images))[0]


def through_the_microscope(images: Tensor, psf_sigma_px: Tensor, skirt_share: Tensor, skirt_width: float) -> Tensor:
    """Fine images (N, H, W) blurred by a core and a skirt; the kernel sums to one."""
    core, skirt = blur(images, psf_sigma_px), blur(images, skirt_width * psf_sigma_px)
    return torch.lerp(core, skirt, skirt_share[:, None, None])


def integrate(images: Tensor) -> Tensor:
    """Pixel integration: (N, H, W) fine to (N, H / 2, W / 2) coarse pixels, each the mean of its four."""
    return functional.avg_pool2d(images[None], SCALE)[0]


def upsample2(images: Tensor) -> Tensor:
    """(N, H, W) to (N, 2H, 2W) as `kernels.ops.upsample2`; a test holds the two together."""
    taps = torch.tensor(UPSAMPLE_TAPS, dtype=images.dtype)
    # five taps reach both of a pair: the lower one leaves out the last pixel, the upper one the first
    pair = torch.stack([functional.pad(taps, (0, 1)), functional.pad(taps.flip(0), (1, 0))])
    padded = functional.pad(images[:, None], (2, 2, 2, 2), mode="replicate")
    kernels = pair[:, None, :, None] * pair[None, :, None, :]
    fine = functional.conv2d(padded, kernels.reshape(4, 1, 5, 5))
    return functional.pixel_shuffle(fine, SCALE)[:, 0]
