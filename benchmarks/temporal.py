"""Temporal fusion on simulated scenes: what it gains where nothing moves, and whether it leaves ghosts where things do.

    python -m benchmarks.temporal --json temporal.json --markdown

Every scene is photographed by a known sCMOS camera and restored at K = 1, frame by frame, with fusion and without. The
limits of the motion test were chosen on seeds below 100; the default seed reports on others.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

import photonstep as ps
from photonstep.runtime.temporal import FusionSettings, TemporalFusion

from . import machine
from .temporal_scenes import (
    CAMERA,
    Image,
    Player,
    Scene,
    drifting,
    light_of,
    locate,
    photograph,
    spots,
    structures,
    uncovered,
)  # fmt: skip

LIGHTS_E: Final = (3.0, 10.0, 30.0)
SPOT_LIGHTS_E: Final = (10.0, 20.0, 30.0, 100.0)
SPEEDS_PX: Final = (0.25, 0.5, 1.0, 2.0)
WARM_UP: Final = 5  # frames until the mean holds what it can
Row = dict[str, Any]


def restore(restorer: Any, scene: Scene, count: int, seed: int, settings: FusionSettings | None) -> list[Image]:
    """The restored frames of a scene, photoelectrons; ``settings`` None looks at each frame by itself."""
    rng = np.random.default_rng(seed)
    sequence = Player(restorer, None if settings is None else TemporalFusion(settings))
    return [sequence(photograph(scene(t), rng)).astype(np.float64) for t in range(count)]


def pair(restorer: Any, scene: Scene, count: int, seed: int) -> tuple[list[Image], list[Image]]:
    """Restored frame by frame, and with fusion; the same noise."""
    return restore(restorer, scene, count, seed, None), restore(restorer, scene, count, seed, FusionSettings())


def psnr_db(images: Sequence[Image], scene: Scene, first: int) -> float:
    """Mean over the frames from ``first`` on; the peak is the scene's range."""
    values = []
    for t in range(first, len(images)):
        truth = scene(t)
        values.append(10 * np.log10(np.ptp(truth) ** 2 / np.mean((images[t] - truth) ** 2)))
    return float(np.mean(values))


def static_scenes(restorer: Any, seed: int) -> list[Row]:
    """PSNR of a scene that stands still."""
    rows: list[Row] = []
    for light_e in LIGHTS_E:
        for name, field in structures(seed, count=8):
            scene = _constant(1.0 + light_e * field)
            single, fused = (psnr_db(images, scene, WARM_UP) for images in pair(restorer, scene, 10, seed))
            measured, claimed = noise_of(scene, seed)
            rows.append({"light_e": light_e, "scene": name, "single_db": single, "gain_db": fused - single,
                         "measured_noise": measured, "claimed_noise": claimed})  # fmt: skip
    return rows


def noise_of(scene: Scene, seed: int) -> tuple[float, float]:
    """Rms noise of a fused static frame against the mean of many, over a single frame's, and what the fusion claims."""
    rng = np.random.default_rng(seed)
    mean = np.mean([CAMERA.stabilise(photograph(scene(0), rng)) for _ in range(200)], axis=0)
    fusion = TemporalFusion()
    for _ in range(10):
        z = CAMERA.stabilise(photograph(scene(0), rng))
        fused, noise = fusion.update(z, CAMERA)
    return float(np.std(fused - mean) / np.std(z - mean)), float(np.sqrt(np.mean(np.square(noise))))


def drift(restorer: Any, seed: int) -> list[Row]:
    """PSNR of a whole scene that drifts."""
    rows: list[Row] = []
    for light_e in LIGHTS_E:
        for step_px in (0.05, 0.1, 0.25, 0.5, 1.0):
            gains = []
            for _, field in structures(seed, count=2):
                scene = drifting(field, light_e, step_px)
                single, fused = (psnr_db(images, scene, WARM_UP) for images in pair(restorer, scene, 10, seed))
                gains.append(fused - single)
            rows.append({"light_e": light_e, "px_per_frame": step_px, "worst_gain_db": min(gains),
                         "mean_gain_db": float(np.mean(gains))})  # fmt: skip
    return rows


def unsteady_light(restorer: Any, seed: int) -> list[Row]:
    """PSNR and light of a scene whose lamp flickers or whose dye bleaches."""
    flicker = np.random.default_rng(seed).uniform(0.9, 1.1, 12)
    lights: dict[str, Callable[[int], float]] = {
        "flicker of 10 %": lambda t: float(flicker[t]),
        "bleaching, 2 % a frame": lambda t: 0.98**t,
    }
    rows: list[Row] = []
    for light_e in LIGHTS_E:
        for name, factor in lights.items():
            gains, biases, single_biases = [], [], []
            for _, field in structures(seed, count=2):
                scene = _lit(1.0 + light_e * field, factor)
                single, fused = pair(restorer, scene, 12, seed)
                gains.append(psnr_db(fused, scene, WARM_UP) - psnr_db(single, scene, WARM_UP))
                for kind, images in ((biases, fused), (single_biases, single)):
                    kind += [100 * (images[t].mean() / scene(t).mean() - 1) for t in range(WARM_UP, 12)]
            rows.append({"light_e": light_e, "light": name, "worst_gain_db": min(gains),
                         "worst_bias_percent": float(max(biases, key=abs)),
                         "single_worst_bias_percent": float(max(single_biases, key=abs))})  # fmt: skip
    return rows


def moving_spots(restorer: Any, seed: int, repeats: int = 3) -> list[Row]:
    """How far behind its true place a moving spot is shown, along its way, px; medians over spots and frames."""
    rows: list[Row] = []
    for peak_e in SPOT_LIGHTS_E:
        for speed in SPEEDS_PX:
            lags: dict[str, list[float]] = {"single": [], "fused": []}
            aside: list[float] = []
            for repeat in range(repeats):
                grid = spots(peak_e, seed + repeat)
                count = 9 if speed > 1 else 14
                single, fused = pair(
                    restorer, lambda t, g=grid, v=speed, c=count: g.at(shift_px=v * (t - c // 2)), count, seed + repeat
                )
                for t in range(WARM_UP, count):
                    for row, column, way in grid.places(speed * (t - count // 2)):
                        lags["fused"].append(way * (column - locate(fused[t], row, column)[1]))
                        y, x = locate(single[t], row, column)
                        lags["single"].append(way * (column - x))
                        aside.append(abs(y - row))
            rows.append({"peak_e": peak_e, "px_per_frame": speed, "lag_px": float(np.median(lags["fused"])),
                         "single_lag_px": float(np.median(lags["single"])),
                         "single_noise_px": 1.48 * float(np.median(aside))})  # fmt: skip
    return rows


def blinking_spots(restorer: Any, seed: int, repeats: int = 3) -> list[Row]:
    """Amplitude of spots that are on and off for two frames each, in percent of the true amplitude when on."""
    rows: list[Row] = []
    for peak_e in SPOT_LIGHTS_E:
        shown: dict[str, list[float]] = {"single_on": [], "fused_on": [], "single_off": [], "fused_off": []}
        for repeat in range(repeats):
            grid = spots(peak_e, seed + repeat)
            images = pair(restorer, lambda t, g=grid: g.at(weight=float(_is_on(t))), 13, seed + repeat)
            for kind, frames in zip(("single", "fused"), images, strict=True):
                for t in range(WARM_UP, 13):
                    name = f"{kind}_{'on' if _is_on(t) else 'off'}"
                    shown[name] += [100 * light_of(frames[t], *place) / peak_e for place in grid.start_px]
        rows.append({"peak_e": peak_e} | {f"{k}_percent": float(np.mean(v)) for k, v in shown.items()})
    return rows


def steps(restorer: Any, seed: int, repeats: int = 3) -> list[Row]:
    """Frames until a change is shown to within 5 % of what each frame by itself shows of it; 0 is the frame itself."""
    rows: list[Row] = []
    start, count = 6, 12
    for light_e in SPOT_LIGHTS_E:
        for name, factor in (("light x 1.5", 1.5), ("light x 3", 3.0)):
            field = 1.0 + light_e * next(iter(structures(seed)))[1]
            scene = _lit(field, lambda t, f=factor: f if t >= start else 1.0)
            levels = [[i.mean() for i in images] for images in pair(restorer, scene, count, seed)]
            rows.append({"light_e": light_e, "change": name} | _settling(np.array(levels), start))
        levels = np.zeros((2, count))
        for repeat in range(repeats):
            grid = spots(light_e, seed + repeat)
            images = pair(restorer, lambda t, g=grid: g.at(weight=float(t >= start)), count, seed + repeat)
            levels += [[np.mean([light_of(i, *p) for p in grid.start_px]) for i in series] for series in images]
        rows.append({"light_e": light_e, "change": "spots appear"} | _settling(levels / repeats, start))
    return rows


def occlusion(restorer: Any, seed: int) -> list[Row]:
    """What is left of a bright plate on the background that it uncovered one to three frames ago, photoelectrons."""
    rows: list[Row] = []
    texture = next(iter(structures(seed)))[1]
    for plate_e in SPOT_LIGHTS_E:
        for step_px in (1, 2, 4):
            scene = uncovered(plate_e, step_px, texture)
            images, left = pair(restorer, scene, 16, seed), {}
            for kind, frames in zip(("single", "fused"), images, strict=True):
                errors = []
                for t in range(WARM_UP, 16):
                    edge = 96 - step_px * t
                    errors.append((frames[t] - scene(t))[:, edge : edge + 3 * step_px])
                left[f"{kind}_e"] = float(np.mean([e.mean() for e in errors]))
                left[f"{kind}_rms_e"] = float(np.sqrt(np.mean([np.mean(e**2) for e in errors])))
            rows.append(
                {"plate_e": plate_e, "px_per_frame": step_px, **left, "raw_noise_e": float((3 + 1.6**2) ** 0.5)}
            )
    return rows


TESTS: Final[dict[str, Callable[[Any, int], list[Row]]]] = {
    "static": static_scenes, "moving_spots": moving_spots, "blinking_spots": blinking_spots, "steps": steps,
    "occlusion": occlusion, "drift": drift, "unsteady_light": unsteady_light,
}  # fmt: skip


def measure(restorers: dict[str, Any], *, seed: int = 100, tests: Sequence[str] = tuple(TESTS)) -> dict[str, Any]:
    """Rows of every test for every restorer."""
    return {name: {test: TESTS[test](restorer, seed) for test in tests} for name, restorer in restorers.items()}


def _constant(light: Image) -> Scene:
    return lambda t: light


def _lit(light: Image, factor: Callable[[int], float]) -> Scene:
    return lambda t: light * factor(t)


def _is_on(t: int) -> bool:
    return t // 2 % 2 == 0


def _settling(levels: NDArray[np.float64], start: int) -> Row:
    """From (single, fused) levels by frame: from when on the fused one is 5 % of the step behind at most."""
    height = levels[0, start:].mean() - levels[0, :start].mean()
    behind = (levels[0, start:] - levels[1, start:]) / height
    late = np.flatnonzero(behind > 0.05)
    return {
        "frames": int(late[-1]) + 1 if late.size else 0,
        "first_frame_off_percent": float(100 * (levels[1, start] - levels[0, start]) / height),
    }


def table(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table."""
    names = list(rows[0])
    lines = ["| " + " | ".join(n.replace("_", " ") for n in names) + " |", "| --- " * len(names) + "|"]
    for row in rows:
        cells = (f"{v:.2f}" if isinstance(v, float) and n not in ("light_e", "peak_e", "plate_e", "px_per_frame")
                 else f"{v:g}" if isinstance(v, float) else str(v) for n, v in row.items())  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundles", nargs="+", default=["base", "live"], help="names or paths")
    parser.add_argument("--tests", nargs="+", default=list(TESTS), choices=list(TESTS))
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", action="store_true", help="print the tables")
    options = parser.parse_args()
    restorers = {name: ps.load(name, device="cpu", threads=options.threads) for name in options.bundles}
    results = measure(restorers, seed=options.seed, tests=options.tests)
    if options.markdown or not options.json:
        for name, tests in results.items():
            for test, rows in tests.items():
                print(f"\n{name}: {test.replace('_', ' ')}\n\n{table(rows)}")
    if options.json:
        document = {"machine": machine.record(), "seed": options.seed, "settings": vars(FusionSettings())}
        options.json.write_text(json.dumps(document | {"temporal": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
