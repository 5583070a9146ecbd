"""PSNR, SSIM and the affine fit under their public name; `photonstep.runtime.metrics` holds them."""

from photonstep.runtime.metrics import fit_affine, psnr, ssim

__all__ = ["fit_affine", "psnr", "ssim"]
