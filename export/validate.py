"""Is a compressed student as good as its teacher? ``python -m photonstep.export.validate STUDENT --against TEACHER``.

Both restore the same simulated photographs of held-out scenes, in every noise bin, and of empty fields; the gates of
`export.gates` judge what the student loses. The same call gives the same numbers. ``docs/validation.md`` says more.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..runtime.bundle import Bundle
from ..runtime.errors import PhotonstepError, TrainingError
from . import noise_bins
from .gates import GATES, Gates
from .noise_bins import BLANK_PHOTONS, NOISES, PHOTONS
from .side_by_side import Bench, Counter, Progress, open_side
from .validation import Validation

SCENES, BLANK_FRAMES, SIZE_PX = 6, 8, 256


def validate(
    bundle: str | Path | Bundle,
    against: str | Path | Bundle,
    *,
    precision: str = "fp32",
    against_precision: str = "fp32",
    steps: int | None = None,
    against_steps: int | None = None,
    gates: Gates = GATES["total"],
    frames: Sequence[NDArray[Any]] | None = None,
    data: Path | None = None,
    scenes: int = SCENES,
    size_px: int = SIZE_PX,
    photons: Sequence[float] = PHOTONS,
    blank_frames: int = BLANK_FRAMES,
    seed: int = 0,
    threads: int = 1,
    progress: Progress | None = None,
) -> Validation:
    """Measure what a student loses against its teacher, or a precision against another one of the same bundle.

    Parameters
    ----------
    bundle, against : student and teacher: a name, a path, or a loaded bundle
    precision, against_precision : as `runtime.restore.load` takes them
    steps, against_steps : network evaluations; None takes the bundle's default
    gates : the limits; ``GATES["stage"]`` for one step of compression, ``GATES["total"]`` for all together
    frames : clean (H, W) frames of one's own to photograph as well
    data : folder that holds ``clean/``: its ``val`` frames are photographed as well
    scenes : number of simulated scenes in every bin; None of the others counts
    size_px : side of the frames
    photons : light levels, photoelectrons at the scenes' brightest places
    blank_frames : empty fields for every light level and kind of noise; 0 leaves them out
    seed : of scenes and noise
    threads : CPU threads; more than one may change the last digits
    progress : called with (done, all) restored frames

    Raises
    ------
    TrainingError : the two do different tasks, or there is nothing to photograph
    BundleError, BackendError : a bundle or precision cannot be opened
    """
    student = open_side(bundle, precision, steps, threads)
    teacher = open_side(against, against_precision, against_steps, threads)
    tasks = [(s.restorer.bundle.manifest.task, s.restorer.bundle.manifest.scale) for s in (teacher, student)]
    if tasks[0] != tasks[1]:
        raise TrainingError(f"the teacher's task is {tasks[0]}, the student's {tasks[1]}; expected one task for both")
    scale = tasks[0][1]
    groups = {"simulated": noise_bins.simulated_scenes(scenes, size_px * scale, seed)}
    if data is not None:
        groups["real"] = noise_bins.real_scenes(data, size_px * scale)
    if frames is not None:
        groups["given"] = noise_bins.given_scenes(frames, size_px * scale)
    groups = {name: group for name, group in groups.items() if group}
    if not groups:
        raise TrainingError("there is no scene to photograph; give scenes=1 or more, data or frames")
    everything = sum(map(len, groups.values())) * len(photons) + blank_frames * len(BLANK_PHOTONS)
    bench = Bench(teacher, student, scale, seed, Counter(progress, len(NOISES) * everything))
    try:
        bins = [
            found
            for name, group in groups.items()
            for found in bench.noise_bins(name, group, photons, pictured=name == next(iter(groups)))
        ]
        blanks = list(bench.blank_bins(size_px, blank_frames)) if blank_frames else []
        return Validation(
            student=student.subject(), teacher=teacher.subject(), gates=gates, bins=tuple(bins), blanks=tuple(blanks),
            settings={
                "scenes": {name: len(group) for name, group in groups.items()}, "size_px": size_px,
                "photons": list(map(float, photons)), "blank_frames": blank_frames, "seed": seed, "threads": threads,
            },
            notes=tuple(bench.notes), examples=tuple(bench.examples), spectra=bench.spectra(),
        )  # fmt: skip
    finally:
        student.restorer.close()
        teacher.restorer.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns 0 when every gate is passed, 1 when one is missed, 2 when nothing could be measured."""
    from rich.console import Console

    from .validation_report import check_free, table, write_reports

    options = _parse(arguments)
    console = Console()
    try:
        check_free((options.json, options.html, options.png), overwrite=options.overwrite)
        validation = validate(
            options.bundle, options.against, precision=options.precision,
            against_precision=options.against_precision, steps=options.steps, against_steps=options.against_steps,
            gates=GATES[options.gate], data=options.data, scenes=options.scenes, size_px=options.size,
            blank_frames=options.blank_frames, seed=options.seed, threads=options.threads, progress=_show_progress,
        )  # fmt: skip
        console.print(table(validation))
        for path in write_reports(
            validation, json_path=options.json, html_path=options.html, png_path=options.png,
            overwrite=options.overwrite,
        ):  # fmt: skip
            console.print(f"wrote {path}")
    except PhotonstepError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0 if validation.passed else 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="the gates that a compressed student must pass against its teacher")
    parser.add_argument("bundle", help="the student: a .photonstep file or a shipped name")
    parser.add_argument("--against", required=True, help="the teacher, or the same bundle for another precision")
    parser.add_argument("--precision", default="fp32", help="of the student: fp32, bf16, int8")
    parser.add_argument("--against-precision", default="fp32", help="of the teacher")
    parser.add_argument("--steps", type=int, help="network evaluations of the student; default: the bundle's")
    parser.add_argument("--against-steps", type=int, help="network evaluations of the teacher; default: the bundle's")
    parser.add_argument("--gate", choices=sorted(GATES), default="total", help="0.1 dB a stage or 0.3 dB in total")
    parser.add_argument("--data", type=Path, help="folder that holds clean/: its val frames are photographed too")
    parser.add_argument("--scenes", type=int, default=SCENES, help="simulated scenes in every noise bin")
    parser.add_argument("--size", type=int, default=SIZE_PX, metavar="PX", help="side of the frames")
    parser.add_argument("--blank-frames", type=int, default=BLANK_FRAMES, help="empty fields for every light level")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="more than one may change the last digits")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--html", type=Path, help="self-contained report with pictures")
    parser.add_argument("--png", type=Path, help="the report's pictures on one sheet")
    parser.add_argument("--overwrite", action="store_true")
    return parser.parse_args(arguments)


def _show_progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done} of {total} frames", end="\n" if done == total else "", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
