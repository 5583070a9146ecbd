"""Speed: frame in to frame out, uint16, CPU; p50, p99, frames per second and the share spent outside the network.

    python -m benchmarks.speed --json speed.json

``alternate`` times rivals in turn within one run, so that a busy moment of the machine falls on all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import photonstep as ps
from photonstep.bench import bench_record, run_bench

from . import machine

SIZES_PX = (256, 512, 1024, 2048)
STEPS = (1, 2, 4)
IMPORT_PROBE = """
import sys, time
sys.modules["torch"] = sys.modules["onnx"] = None  # an import of either raises
start = time.perf_counter()
import photonstep
photonstep.load, photonstep.Camera  # names are loaded when they are first asked for
print(time.perf_counter() - start)
"""


def alternate(
    runs: Mapping[str, Callable[[], object]], *, rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, dict[str, float]]:
    """Time callables in turn, one call of each per round, after one call of each that is not counted.

    Returns
    -------
    by name: median, least and number of the timed calls; times in ms
    """
    for run in runs.values():
        run()
    times_ms: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = clock()
            run()
            times_ms[name].append((clock() - start) * 1e3)
    return {
        name: {"median_ms": statistics.median(times), "min_ms": min(times), "runs": len(times)}
        for name, times in times_ms.items()
    }


def import_s(repeats: int = 5) -> float:
    """Median time of ``import photonstep`` in a fresh interpreter where torch and onnx cannot be imported, seconds.

    Raises
    ------
    RuntimeError : the import failed, for instance because it needs one of the blocked packages
    """
    source = str(Path(ps.__file__).resolve().parent.parent)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))}
    times: list[float] = []
    for _ in range(repeats):
        command = [sys.executable, "-c", IMPORT_PROBE]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            raise RuntimeError(f"import photonstep failed with torch and onnx blocked: {done.stderr.strip()[-500:]}")
        times.append(float(done.stdout))
    return statistics.median(times)


def measure(
    bundles: Mapping[str, str], *, sizes_px: Sequence[int] = SIZES_PX, threads: int = 2, budget_s: float = 4.0
) -> dict[str, Any]:
    """Latency of every tier, size and K, and the import time.

    Parameters
    ----------
    bundles : name or path of a bundle by tier ("base", "live")
    sizes_px : sides of the square frames
    threads : CPU threads
    budget_s : time for one measurement
    """
    rows: list[dict[str, Any]] = []
    for tier, bundle in bundles.items():
        measured = list(
            run_bench(
                lambda name: ps.load(name, device="cpu", threads=threads),
                bundles=[bundle],
                sizes=[(size, size) for size in sizes_px],
                steps=STEPS,
                budget_s=budget_s,
            )
        )
        rows += [{"tier": tier} | row for row in bench_record(measured, threads=threads)["rows"]]
    return {"threads": threads, "import_s": import_s(), "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="base", help="bundle, by name or path")
    parser.add_argument("--live", default="live", help="bundle, by name or path")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES_PX, metavar="PX")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--budget", type=float, default=4.0, metavar="S", help="seconds for one measurement")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    bundles = {"base": options.base, "live": options.live}
    speed = measure(bundles, sizes_px=options.sizes, threads=options.threads, budget_s=options.budget)
    from .tables import speed_table

    print(speed_table(speed))
    if options.json:
        document = {"machine": machine.record(), "speed": speed}
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
