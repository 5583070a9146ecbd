"""Photon bias: does a restored frame hold as many photons as were there? Flat and structured fields, 3 to 1000 photons.

    python -m benchmarks.bias --json bias.json

A field of known mean goes through a simulated 16-bit camera; the restored frame's mean, converted with the *true*
camera, is compared with it. A blind estimate is judged in the same unit, so its own error of gain cancels as it does
for a user who reads the restored file with the data sheet's gain.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

import photonstep as ps
from photonstep.runtime.errors import PhotonstepError

from . import machine

PHOTONS = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
CAMERA = ps.Camera(offset_adu=100.0, gain_e_per_adu=0.46, readout_noise_e=1.6)  # a common sCMOS camera
STRUCTURED_FIELDS = 6


class Restores(Protocol):
    def restore(self, frame: NDArray[Any], **options: Any) -> Any: ...


def fields(size_px: int, seed: int = 0) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Fields of mean 1: a flat one, a slope, and simulated structures on a background of a tenth of their peak."""
    from photonstep.models.simulate import simulate_field

    yield "flat", np.ones((size_px, size_px))
    slope = np.broadcast_to(np.linspace(0.5, 1.5, size_px), (size_px, size_px))
    yield "slope", slope / slope.mean()
    rng = np.random.default_rng(seed)
    for index in range(STRUCTURED_FIELDS):
        field = np.asarray(simulate_field(rng, size_px), dtype=np.float64) + 0.1  # else sparse ones saturate the camera
        yield f"structure {index + 1}", field / field.mean()


def photograph(photons: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.uint16]:
    """(H, W) uint16 frame of `CAMERA` from (H, W) mean photoelectrons."""
    electrons = rng.poisson(photons) + rng.normal(0.0, CAMERA.readout_noise_e, photons.shape)
    counts = electrons / CAMERA.gain_e_per_adu + CAMERA.offset_adu
    return np.asarray(np.clip(np.round(counts), 0, 65535), dtype=np.uint16)


def measure(
    restorers: dict[str, Restores], *, size_px: int = 512, steps: Sequence[int] = (1, 4), seed: int = 0
) -> dict[str, Any]:
    """Relative bias of the mean photon count, in percent, of every bundle, field, light level, camera and K.

    ``raw_percent`` is what the noisy frame itself is off by: shot noise of its sum, which no restoration can know.
    ``bias_percent`` is None where the camera could not be estimated.
    """
    rng = np.random.default_rng(seed)
    cases: list[dict[str, Any]] = []
    for name, field in fields(size_px, seed):
        for level in PHOTONS:
            frame = photograph(level * field, rng)
            raw_percent = _bias_percent(frame, level)
            for camera_kind in ("known", "blind"):
                camera = _camera(camera_kind, frame)
                for bundle, restorer in restorers.items():
                    for k in steps:
                        case = {"bundle": bundle, "field": name, "photons": level, "camera": camera_kind, "steps": k}
                        cases.append(case | {"raw_percent": raw_percent} | _outcome(restorer, frame, camera, k, level))
    return {"camera": "offset 100 ADU, 0.46 e-/ADU, readout noise 1.6 e-", "size_px": size_px, "cases": cases}


def worst(bias: dict[str, Any]) -> list[dict[str, Any]]:
    """The worst case of every bundle, K, camera and light level: what a table shows."""
    chosen: dict[tuple[Any, ...], dict[str, Any]] = {}
    for case in bias["cases"]:
        key = (case["bundle"], case["steps"], case["camera"], case["photons"])
        if key not in chosen or magnitude(case) > magnitude(chosen[key]):
            chosen[key] = case
    return list(chosen.values())


def magnitude(case: dict[str, Any]) -> float:
    """Absolute bias in percent, infinite where there is no result."""
    return float("inf") if case["bias_percent"] is None else abs(case["bias_percent"])


def _camera(kind: str, frame: NDArray[np.uint16]) -> ps.Camera | PhotonstepError:
    if kind == "known":
        return CAMERA
    try:
        return ps.Camera.estimate(frame)
    except PhotonstepError as error:  # a flat field may refuse to tell its camera; the table says so
        return error


def _outcome(
    restorer: Restores, frame: NDArray[np.uint16], camera: ps.Camera | PhotonstepError, steps: int, level: float
) -> dict[str, Any]:
    if isinstance(camera, PhotonstepError):
        return {"bias_percent": None, "error": str(camera)}
    # float32 in, float32 out: rounding a smooth field to whole counts would hide or make a bias of up to half a count
    image = restorer.restore(frame.astype(np.float32), camera=camera, steps=steps).image
    return {"bias_percent": _bias_percent(image, level)}


def _bias_percent(image: NDArray[Any], level: float) -> float:
    mean_e = (float(np.mean(image, dtype=np.float64)) - CAMERA.offset_adu) * CAMERA.gain_e_per_adu
    return float(100.0 * (mean_e / level - 1.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundles", nargs="+", default=["base", "live"], help="names or paths")
    parser.add_argument("--size", type=int, default=512, help="pixels on a side")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    bias = measure({name: ps.load(name, device="cpu") for name in options.bundles}, size_px=options.size)
    print(f"{'bundle':8s} {'K':>2s} {'camera':7s} {'photons':>7s} {'worst bias':>11s}  field")
    for case in worst(bias):
        text = "no camera" if case["bias_percent"] is None else f"{case['bias_percent']:+.2f}%"
        verdict = "" if magnitude(case) <= 1.0 else "  missed"
        print(
            f"{case['bundle']:8s} {case['steps']:2d} {case['camera']:7s} {case['photons']:7g} {text:>11s}  "
            f"{case['field']}{verdict}"
        )
    if options.json:
        options.json.write_text(
            json.dumps({"machine": machine.record(), "bias": bias}, indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
