"""Simulated cameras: clean fields in, noisy frames in the model's coordinates out, a batch at a time.

The order is that of a real camera: photons, shot and readout noise, whatever correlates neighbouring pixels, clipping
and rounding, then a photonstep front end whose camera numbers are slightly wrong. The network so learns to live with
calibration errors, readout outliers, row noise and noise that is not white.

Source: sCMOS noise, Huang et al. 2013, Nat. Methods 10:653; stabilisation, Makitalo & Foi 2013.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

KERNEL_PX = 9


@dataclass(frozen=True, kw_only=True)
class CameraRanges:
    """What the simulated cameras do, and how often.

    ``measured_share`` of the samples stays at the camera's own noise level; the others lie on the way to zero.
    """

    peak_photons: tuple[float, float] = (2.0, 2000.0)
    dark_photons: tuple[float, float] = (0.05, 10.0)
    readout_noise_e: tuple[float, float] = (0.3, 30.0)
    correlated_share: float = 0.4
    row_noise_share: float = 0.08
    hot_readout_share: float = 0.15
    clipped_share: float = 0.2
    quantised_share: float = 0.3
    gain_error: float = 0.07
    sigma_error: float = 0.08
    minimum_range_z: float = 4.0
    measured_share: float = 0.5


@dataclass(frozen=True)
class Batch:
    """One training batch in model units; all (N, 1, H, W) float32 but the correlation, (N, 2): lag-1 along (y, x)."""

    x: Tensor
    x0: Tensor
    sigma: Tensor
    noise_correlation: Tensor


def observe(fields: Tensor, low_high: Tensor, generator: torch.Generator, ranges: CameraRanges) -> Batch:
    """Photograph clean fields with random cameras and stabilise the result.

    Parameters
    ----------
    fields : (N, H, W) float32, relative brightness, about 0..1
    low_high : (N, 2) float32, low and high percentile of the *whole* field a patch was cut from: the normalisation
        at run time sees a frame, not a patch

    Returns
    -------
    Batch
    """
    draw = Draw(generator, fields.shape[0])
    photons, levels = illuminate(fields, low_high, draw, ranges)
    exposure = photograph(photons, levels, draw, ranges)
    front_end = FrontEnd.of(exposure, draw, ranges)
    u, u0 = front_end.to_model(exposure.electrons), front_end.to_model(exposure.photons)
    return _along_the_trajectory(u, u0, front_end.sigma, front_end.noise_correlation, draw, ranges)


@dataclass(frozen=True)
class Exposure:
    """Fields as a camera saw them: photoelectrons (N, H, W), what produced them, (N, 1) and (N, 2) numbers."""

    electrons: Tensor
    photons: Tensor
    photon_levels: Tensor
    readout_noise_e: Tensor
    noise_correlation: Tensor


@dataclass(frozen=True)
class FrontEnd:
    """A runtime that looks at exposures with slightly wrong camera numbers: (N, 1) numbers, the correlation (N, 2)."""

    gain_error: Tensor
    offset_error_e: Tensor
    readout_noise_e: Tensor
    centre_z: Tensor
    span_z: Tensor
    noise_correlation: Tensor

    @classmethod
    def of(cls, exposure: Exposure, draw: Draw, ranges: CameraRanges) -> FrontEnd:
        noise = torch.randn(draw.count, 2, generator=draw.generator)
        correlation = (exposure.noise_correlation + 0.04 * noise).clamp(-0.1, 0.95)
        gain_error = torch.exp(ranges.gain_error * draw.normal()).clamp(0.8, 1.25)
        readout_used = exposure.readout_noise_e * torch.exp(0.1 * draw.normal())
        offset_error = 0.05 * (1 + exposure.readout_noise_e) * draw.normal()
        z_levels = _stabilise(exposure.photon_levels, gain_error, offset_error, readout_used)
        span = (z_levels[:, 1:] - z_levels[:, :1] + 0.6).clamp_min(ranges.minimum_range_z)
        span = span * torch.exp(0.15 * draw.normal())
        centre = z_levels.mean(1, keepdim=True) + 0.08 * span * draw.normal()
        return cls(gain_error, offset_error, readout_used, centre, span, correlation)

    @property
    def sigma(self) -> Tensor:
        """Noise level in model units, (N, 1)."""
        return 1.0 / self.span_z

    def to_model(self, electrons: Tensor) -> Tensor:
        """(N, H, W) photoelectrons to model units."""
        z = _stabilise(electrons.flatten(1), self.gain_error, self.offset_error_e, self.readout_noise_e)
        return ((z - self.centre_z) / self.span_z).view_as(electrons)


def _stabilise(electrons: Tensor, gain_error: Tensor, offset_error: Tensor, readout: Tensor) -> Tensor:
    return 2.0 * ((electrons + offset_error) * gain_error + 0.375 + readout**2).clamp_min(0.0).sqrt()


def expose(fields: Tensor, generator: torch.Generator, ranges: CameraRanges) -> Exposure:
    """Photograph clean fields with random cameras, without stabilising: (N, H, W) brightness in."""
    low_high = torch.stack([fields.flatten(1).amin(1), fields.flatten(1).amax(1)], 1)
    draw = Draw(generator, fields.shape[0])
    return photograph(*illuminate(fields, low_high, draw, ranges), draw, ranges)


def illuminate(fields: Tensor, low_high: Tensor, draw: Draw, ranges: CameraRanges) -> tuple[Tensor, Tensor]:
    """Brightness (N, H, W) and its (N, 2) levels as photoelectrons per pixel, under random light and background."""
    peak = torch.where(draw.uniform() < 0.7, draw.log_uniform(4.0, 300.0), draw.log_uniform(*ranges.peak_photons))
    background = peak * draw.log_uniform(0.003, 0.5) * (draw.uniform() > 0.2) + draw.log_uniform(*ranges.dark_photons)
    gamma = draw.range(0.7, 1.5)
    brightness = torch.cat([fields.flatten(1), low_high], 1).clamp_min(0.0)
    photons = background + peak * brightness**gamma
    return photons[:, :-2].view_as(fields), photons[:, -2:]


def photograph(photons: Tensor, levels: Tensor, draw: Draw, ranges: CameraRanges) -> Exposure:
    """What random cameras record of expected photoelectrons, (N, H, W)."""
    readout = torch.where(draw.uniform() < 0.7, draw.range(0.3, 3.0), draw.log_uniform(*ranges.readout_noise_e))
    noise, correlation = _noise(photons, readout, draw, ranges)
    return Exposure(_digitise(photons + noise, draw, ranges), photons, levels, readout, correlation)


def _along_the_trajectory(
    u: Tensor, u0: Tensor, sigma: Tensor, correlation: Tensor, draw: Draw, ranges: CameraRanges
) -> Batch:
    """A share of the samples stays at the measured level; the others lie on the way to zero, some with a sigma map."""
    share = torch.where(draw.uniform() < ranges.measured_share, torch.ones(draw.count, 1), draw.log_uniform(0.08, 1.0))
    share = share[:, :, None, None]
    relief = functional.interpolate(draw.field(6, 6), u.shape[-2:], mode="bilinear", align_corners=False)
    relief = torch.where((draw.uniform() < 0.12)[:, :, None, None], 0.3 + 0.7 * relief, torch.ones(1))
    factor = share * relief
    x0 = u0[:, None]
    x = x0 + factor * (u[:, None] - x0)
    belief = sigma[:, :, None, None] * torch.exp(ranges.sigma_error * draw.normal())[:, :, None, None] * factor
    return Batch(x=x, x0=x0, sigma=belief.expand_as(x), noise_correlation=correlation)


def _noise(photons: Tensor, readout: Tensor, draw: Draw, ranges: CameraRanges) -> tuple[Tensor, Tensor]:
    """Shot and readout noise, electrons, with its lag-1 correlation."""
    readout_map = readout[:, :, None].expand_as(photons)
    hot = (draw.uniform() < ranges.hot_readout_share)[:, :, None] & (draw.pixels(photons) < 0.02)
    readout_map = torch.where(hot, readout_map * 4.0, readout_map)
    noise = torch.poisson(photons, draw.generator) - photons + readout_map * draw.gauss(photons)
    kernel, correlation = correlation_kernels(draw, ranges.correlated_share)
    # a kernel of unit energy: the marginal variance stays that of the camera
    noise = functional.conv2d(noise[None], kernel[:, None], padding="same", groups=draw.count)[0]
    rows = draw.range(0.05, 0.5) * (draw.uniform() < ranges.row_noise_share) * noise.flatten(1).std(1, keepdim=True)
    noise = noise + rows[:, :, None] * torch.randn(draw.count, photons.shape[1], 1, generator=draw.generator)
    return noise, correlation


def correlation_kernels(draw: Draw, correlated_share: float) -> tuple[Tensor, Tensor]:
    """Separable kernels of unit energy: blur, linear interpolation, or a one-sided detector response.

    Returns
    -------
    (N, 9, 9) float32 kernels and (N, 2) float32 lag-1 autocorrelation along (y, x) of the white noise they filter
    """
    reach = KERNEL_PX // 2
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float32)
    isotropic = draw.uniform() < 0.7
    kind = draw.uniform()
    axes = []
    blur_sigma, shift, decay = draw.range(0.3, 1.3), draw.range(0.0, 0.5), draw.range(0.1, 0.7)
    for axis in range(2):
        if axis == 1:
            other_sigma, other_shift = draw.range(0.15, 1.2), draw.range(0.0, 0.5)
            blur_sigma = torch.where(isotropic, blur_sigma, other_sigma)
            shift = torch.where(isotropic, shift, other_shift)
        gaussian = torch.exp(-0.5 * (offsets / blur_sigma) ** 2)
        linear = (1 - (offsets + shift).abs()).clamp_min(0)
        one_sided = torch.where(offsets >= 0, decay ** offsets.clamp_min(0), torch.zeros(1))
        detector = one_sided if axis == 1 else (offsets == 0).float().expand_as(gaussian)
        axes.append(torch.where(kind < 0.6, gaussian, torch.where(kind < 0.8, linear, detector)))
    white = draw.uniform() >= correlated_share
    axes = [torch.where(white, (offsets == 0).float(), a) for a in axes]
    axes = [a / a.square().sum(1, keepdim=True).sqrt() for a in axes]
    lag_1 = torch.stack([(a[:, 1:] * a[:, :-1]).sum(1) for a in axes], 1)
    return axes[0][:, :, None] * axes[1][:, None, :], lag_1


def _digitise(electrons: Tensor, draw: Draw, ranges: CameraRanges) -> Tensor:
    """Clip a small share of pixels at either end and round to coarse counts, as 8-bit files do."""
    flat = electrons.flatten(1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    clipped = draw.uniform() < ranges.clipped_share
    top = torch.where(clipped, low + (high - low) * draw.range(0.6, 1.0), high)
    mean, std = flat.mean(1, keepdim=True), flat.std(1, keepdim=True)
    bottom = torch.where(clipped, torch.minimum(mean - draw.range(0.8, 3.0) * std, top), low)
    flat = torch.minimum(torch.maximum(flat, bottom), torch.maximum(top, bottom))
    step = torch.where(draw.uniform() < ranges.quantised_share, (high - low) / 255.0, torch.zeros(1))
    rounded = torch.round(flat / step.clamp_min(1e-6)) * step
    return torch.where(step > 0, rounded, flat).view_as(electrons)


class Draw:
    """Per-sample random numbers, (N, 1) unless said otherwise, all from one generator."""

    def __init__(self, generator: torch.Generator, count: int) -> None:
        self.generator = generator
        self.count = count

    def uniform(self) -> Tensor:
        return torch.rand(self.count, 1, generator=self.generator)

    def normal(self) -> Tensor:
        return torch.randn(self.count, 1, generator=self.generator)

    def range(self, low: float, high: float) -> Tensor:
        return low + (high - low) * self.uniform()

    def log_uniform(self, low: float, high: float) -> Tensor:
        return low * (high / low) ** self.uniform()

    def pixels(self, like: Tensor) -> Tensor:
        return torch.rand(like.shape, generator=self.generator)

    def gauss(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator)

    def field(self, height: int, width: int) -> Tensor:
        return torch.rand(self.count, 1, height, width, generator=self.generator)
