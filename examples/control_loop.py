"""A closed loop on restored frames: a stage follows a drifting bead, and the shutter closes when the camera stalls.

    python examples/control_loop.py --frames 120 --fps 40

Camera, bead and stage are simulated. Half-way the camera pauses: the watchdog closes the shutter once and says why; the
first action afterwards opens it again.
"""

from __future__ import annotations

import argparse
import threading
import time

import numpy as np
from numpy.typing import NDArray

import photonstep as ps
from photonstep.runtime.control_report import Incident
from photonstep.runtime.live_result import LiveResult
from photonstep.runtime.measures import centroid

CAMERA = ps.Camera(offset_adu=100, gain_e_per_adu=0.46, readout_noise_e=1.6)
SIDE_PX = 96
DRIFT_PX = (0.15, -0.1)  # per frame, (y, x)
LOOP_GAIN = 0.5  # of the measured error that one action takes away: below 1, so that a late frame does not overshoot
WATCHDOG_MS = 250.0


class Microscope:
    """A bead, a stage under it and a shutter. Thread-safe: the camera looks while the loop moves."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bead_px = np.array([SIDE_PX / 2, SIDE_PX / 2])
        self._stage_px = np.zeros(2)
        self._rng = np.random.default_rng(0)
        self.shutter_open = True

    def drift(self) -> None:
        with self._lock:
            self._bead_px += DRIFT_PX

    def move(self, by_px: NDArray[np.float64]) -> None:
        with self._lock:
            self._stage_px += by_px

    @property
    def error_px(self) -> float:
        """Distance of the bead from the middle of the image."""
        with self._lock:
            return float(np.hypot(*(self._bead_px - self._stage_px - SIDE_PX / 2)))

    def expose(self) -> NDArray[np.uint16]:
        with self._lock:
            centre_y, centre_x = self._bead_px - self._stage_px
        y, x = np.mgrid[:SIDE_PX, :SIDE_PX]
        photons = 2.0 + 30.0 * np.exp(-((y - centre_y) ** 2 + (x - centre_x) ** 2) / (2 * 3.0**2))
        electrons = self._rng.poisson(photons) + self._rng.normal(0, CAMERA.readout_noise_e, photons.shape)
        return np.clip(np.rint(electrons / CAMERA.gain_e_per_adu + CAMERA.offset_adu), 0, 65535).astype(np.uint16)


def main() -> None:
    parser = argparse.ArgumentParser(description="keep a drifting bead in the middle")
    parser.add_argument("--frames", type=int, default=120)
    parser.add_argument("--fps", type=float, default=40.0)
    parser.add_argument("--deadline-ms", type=float, default=100.0)
    arguments = parser.parse_args()
    scope = Microscope()

    def follow(position_px: tuple[float, float], result: LiveResult) -> None:
        error_px = np.array(position_px) - SIDE_PX / 2
        if np.isfinite(error_px).all():
            scope.move(LOOP_GAIN * error_px)
        scope.shutter_open = True

    def close_shutter(incident: Incident) -> None:
        scope.shutter_open = False
        print(f"shutter closed: {incident.cause}: {incident.message}")

    with (
        ps.load("live") as restorer,
        restorer.stream(camera=CAMERA, deadline_ms=arguments.deadline_ms, preview=None, warm_up=scope.expose()) as live,
        ps.ControlLoop(live, measure=centroid, act=follow, safe_action=close_shutter, watchdog_ms=WATCHDOG_MS) as loop,
    ):
        for number in range(arguments.frames):
            if number == arguments.frames // 2:
                time.sleep(2.5 * WATCHDOG_MS / 1e3)  # the camera stalls
            scope.drift()
            live.put(scope.expose(), capture_ns=time.perf_counter_ns())
            time.sleep(1 / arguments.fps)
        live.drain(timeout=10)
        report = loop.report()

    drifted_px = arguments.frames * float(np.hypot(*DRIFT_PX))
    print(f"actions {report.actions}, late {report.late}, safe actions {report.safe_actions or 'none'}")
    for name, jitter in (("interval", report.interval), ("frame to action", report.frame_to_action)):
        print(f"{name}: p50 {jitter.p50_ms:.1f} ms, p99 {jitter.p99_ms:.1f} ms, max {jitter.max_ms:.1f} ms")
    print(f"the bead drifted {drifted_px:.1f} px and is {scope.error_px:.1f} px from the middle")


if __name__ == "__main__":
    main()
