"""The ladder: teacher -> distilled -> pruned -> INT8 on every real set, blind; what each stage loses and saves.

    python -m benchmarks.ladder --data ../shared/data --teacher runs/teacher --distilled runs/distilled --int8 base

The teacher stands on it twice: as the 50-step DDIM loop in plain PyTorch from the measured level, on a few frames of
each set because it is slow, and with the best of K = 1, 2, 4, which is chosen on the ``val`` splits alone. Every rung
gets the same `Camera.estimate` of the one frame. Losses are means over the same images.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import photonstep as ps
from photonstep.runtime.errors import PhotonstepError

from . import datasets, ladder_tables, machine, students
from .datasets import SETS, Pair
from .rungs import STAGES, Rung, opened
from .summary import Row

LOOP_LIMIT = 4
SAVE_EVERY_S = 30.0


@dataclass(frozen=True, kw_only=True)
class LadderRow(Row):
    """A restored image's scores, with the restored light's excess over the frame's in percent."""

    bias_percent: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure(
    rungs: Sequence[Rung], pairs: Sequence[tuple[Pair, int]], cached: dict[tuple[str, str], LadderRow]
) -> Iterator[LadderRow]:
    """Scores of every rung on every image.

    Parameters
    ----------
    pairs : images, each with its place in its set's split: rungs with a limit take the first ones
    cached : rows by (frame, rung) of an earlier run, taken where nothing changed
    """
    for pair, place in pairs:
        camera = _camera(pair)
        for rung in rungs:
            if rung.limit is not None and place >= rung.limit:
                continue
            mark = hashlib.sha256(f"{rung.settings} {camera!r}".encode()).hexdigest()[:16]
            known = cached.get((pair.key, rung.name))
            yield known if known is not None and known.fingerprint == mark else _score(pair, rung, camera, mark)


def bias_percent(pair: Pair, image: Any, camera: ps.Camera) -> float:
    """How much light the restored image holds beyond the measured frame, in percent of it; offset as estimated."""
    measured = float(np.mean(pair.frame, dtype=np.float64)) - float(np.mean(camera.offset_adu))
    restored = float(np.mean(image, dtype=np.float64)) - float(np.mean(camera.offset_adu))
    return 100.0 * (restored / measured - 1.0) if measured > 0 else float("nan")


def images(options: argparse.Namespace) -> Iterator[tuple[Pair, int]]:
    """The images of all chosen sets and splits with their place in it, the first plane of every field first."""
    for set_name in options.sets:
        for split in SETS[set_name].splits:
            if split in options.splits:
                for place, pair in enumerate(datasets.pairs(options.data, set_name, split, options.limit)):
                    yield pair, place


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The whole benchmark; the document is saved as it grows, also when it is interrupted."""
    previous = json.loads(options.json.read_text()) if options.resume and options.json.exists() else {}
    rows = {(r["frame"], r["method"]): LadderRow(**r) for r in previous.get("rows", [])}
    stages = {name: getattr(options, name) for name in STAGES if getattr(options, name)}
    with opened(
        options.teacher, stages, threads=options.threads, loop_limit=options.loop_limit, steps=options.steps
    ) as rungs:
        document: dict[str, Any] = {
            "command": shlex.join(["python", "-m", "benchmarks.ladder", *options.arguments]),
            "machine": machine.record(),
            "settings": {"limit": options.limit, "loop_limit": options.loop_limit, "threads": options.threads},
            "rungs": [rung.facts() for rung in rungs],
        }
        names, saved = {rung.name for rung in rungs}, time.monotonic()
        found: dict[tuple[str, str], LadderRow] = {}
        try:
            for row in measure(rungs, list(images(options)), rows):
                found[row.frame, row.method] = row
                _progress(row)
                if time.monotonic() - saved > SAVE_EVERY_S:
                    _save(options.json, document | {"rows": [r.as_dict() for r in (rows | found).values()]})
                    saved = time.monotonic()
        finally:
            kept = {key: row for key, row in rows.items() if key[1] in names}
            document["rows"] = [row.as_dict() for row in (kept | found).values()]
            _save(options.json, document)
        if not options.no_speed:
            document["speed"] = students.measure_rungs(rungs, threads=options.threads)
            _save(options.json, document)
    return document


def rows_of(document: dict[str, Any]) -> list[LadderRow]:
    return [LadderRow(**row) for row in document["rows"]]


def _camera(pair: Pair) -> ps.Camera | PhotonstepError:
    try:
        return ps.Camera.estimate(pair.frame)
    except PhotonstepError as error:
        return error


def _score(pair: Pair, rung: Rung, camera: ps.Camera | PhotonstepError, mark: str) -> LadderRow:
    start = time.perf_counter()
    psnr_db = ssim = bias = message = None
    try:
        if isinstance(camera, PhotonstepError):
            raise camera
        image = rung.restore(pair.frame, camera)
        psnr_db, ssim = datasets.score(pair, image)
        bias = bias_percent(pair, image, camera)
    except PhotonstepError as error:
        message = str(error)
    return LadderRow(
        frame=pair.key, set_name=pair.set_name, split=pair.split, field=pair.field, modality=pair.modality,
        method=rung.name, psnr_db=psnr_db, ssim=ssim, seconds=time.perf_counter() - start, fingerprint=mark,
        error=message, bias_percent=bias,
    )  # fmt: skip


def _save(path: Path | None, document: dict[str, Any]) -> None:
    if path is None:
        return
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def _progress(row: LadderRow) -> None:
    figures = row.error if row.psnr_db is None else f"{row.psnr_db:6.2f} dB {row.ssim:.3f}"
    print(f"{row.frame:40s} {row.method:12s} {figures} {row.seconds:6.2f} s", file=sys.stderr, flush=True)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds paired/")
    parser.add_argument("--teacher", required=True, metavar="RUN|BUNDLE")
    parser.add_argument("--distilled", metavar="RUN|BUNDLE")
    parser.add_argument("--pruned", metavar="RUN|BUNDLE", help="default: the float32 network of --int8")
    parser.add_argument("--int8", metavar="BUNDLE", help="a bundle with an int8 network")
    parser.add_argument("--steps", type=int, choices=(1, 2, 4), help="evaluations of each stage; default: its bundle's")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--splits", nargs="+", choices=("val", "test"), default=["val", "test"])
    parser.add_argument("--limit", type=int, metavar="N", help="at most N frames of each set and split")
    parser.add_argument(
        "--loop-limit", type=int, default=LOOP_LIMIT, metavar="N", help="the same for the 50-step loop (default 4)"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-speed", action="store_true", help="leave out the timing")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--resume", action="store_true", help="take what --json already holds")
    options = parser.parse_args(arguments)
    if options.resume and options.json is None:
        parser.error("--resume takes up what --json holds; give --json FILE")
    options.arguments = list(arguments)
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    document = run(options)
    text = ladder_tables.render(document, rows_of(document))
    print(text)
    if options.markdown:
        options.markdown.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
