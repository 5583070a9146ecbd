"""The live engine beside an acquisition: a camera that never waits, previews in time, and where every frame went.

    python examples/live_loop.py --frames 100 --fps 20 --deadline-ms 60

The camera is simulated: it looks at a real scene, the ground truth of the demo, on a stage that drifts; half-way the
stage jumps, and the stream is told. The raw frames are what you record; what is shown here is for the eye.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import photonstep as ps
from photonstep.demo import DEMO_FRAME
from photonstep.runtime.images import open_image
from photonstep.runtime.live_result import LiveResult
from photonstep.runtime.stream import LiveStream

CAMERA = ps.Camera(offset_adu=100, gain_e_per_adu=0.46, readout_noise_e=1.6)  # or ps.Camera.load("camera.json")
PEAK_PHOTONS = 20.0


def expose(scene: NDArray[np.uint8], at: tuple[int, int], rng: np.random.Generator) -> NDArray[np.uint16]:
    """One raw frame of the scene with the stage at ``at`` (y, x), px."""
    photons = np.roll(scene, at, (0, 1)) * (PEAK_PHOTONS / 255.0) + 0.5
    electrons = rng.poisson(photons) + rng.normal(0, CAMERA.readout_noise_e, photons.shape)
    return np.clip(np.rint(electrons / CAMERA.gain_e_per_adu + CAMERA.offset_adu), 0, 65535).astype(np.uint16)


def acquire(live: LiveStream, scene: NDArray[np.uint8], frames: int, fps: float) -> None:
    """The camera: a frame every ``1 / fps`` seconds, whatever the restoration does."""
    rng = np.random.default_rng(0)
    started = time.perf_counter()
    jump = 0
    for number in range(frames):
        if number == frames // 2:
            jump = 100
            live.event("stage_moved")  # what comes now is another place
        frame = expose(scene, (number // 2 + jump, number), rng)
        time.sleep(max(0.0, started + number / fps - time.perf_counter()))
        live.put(frame, capture_ns=time.perf_counter_ns())


class Screen:
    """What a viewer would do: keep the newest picture."""

    def __init__(self) -> None:
        self.picture: NDArray[np.uint8] | None = None
        self.flags: Counter[str] = Counter()

    def show(self, result: LiveResult) -> None:
        if result.preview_u8 is not None:
            self.picture = result.preview_u8.copy()  # the buffer goes back to the stream with the result
        self.flags.update(result.flags)


def main() -> None:
    parser = argparse.ArgumentParser(description="restore a simulated camera live")
    parser.add_argument("--bundle", default="live", help="base, live or the path of a .photonstep file")
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--fps", type=float, default=20.0)
    parser.add_argument("--deadline-ms", type=float, default=60.0)
    parser.add_argument("--steps", type=int, default=2, help="most evaluations per frame, if time allows")
    parser.add_argument("-o", "--output", type=Path, default=Path("preview.png"), help="the last preview")
    arguments = parser.parse_args()
    with open_image(DEMO_FRAME) as reader:
        _, scene = (plane for _, plane in reader.planes())

    screen = Screen()
    first = expose(scene, (0, 0), np.random.default_rng(1))
    with (
        ps.load(arguments.bundle) as restorer,
        restorer.stream(camera=CAMERA, deadline_ms=arguments.deadline_ms, steps=arguments.steps, warm_up=first) as live,
    ):
        live.subscribe(screen.show)
        acquire(live, scene, arguments.frames, arguments.fps)
        live.drain(timeout=10)
        stats = live.stats()

    if screen.picture is not None:
        Image.fromarray(screen.picture).save(arguments.output)
    print(f"put {stats.put}, delivered {stats.delivered}, dropped {stats.dropped or 'none'}, late {stats.late}")
    for stage, times in stats.stages.items():
        print(f"{stage}: p50 {times.p50_ms:.1f} ms, p99 {times.p99_ms:.1f} ms, max {times.max_ms:.1f} ms")
    print(f"plans {stats.plans}, flags {dict(screen.flags) or 'none'}, {stats.fps:.1f} results per second")


if __name__ == "__main__":
    main()
