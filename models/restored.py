"""Training pairs out of noisy frames alone: their restorations, photographed again by the camera that took them.

A network that restores the frames tolerably already (a shipped bundle) makes the clean side; the noise comes from the
frame's own camera, its strength corrected by what the restoration left (`models/guide.py`). Beside the frame itself
its half-size copy is restored: binning four pixels halves the relative noise, so its structures come out sharper, and
at half size they look like fine ones. What is learnt is the sample's look at the camera's own noise. It cannot teach
what no restoration shows, and it is not biased by an error in the noise as Recorrupted-to-Recorrupted is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..kernels import ops, reference
from ..runtime.camera import Camera
from ..runtime.errors import CameraError
from ..runtime.normalise import ModelRange, RangeTracker
from .guide import NetworkGuide, restore_frame
from .recorrupt import Image, filtered

WHITE_BELOW: Final = 0.1  # lag-1 correlation under which pixels are binned as independent ones
LEAST_HALF_SIDE_PX: Final = 64


@dataclass(frozen=True, eq=False)
class RestoredFrame:
    """A restored frame and its half-size copy as the camera would see them: (H, W) float32 photoelectrons >= 0."""

    photons: tuple[Image, ...]
    ranges: tuple[ModelRange, ...]
    readout_noise_e: float
    correlation: tuple[float, float]
    variance_factor: float

    @property
    def nbytes(self) -> int:
        return sum(p.nbytes for p in self.photons)


def restored_frame(
    frame: NDArray[Any], camera: Camera, guide: NetworkGuide, tracker: Callable[[], RangeTracker]
) -> RestoredFrame:
    """Restore a raw frame at full and half size.

    Parameters
    ----------
    frame : (H, W) uint8, uint16 or float32, ADU
    tracker : makes a fresh range tracker
    """
    clean, factor = guide(frame, camera)
    readout = float(np.sqrt(np.mean(np.square(camera.readout_noise_e))))
    sizes = [np.maximum(clean, 0)]
    if min(frame.shape) >= 2 * LEAST_HALF_SIDE_PX:
        half = _half_size(frame, camera, guide)
        sizes += [half] if half is not None else []
    rng = np.random.default_rng(0)
    ranges = []
    for photons in sizes:
        electrons = photograph(photons, readout, camera.noise_correlation, factor, rng)
        ranges.append(tracker().update(stabilise(electrons, readout)))
    return RestoredFrame(tuple(sizes), tuple(ranges), readout, camera.noise_correlation, factor)


def photograph(
    photons: Image, readout_noise_e: float, correlation: tuple[float, float], factor: float, rng: np.random.Generator
) -> Image:
    """Photons with shot and readout noise, correlated as the camera does it; (H, W) float32 photoelectrons."""
    noise = rng.poisson(photons) - photons + readout_noise_e * rng.standard_normal(photons.shape, dtype=np.float32)
    noisy = photons + np.float32(np.sqrt(factor)) * filtered(noise.astype(np.float32), correlation)
    return np.asarray(noisy, np.float32)


def stabilise(electrons: Image, readout_noise_e: float) -> Image:
    """Photoelectrons to z, see `kernels.ops.stabilise`."""
    constant = np.float32(reference.ANSCOMBE_OFFSET + readout_noise_e**2)
    return 2 * np.sqrt(np.maximum(electrons + constant, 0))


def _half_size(frame: NDArray[Any], camera: Camera, guide: NetworkGuide) -> Image | None:
    """The binned frame restored, in photoelectrons of a full-size pixel; None where its camera cannot be told."""
    binned = ops.block_means(np.asarray(frame, np.float32), 2)
    if camera.map_shape is None and max(np.abs(camera.noise_correlation)) < WHITE_BELOW:
        binning = replace(
            camera,
            gain_e_per_adu=camera.gain_e_per_adu * 4,  # the mean of four pixels stands for their sum
            readout_noise_e=camera.readout_noise_e * 2,
            gain_interval_e_per_adu=None,
            noise_correlation=(0.0, 0.0),
        )
    else:
        try:
            binning = Camera.estimate(binned)
        except CameraError:
            return None
    counts = restore_frame(guide.network, binned, binning) / np.float32(binning.gain_e_per_adu) + binning.offset_adu
    offset, gain = float(np.median(camera.offset_adu)), float(np.median(camera.gain_e_per_adu))
    return np.maximum((counts - offset) * gain, 0).astype(np.float32)
