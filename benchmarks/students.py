"""Speed of the shipped students, 512x512 uint16 in to uint16 out, against a 50-step loop in plain PyTorch.

    python -m benchmarks.students --teacher runs/teacher --bundles base live --json students.json

All take turns within one run, so a busy moment of the machine falls on all of them; the loop takes a turn in a few of
the rounds, because it takes seconds. The loop goes the runtime's whole path too, with PyTorch inside.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import photonstep as ps
from photonstep.bench import bench_frame
from photonstep.runtime.bundle import SUFFIX, Bundle
from photonstep.runtime.restore import Restorer, find_bundle

from . import machine
from .rungs import LOOP, LOOP_STEPS, Rung, pack, torch_restorer

SIDE_PX = 512
ROUNDS, LOOP_ROUNDS = 40, 3
GOAL_FPS = {"live": 90.0, "base": 32.0}
GOAL_RATIO = 100.0


def alternate(
    runs: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    rare: Sequence[str] = (),
    rare_rounds: int = LOOP_ROUNDS,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, dict[str, float]]:
    """Time callables in turn after one call of each that is not counted; ``rare`` ones in evenly spread rounds only.

    Returns
    -------
    by name: median, least, 95th percentile, and number of the timed calls; times in ms
    """
    rare_at = set(np.linspace(0, rounds - 1, min(rare_rounds, rounds)).round().astype(int).tolist())
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(rounds):
        for name, run in runs.items():
            if name in rare and index not in rare_at:
                continue
            start = clock()
            run()
            times[name].append((clock() - start) * 1e3)
    return {
        name: {
            "median_ms": statistics.median(t), "min_ms": min(t), "p95_ms": float(np.percentile(t, 95)), "runs": len(t)
        }
        for name, t in times.items()
    }  # fmt: skip


def measure_rungs(
    rungs: Sequence[Rung], *, threads: int, rounds: int = ROUNDS, side_px: int = SIDE_PX
) -> dict[str, Any]:
    """Every rung of the ladder on one frame, the camera given."""
    frame = bench_frame(side_px, side_px)
    camera = ps.Camera.estimate(frame)

    def turn(rung: Rung) -> Callable[[], object]:
        return lambda: rung.restorer.restore(frame, camera=camera, steps=rung.steps)

    measured = alternate({r.name: turn(r) for r in rungs}, rounds=rounds, rare=[LOOP])
    return {"side_px": side_px, "threads": threads, "rungs": measured}


def measure(
    teacher: str, bundles: Sequence[str], *, threads: int = 2, rounds: int = ROUNDS, loop_rounds: int = LOOP_ROUNDS,
    side_px: int = SIDE_PX, loop_steps: int = LOOP_STEPS,
) -> dict[str, Any]:  # fmt: skip
    """Every bundle in float32 and, where it has one, INT8, at its default number of steps; and the teacher's loop."""
    frame = bench_frame(side_px, side_px)
    camera = ps.Camera.estimate(frame)
    restorers: dict[str, tuple[Restorer, int]] = {}
    with TemporaryDirectory() as folder:
        packed = pack(teacher, Path(folder) / f"teacher{SUFFIX}")
        restorers[LOOP] = torch_restorer(packed, teacher, threads), loop_steps
    for name in bundles:
        bundle = Bundle.load(find_bundle(name))
        for precision in ("fp32", "int8"):
            if precision in bundle.networks:
                restorer = ps.load(bundle, device="cpu", precision=precision, threads=threads)
                restorers[f"{bundle.manifest.name} {precision}"] = restorer, bundle.manifest.defaults.steps

    def turn(restorer: Restorer, steps: int) -> Callable[[], object]:
        return lambda: restorer.restore(frame, camera=camera, steps=steps)

    runs = {name: turn(*pair) for name, pair in restorers.items()}
    measured = alternate(runs, rounds=rounds, rare=[LOOP], rare_rounds=loop_rounds)
    rows = [
        {
            "name": name, "backend": restorer.backend_name, "precision": restorer.precision, "steps": steps,
            "kmac_per_px": restorer.bundle.manifest.model.kmac_per_px, **measured[name],
            "fps": 1e3 / measured[name]["median_ms"],
            "times_faster_than_the_loop": measured[LOOP]["median_ms"] / measured[name]["median_ms"],
        }
        for name, (restorer, steps) in restorers.items()
    ]  # fmt: skip
    for restorer, _ in restorers.values():
        restorer.close()
    return {"side_px": side_px, "threads": threads, "loop_steps": loop_steps, "rows": rows}


def verdicts(speed: Mapping[str, Any]) -> list[str]:
    """What the goals say of the INT8 rows: frames per second, and the distance from the loop."""
    found = []
    for row in speed["rows"]:
        name, _, precision = row["name"].rpartition(" ")
        if precision == "int8":
            goal = GOAL_FPS.get(name)
            fast = "" if goal is None else f" {row['fps']:.0f} fps of {goal:g}: {_word(row['fps'] >= goal)};"
            ratio = row["times_faster_than_the_loop"]
            found.append(
                f"{name} INT8:{fast} {ratio:.0f}x faster than the loop of {GOAL_RATIO:g}x: {_word(ratio >= GOAL_RATIO)}"
            )
    return found  # fmt: skip


def table(speed: Mapping[str, Any]) -> str:
    """Markdown."""
    side = speed["side_px"]
    lines = [
        f"{side}x{side} uint16 in to uint16 out, camera given, {speed['threads']} CPU threads, in turn within one run. "
        f"The loop is the teacher's {speed['loop_steps']} DDIM steps in plain PyTorch float32.",
        "",
        "| | backend | K | kMAC per px | median ms | p95 ms | fps | times faster than the loop | runs |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['name']} | {row['backend']} | {row['steps']} | {row['kmac_per_px'] * row['steps']:.1f} | "
        f"{row['median_ms']:.1f} | {row['p95_ms']:.1f} | {row['fps']:.1f} | "
        f"{row['times_faster_than_the_loop']:.0f} | {row['runs']} |"
        for row in speed["rows"]
    ]
    return "\n".join([*lines, "", *(f"- {line}" for line in verdicts(speed))]) + "\n"


def _word(reached: bool) -> str:
    return "reached" if reached else "**missed**"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, metavar="RUN|BUNDLE")
    parser.add_argument("--bundles", nargs="+", default=["base", "live"], help="names or paths")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--loop-rounds", type=int, default=LOOP_ROUNDS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args(arguments)
    speed = measure(
        options.teacher, options.bundles, threads=options.threads, rounds=options.rounds,
        loop_rounds=options.loop_rounds,
    )  # fmt: skip
    text = table(speed)
    print(text)
    if options.markdown:
        options.markdown.write_text(text, encoding="utf-8")
    if options.json:
        document = {"machine": machine.record(), "students": speed}
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
