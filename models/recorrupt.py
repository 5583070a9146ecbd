"""Training pairs out of a single noisy frame: Recorrupted-to-Recorrupted, in photoelectrons.

A frame ``y`` has noise of known variance ``v = e + r^2`` and correlation. Noise ``n`` of the same variance and
correlation is drawn: ``y1 = y + a n`` is a frame of a weaker exposure, ``y2 = y - n / a`` has the same mean, and the
noises of the two are uncorrelated: a network that maps y1 onto y2 learns the clean frame. The original works on
Gaussian noise; here the sums are made in photoelectrons, because below a few photons the stabilised noise is neither
Gaussian nor of unit variance, while its variance in photoelectrons is exact.

``y1 / (1 + a^2)`` has the noise of a camera with that smaller gain and ``r / sqrt(1 + a^2)``: it goes the runtime's
way from there on. ``y2`` is too noisy to transform, so its target is the transform's tangent at a guide.

Sources: Pang et al. 2021, CVPR (Recorrupted-to-Recorrupted); Monroy et al. 2025, arXiv:2412.04648 (beyond Gaussian).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..kernels import reference
from ..runtime.camera import Camera
from ..runtime.normalise import ModelRange, RangeTracker

Image = NDArray[np.float32]
# a frame and its camera -> its clean photoelectrons as far as one can tell, (H, W) float32, and by what factor the
# variance of its noise differs from the camera's
Guide = Callable[[NDArray[Any], Camera], tuple[Image, float]]

ADDED = 1.0  # strength of the added noise in units of the frame's own
GUIDE_BLUR_PX = 2.0
LEAST_GUIDE_E = 0.02
WHITE_BELOW = 0.02  # lag-1 correlation that makes no difference


@dataclass(frozen=True, eq=False)
class BlindFrame:
    """A frame ready to be recorrupted: (H, W) float32 photoelectrons of the weaker exposure, and its place in range.

    ``electrons`` and ``guide`` are divided by ``1 + added**2``; ``readout_variance`` is that of the weaker camera.
    """

    electrons: Image
    guide: Image
    readout_variance: Image
    model_range: ModelRange
    correlation: tuple[float, float]
    variance_factor: float
    added: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.electrons.shape

    @property
    def sigma(self) -> float:
        return self.model_range.sigma

    @property
    def nbytes(self) -> int:
        return self.electrons.nbytes + self.guide.nbytes

    def map(self, cut: Callable[[Image], Image]) -> BlindFrame:
        """The same of a patch."""
        names = ("electrons", "guide", "readout_variance")
        return replace(self, **{name: cut(getattr(self, name)) for name in names})


def blind_frame(
    frame: NDArray[Any], camera: Camera, normalised: RangeTracker, *, added: float = ADDED, guide: Guide | None = None
) -> BlindFrame:
    """Photoelectrons, guide and range of a raw frame.

    Parameters
    ----------
    frame : (H, W) uint8, uint16 or float32, ADU
    normalised : a fresh tracker
    added : ``a``, the strength of the added noise in units of the frame's own
    guide : None smooths the frame
    """
    weaker = 1.0 + added**2
    weak = replace(
        camera,
        gain_e_per_adu=camera.gain_e_per_adu / weaker,
        readout_noise_e=camera.readout_noise_e / np.sqrt(weaker),
        gain_interval_e_per_adu=None,
    )
    electrons = np.asarray(
        (np.asarray(frame, np.float32) - weak.offset_adu) * np.asarray(weak.gain_e_per_adu), np.float32
    )
    if guide is None:
        seen, factor = ndimage.gaussian_filter(electrons, GUIDE_BLUR_PX), 1.0
    else:
        clean, factor = guide(frame, camera)
        seen = clean / np.float32(weaker)
    variance = np.broadcast_to(np.square(np.asarray(weak.readout_noise_e, np.float32)), electrons.shape)
    lowest = LEAST_GUIDE_E - float(reference.ANSCOMBE_OFFSET) - variance
    return BlindFrame(
        electrons=electrons,
        guide=np.maximum(seen, lowest).astype(np.float32),
        readout_variance=variance,
        model_range=normalised.update(weak.stabilise(frame)),
        correlation=camera.noise_correlation,
        variance_factor=factor,
        added=added,
    )


def recorrupt(seen: BlindFrame, noise: Image) -> tuple[Image, Image]:
    """Input and target in model units of one patch.

    Parameters
    ----------
    noise : (H, W) float32 of unit variance, correlated as the frame's noise is

    Returns
    -------
    x, x0 : (H, W) float32; the noise in x0 is large, and uncorrelated with that in x
    """
    constant = np.float32(reference.ANSCOMBE_OFFSET) + seen.readout_variance
    # of the weaker exposure in its own unit: the frame's part of its variance, 1 / (1 + a^2), times a^2 is what n adds
    share = np.float32(seen.variance_factor / (1 + seen.added**2))
    spread = np.sqrt(np.maximum(seen.guide + seen.readout_variance, 0) * share)
    weak = seen.electrons + np.float32(seen.added) * spread * noise
    other = seen.electrons - spread * noise / np.float32(seen.added)
    z = 2 * np.sqrt(np.maximum(weak + constant, 0))
    root = np.sqrt(seen.guide + constant)
    target_z = 2 * root + (other - seen.guide) / root
    return seen.model_range.to_model(z), seen.model_range.to_model(target_z)


def correlated_noise(shape: tuple[int, ...], correlation: tuple[float, float], rng: np.random.Generator) -> Image:
    """(H, W) float32 Gaussian noise of unit variance whose lag-1 correlation along (y, x) is the one given."""
    return filtered(rng.standard_normal(shape, dtype=np.float32), correlation)


def filtered(noise: Image, correlation: tuple[float, float]) -> Image:
    """White noise given this lag-1 correlation along (y, x); its variance stays."""
    for axis, lag_1 in enumerate(correlation):
        if abs(lag_1) > WHITE_BELOW:
            noise = ndimage.convolve1d(noise, _taps(round(lag_1, 3)), axis=axis, mode="wrap")
    return noise


@cache
def _taps(lag_1: float) -> Image:
    """Gaussian taps of unit energy that give noise this lag-1 correlation; signs alternate where it is negative."""
    offsets = np.arange(-8, 9)

    def taps(width: float) -> NDArray[np.float64]:
        gaussian = np.exp(-0.5 * (offsets / width) ** 2)
        return np.asarray(gaussian / np.sqrt(np.sum(gaussian**2)))

    widths = np.geomspace(0.15, 4.0, 400)
    reached = [float(np.sum(taps(w)[1:] * taps(w)[:-1])) for w in widths]
    found = taps(float(np.interp(abs(lag_1), reached, widths)))
    return np.asarray(found * (-1.0) ** offsets if lag_1 < 0 else found, np.float32)
