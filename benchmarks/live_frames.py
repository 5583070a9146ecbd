"""Frames for the live benchmark: a simulated camera looks at a real scene, the ground truth of the demo."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

import photonstep as ps
from photonstep.demo import DEMO_FRAME
from photonstep.runtime.images import open_image

CAMERA = ps.Camera(offset_adu=100, gain_e_per_adu=0.46, readout_noise_e=1.6)
PEAK_PHOTONS = 40.0


def simulated_frames(count: int, side_px: int, *, drift_px: int = 0, seed: int = 0) -> list[NDArray[np.uint16]]:
    """(side, side) uint16 frames of `CAMERA`, each with noise of its own.

    Parameters
    ----------
    drift_px : how far the scene moves along x from frame to frame
    """
    with open_image(DEMO_FRAME) as reader:
        scene = [plane for _, plane in reader.planes()][1]
    repeats = [-(-side_px // n) for n in scene.shape]
    photons = np.tile(scene, repeats)[:side_px, :side_px] * (PEAK_PHOTONS / 255.0) + 0.5
    rng = np.random.default_rng(seed)
    frames = []
    for number in range(count):
        moved = np.roll(photons, number * drift_px, axis=1)
        electrons = rng.poisson(moved) + rng.normal(0, CAMERA.readout_noise_e, moved.shape)
        counts = np.rint(electrons / CAMERA.gain_e_per_adu + CAMERA.offset_adu)
        frames.append(np.clip(counts, 0, 65535).astype(np.uint16))
    return frames
