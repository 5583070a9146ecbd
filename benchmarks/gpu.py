"""GPU: host to host latency, pipelined frames per second, what more steps cost, and the runtime's own share.

    python -m benchmarks.gpu --json gpu.json

``p50`` and ``p99`` are of `Restorer.restore`: frame in host memory in, image in host memory out. ``bare_ms`` is the
same frame's captured graph between two events on its stream, copies included; the difference is what the runtime adds.
Pipelined means two restorers in two threads, each with a stream of its own. Without a GPU it says "not measured".
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

import photonstep as ps
from photonstep.runtime.backends import cuda_device

from . import machine

SIZES_PX: Final = (512, 1024, 2048)
STEPS: Final = (1, 2, 4)
FRAMES: Final = 500
GOALS_MS: Final = {512: 0.2, 1024: 0.45, 2048: 1.5}  # p50 on an H200-class GPU, K = 1
OVERHEAD_US, K4_OVER_K1 = 20.0, 3.5


def frame_of(side: int) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """A simulated frame: blobs of light under shot noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] / 40.0
    return (rng.poisson(20 + 15 * np.sin(y) * np.cos(x)) * 2 + 100).astype(np.uint16)


def latencies_ms(restorer: ps.Restorer, frame: Any, camera: ps.Camera, steps: int, frames: int) -> list[float]:
    """Host to host, one frame after another, into an array that is there already."""
    tracker, out = restorer.tracker(), np.empty_like(frame)
    times = []
    for number in range(frames + 20):
        started = time.perf_counter()
        restorer.restore(frame, camera=camera, steps=steps, tracker=tracker, out=out)
        if number >= 20:  # recorded and warm by then
            times.append((time.perf_counter() - started) * 1e3)
    return times


def bare_ms(restorer: ps.Restorer, runs: int) -> float | None:
    """The captured graph alone, median of the device's own clock; None where the frame did not stay on the device."""
    path = restorer._on_device.path
    recording = None if path is None else path.latest
    network = getattr(restorer.choice.session, "on_device", None)
    if recording is None or network is None:
        return None
    times = []
    for _ in range(runs):
        start = network.device.event()
        recording.run()
        end = network.device.event()
        network.device.synchronise()
        times.append(end.since(start))
    return float(np.median(times))


def pipelined_fps(
    load: Callable[[], ps.Restorer], frame: Any, camera: ps.Camera, steps: int, frames: int, lanes: int = 2
) -> float:
    """Frames per second of several restorers at once, each in its own thread."""
    restorers = [load() for _ in range(lanes)]
    gate = threading.Barrier(lanes + 1)

    def serve(restorer: ps.Restorer) -> None:
        tracker, out = restorer.tracker(), np.empty_like(frame)
        restorer.restore(frame, camera=camera, steps=steps, tracker=tracker, out=out)
        gate.wait()
        for _ in range(frames):
            restorer.restore(frame, camera=camera, steps=steps, tracker=tracker, out=out)

    threads = [threading.Thread(target=serve, args=(restorer,)) for restorer in restorers]
    for thread in threads:
        thread.start()
    gate.wait()
    started = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    for restorer in restorers:
        restorer.close()
    return lanes * frames / seconds


def measure_one(load: Callable[[], ps.Restorer], side: int, steps: int, *, frames: int = FRAMES) -> dict[str, Any]:
    """One line: a size and a number of steps."""
    frame, camera = frame_of(side), ps.Camera(offset_adu=100.0, gain_e_per_adu=0.5, readout_noise_e=1.5)
    restorer = load()
    times = latencies_ms(restorer, frame, camera, steps, frames)
    alone = bare_ms(restorer, min(frames, 100))
    backend = f"{restorer.backend_name} {restorer.precision}"
    restorer.close()
    p50 = float(np.percentile(times, 50))
    return {
        "side_px": side, "steps": steps, "backend": backend, "p50_ms": p50,
        "p99_ms": float(np.percentile(times, 99)), "bare_ms": alone,
        "overhead_us": None if alone is None else 1e3 * (p50 - alone),
        "pipelined_fps": pipelined_fps(load, frame, camera, steps, frames),
    }  # fmt: skip


def measure(
    bundle: str, backend: str | None, precision: str, *, sizes: Sequence[int] = SIZES_PX, frames: int = FRAMES
) -> dict[str, Any]:
    """All lines, or why there are none."""
    result: dict[str, Any] = {"machine": machine.record(), "bundle": bundle, "lines": []}
    cause = cuda_device.unavailable()
    if cause:
        return {**result, "not_measured": f"no GPU: {cause}"}

    def load() -> ps.Restorer:
        restorer = ps.load(bundle, device="cuda", backend=backend, precision=precision)
        wait = getattr(restorer.choice.session, "wait", None)  # an engine may still be building
        if wait is not None:
            wait()
        return restorer

    for side in sizes:
        lines = [measure_one(load, side, steps, frames=frames) for steps in STEPS]
        lines[-1]["over_one_step"] = lines[-1]["p50_ms"] / lines[0]["p50_ms"]
        result["lines"] += lines
    return result


def table(result: dict[str, Any]) -> str:
    """The lines for people, with the goals."""
    if "not_measured" in result:
        return f"not measured: {result['not_measured']}"
    rows = []
    for line in result["lines"]:
        alone = "" if line["bare_ms"] is None else f"  graph {line['bare_ms']:.3f} ms, + {line['overhead_us']:.0f} us"
        goal = GOALS_MS.get(line["side_px"]) if line["steps"] == 1 else None
        told = "" if goal is None else f"  goal {goal} ms"
        more = f"  {line['over_one_step']:.2f} x K = 1 (goal {K4_OVER_K1})" if "over_one_step" in line else ""
        rows.append(
            f"{line['side_px']:5d}  K = {line['steps']}  {line['backend']}  p50 {line['p50_ms']:.3f}  p99 "
            f"{line['p99_ms']:.3f} ms{alone}  {line['pipelined_fps']:.0f} fps{told}{more}"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="latency on a GPU")
    parser.add_argument("--bundle", default="live")
    parser.add_argument("--backend", choices=["tensorrt_rtx", "tensorrt", "onnxruntime"])
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--frames", type=int, default=FRAMES)
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    arguments = parser.parse_args()
    result = measure(arguments.bundle, arguments.backend, arguments.precision, frames=arguments.frames)
    print(table(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
