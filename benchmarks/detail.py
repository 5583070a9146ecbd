"""The detail knob on real frames: ``python -m benchmarks.detail --data DATA --teacher RUN --student RUN``.

The teacher's walk of 16 Heun steps (31 evaluations) is what the student's k = 1 is to give in one or two. Beside PSNR
and SSIM, which texture lowers, two figures say how much detail there is and whether it is the teacher's:

- power: mean over the rings from a quarter to half a cycle per pixel of the restored image's power spectrum, as a share
  of the reference's;
- of the walk: share of the variance of (teacher's walk - teacher's mean) that (image - teacher's mean) reproduces.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

import photonstep as ps
from photonstep.export.spectrum import RINGS, radial_power
from photonstep.runtime.bundle import SUFFIX

from . import datasets, machine
from .datasets import SETS, Pair
from .rungs import pack

HEUN_STEPS = 16
KNOBS = (0.0, 0.25, 0.5, 0.75, 1.0)
DEFAULT_SETS = ("w2s8", "fmd_fov1", "flim2p")
MEAN, WALK = "teacher, K = 1", f"teacher, {HEUN_STEPS} Heun steps"

Image = NDArray[np.float32]
Restore = Callable[[Image, ps.Camera], Image]


@dataclass(frozen=True, kw_only=True)
class DetailRow:
    """One restored image: quality, power at high frequencies against the reference's, share of the walk's detail."""

    frame: str
    method: str
    psnr_db: float
    ssim: float
    power: float
    of_the_walk: float
    seconds: float


def high_power(image: NDArray[np.floating]) -> float:
    """Mean power from a quarter to half a cycle per pixel, squared units of the image."""
    return float(radial_power(image)[RINGS // 2 :].mean())


def reproduced(image: Image, mean: Image, walk: Image) -> float:
    """1 - |walk - image|^2 / |walk - mean|^2: 1 is the walk itself, 0 is the mean, less is further off."""
    return 1.0 - float(np.mean((walk - image) ** 2) / max(np.mean((walk - mean) ** 2), 1e-12))


def rows_of(pair: Pair, methods: dict[str, Restore]) -> list[DetailRow]:
    """Every method on one frame, blind; the teacher's mean and its walk must be among them."""
    camera, frame = ps.Camera.estimate(pair.frame), pair.frame.astype(np.float32)
    images, seconds = {}, {}
    for name, restore in methods.items():
        start = time.perf_counter()
        images[name] = restore(frame, camera)
        seconds[name] = time.perf_counter() - start
    reference = high_power(np.asarray(pair.reference, np.float64))
    found = []
    for name, image in images.items():
        psnr_db, ssim = datasets.score(pair, image)
        found.append(
            DetailRow(
                frame=pair.key, method=name, psnr_db=psnr_db, ssim=ssim, power=high_power(image) / reference,
                of_the_walk=reproduced(image, images[MEAN], images[WALK]), seconds=seconds[name],
            )
        )  # fmt: skip
    return found


def methods_of(teacher: ps.Restorer, student: ps.Restorer) -> dict[str, Restore]:
    """What is compared; the student walks as many steps as its bundle says."""
    steps = student.bundle.manifest.defaults.steps

    def of_student(knob: float) -> Restore:
        return lambda frame, camera: _image(student, frame, camera, steps=steps, detail=knob)

    return {
        MEAN: lambda frame, camera: _image(teacher, frame, camera, steps=1),
        WALK: lambda frame, camera: _image(teacher, frame, camera, steps=HEUN_STEPS, sampler="heun"),
        **{f"student, k = {knob:g}, K = {steps}": of_student(knob) for knob in KNOBS},
    }


def _image(restorer: ps.Restorer, frame: Image, camera: ps.Camera, **how: Any) -> Image:
    return np.asarray(restorer.restore(frame, camera=camera, **how).image, np.float32)


def table(rows: Sequence[DetailRow], set_name: str) -> str:
    """Markdown: means over a set's images, median seconds."""
    mine = [row for row in rows if row.frame.startswith(f"{set_name}/")]
    lines = [
        f"| {set_name}, {len({row.frame for row in mine})} frames | PSNR, dB | SSIM | power, 1/4 to 1/2 cycle/px | "
        "of the walk's detail | median s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for method in dict.fromkeys(row.method for row in mine):
        one = [row for row in mine if row.method == method]
        psnr, ssim, power, walk = (
            statistics.mean(getattr(row, key) for row in one) for key in ("psnr_db", "ssim", "power", "of_the_walk")
        )
        seconds = statistics.median(row.seconds for row in one)
        lines.append(f"| {method} | {psnr:.2f} | {ssim:.3f} | {power:.0%} | {walk:.0%} | {seconds:.3f} |")
    return "\n".join(lines) + "\n"


def run(options: argparse.Namespace) -> dict[str, Any]:
    rows: list[DetailRow] = []
    with TemporaryDirectory() as folder:
        teacher, student = (
            ps.load(pack(source, Path(folder) / f"{name}{SUFFIX}"), precision="fp32", threads=options.threads)
            for name, source in (("teacher", options.teacher), ("student", options.student))
        )
        with closing(teacher), closing(student):
            methods = methods_of(teacher, student)
            for set_name in options.sets:
                for pair in datasets.pairs(options.data, set_name, options.split, options.limit):
                    rows += rows_of(pair, methods)
                    print(f"{pair.key}: {rows[-1].of_the_walk:.0%} of the walk's detail", file=sys.stderr, flush=True)
    return {
        "command": shlex.join(["python", "-m", "benchmarks.detail", *options.arguments]),
        "machine": machine.record(), "rows": [asdict(row) for row in rows],
    }  # fmt: skip


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds paired/")
    parser.add_argument("--teacher", required=True, metavar="RUN|BUNDLE")
    parser.add_argument("--student", required=True, metavar="RUN|BUNDLE", help="with a detail knob")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(DEFAULT_SETS))
    parser.add_argument("--split", default="val", choices=("val", "test"))
    parser.add_argument("--limit", type=int, default=6, metavar="N", help="frames of each set (6)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    options.arguments = list(arguments)
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    document = run(options)
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    rows = [DetailRow(**row) for row in document["rows"]]
    print("\n".join(table(rows, set_name) for set_name in options.sets))


if __name__ == "__main__":
    main()
