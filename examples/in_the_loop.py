"""A restorer in an acquisition loop: frame in, preview out; latency statistics and flags at the end.

    python examples/in_the_loop.py --frames 100 --fps 10

The camera thread never waits for the restoration: a mailbox holds one frame, and a newer frame replaces one that is
still waiting (the "latest" policy: right for a preview, wrong for a recording). The raw frames are what you record.
The camera is simulated: it looks at a real scene, the ground truth of the demo, on a stage that drifts.
"""

from __future__ import annotations

import argparse
import gc
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

import photonstep as ps
from photonstep.demo import DEMO_FRAME
from photonstep.runtime.images import open_image

CAMERA = ps.Camera(offset_adu=100, gain_e_per_adu=0.46, readout_noise_e=1.6)  # or ps.Camera.load("camera.json")
PEAK_PHOTONS = 20.0


@dataclass(frozen=True, kw_only=True)
class Shot:
    """A raw frame, its number, and when it was taken (`time.perf_counter`)."""

    number: int
    taken_s: float
    frame: NDArray[np.uint16]


class Mailbox:
    """Room for one shot. Putting never blocks."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._shot: Shot | None = None
        self._closed = False
        self.replaced = 0

    def put(self, shot: Shot) -> None:
        with self._changed:
            self.replaced += self._shot is not None
            self._shot = shot
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    def take(self) -> Shot | None:
        """The newest shot as soon as there is one; None when the acquisition is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._shot is not None or self._closed)
            shot, self._shot = self._shot, None
            return shot


def expose(scene: NDArray[np.uint8], number: int, rng: np.random.Generator) -> NDArray[np.uint16]:
    """One raw frame of the drifting scene."""
    photons = np.roll(scene, (number // 2, number), (0, 1)) * (PEAK_PHOTONS / 255.0) + 0.5
    electrons = rng.poisson(photons) + rng.normal(0, CAMERA.readout_noise_e, photons.shape)
    return np.clip(np.rint(electrons / CAMERA.gain_e_per_adu + CAMERA.offset_adu), 0, 65535).astype(np.uint16)


def acquire(mailbox: Mailbox, scene: NDArray[np.uint8], frames: int, fps: float) -> None:
    """The camera thread: a frame every ``1 / fps`` seconds, whatever the restorer does."""
    rng = np.random.default_rng(0)
    started = time.perf_counter()
    try:
        for number in range(frames):
            frame = expose(scene, number, rng)
            time.sleep(max(0.0, started + number / fps - time.perf_counter()))
            mailbox.put(Shot(number=number, taken_s=time.perf_counter(), frame=frame))
    finally:
        mailbox.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="restore a live preview")
    parser.add_argument("--bundle", default="base", help="base, live or the path of a .photonstep file")
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--fps", type=float, default=10.0)
    parser.add_argument("-o", "--output", type=Path, default=Path("preview.tif"), help="the last preview")
    arguments = parser.parse_args()
    with open_image(DEMO_FRAME) as reader:
        _, scene = (plane for _, plane in reader.planes())

    restorer = ps.load(arguments.bundle)
    # the first frame of a shape pays for compiling the network, so it is not one of the acquisition's
    preview = restorer(expose(scene, 0, np.random.default_rng(1)), camera=CAMERA)
    gc.collect()
    gc.freeze()  # what lives already is not searched again: no long pauses by the garbage collector

    mailbox = Mailbox()
    camera_thread = threading.Thread(target=acquire, args=(mailbox, scene, arguments.frames, arguments.fps))
    camera_thread.start()
    tracker = restorer.tracker()  # the sequence's memory of brightness: previews do not flicker
    waited_ms: list[float] = []
    restored_ms: list[float] = []
    flags: Counter[str] = Counter()
    while (shot := mailbox.take()) is not None:
        waited_ms.append((time.perf_counter() - shot.taken_s) * 1e3)
        # the camera is given: nothing is estimated in the loop
        result = restorer.restore(shot.frame, camera=CAMERA, tracker=tracker)
        restored_ms.append(result.latency_ms)
        flags.update(result.flags)
        preview = result.image  # show it here; shot.frame is untouched
    camera_thread.join()

    tifffile.imwrite(arguments.output, preview)
    print(f"{restorer}: {arguments.frames} frames at {arguments.fps:g} per second")
    print(f"restored {len(restored_ms)}, replaced by a newer frame {mailbox.replaced}")
    for name, times in (("waited", waited_ms), ("restored in", restored_ms)):
        p50, p99 = np.percentile(times, (50, 99))
        print(f"{name}: p50 {p50:.1f} ms, p99 {p99:.1f} ms, max {max(times):.1f} ms")
    print(f"frames by flag: {dict(flags) or 'none'}")


if __name__ == "__main__":
    main()
