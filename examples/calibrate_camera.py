"""Measure a camera by photon transfer: dark and flat stacks in, ``camera.json`` out.

    python examples/calibrate_camera.py

The stacks are simulated here, so that what is measured can be compared with what is true. With a real camera record
100 or more frames with the shutter closed, then 20 or more frames at each of a few even, constant light levels, all
with one exposure time, gain setting and region of interest. The stacks are also written as TIFF files; the command
line does the same with them:

    photonstep calibrate --dark dark.tif --flat flat_20e.tif --flat flat_100e.tif --flat flat_500e.tif -o camera.json
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

import photonstep as ps

SHAPE = (96, 128)
DARK_FRAMES, FLAT_FRAMES = 100, 20
FLAT_LEVELS_E = (20.0, 100.0, 500.0)


@dataclass(frozen=True, kw_only=True)
class SimulatedCamera:
    """An sCMOS camera: every pixel has its own offset and readout noise, some pixels much more of it."""

    offset_adu: NDArray[np.float64]
    readout_noise_e: NDArray[np.float64]
    gain_e_per_adu: float = 0.46

    @classmethod
    def draw(cls, rng: np.random.Generator) -> SimulatedCamera:
        noisy = np.where(rng.random(SHAPE) < 0.02, 4.0, 1.0)
        return cls(offset_adu=rng.normal(100, 1.5, SHAPE), readout_noise_e=noisy * rng.normal(1.6, 0.15, SHAPE))

    def record(self, rng: np.random.Generator, count: int, light_e: float) -> NDArray[np.uint16]:
        """(count, H, W) frames of an even light of ``light_e`` photoelectrons per pixel, ADU."""
        electrons = rng.poisson(light_e, (count, *SHAPE)) + rng.normal(0, 1, (count, *SHAPE)) * self.readout_noise_e
        counts = np.rint(electrons / self.gain_e_per_adu + self.offset_adu)
        return np.clip(counts, 0, 65535).astype(np.uint16)


def main() -> None:
    parser = argparse.ArgumentParser(description="calibrate a simulated camera")
    parser.add_argument("-o", "--output", type=Path, default=Path("camera.json"))
    arguments = parser.parse_args()
    rng = np.random.default_rng(2026)
    truth = SimulatedCamera.draw(rng)
    dark = truth.record(rng, DARK_FRAMES, 0.0)
    flats = [truth.record(rng, FLAT_FRAMES, level) for level in FLAT_LEVELS_E]

    camera = ps.Camera.calibrate(dark=dark, flats=flats)
    camera.save(arguments.output)

    folder = arguments.output.parent
    tifffile.imwrite(folder / "dark.tif", dark)
    for level, flat in zip(FLAT_LEVELS_E, flats, strict=True):
        tifffile.imwrite(folder / f"flat_{level:.0f}e.tif", flat)
    report(ps.Camera.load(arguments.output), truth)
    print(f"camera: {arguments.output}")


def report(camera: ps.Camera, truth: SimulatedCamera) -> None:
    """Measured beside true."""
    interval = camera.gain_interval_e_per_adu
    low, high = interval if interval else (float("nan"), float("nan"))
    print(f"gain: {camera.gain_e_per_adu:.4f} e-/ADU (95 %: {low:.4f} to {high:.4f}); true {truth.gain_e_per_adu}")
    for name, unit in (("offset_adu", "ADU"), ("readout_noise_e", "e-")):
        measured: Any = getattr(camera, name)
        true = getattr(truth, name)
        error = float(np.median(np.abs(measured - true)))
        print(
            f"{name}: median {np.median(measured):.3f} {unit}, true {np.median(true):.3f}; per pixel off by {error:.3f}"
        )
    along_y, along_x = camera.noise_correlation
    print(f"noise correlation: {along_y:.3f} (y), {along_x:.3f} (x); true 0, 0")


if __name__ == "__main__":
    main()
