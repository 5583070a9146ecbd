"""photonstep beside the peers in one run, on the same machine and the same real frames: dB, milliseconds, ratios.

    python -m benchmarks.peers --data ../shared/data --json peers.json --markdown docs/results_peers.md

One raw frame in, blind: all get the same `Camera.estimate` of it. Afterwards they take turns on 512x512 uint16 frames,
camera given: Open Image Denoise (fast and high; its filter alone, and from frame to frame), `base` and `live` at K = 1
and 2, ONNX Runtime driven by hand, and the teacher's 50-step DDIM loop in plain PyTorch. A loop's time does not depend
on its weights: without ``--teacher`` a network of the teacher's shape is timed, and its pixels are not scored.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import photonstep as ps

from . import datasets, machine, peer_rivals, tables
from .datasets import SETS, Pair
from .methods import Method, build
from .peer_marks import judge, marks_lines, ratios
from .quality import cameras_of, measure_pair
from .rungs import LOOP, LOOP_STEPS
from .summary import Row
from .turns import Times, summary, take_turns

DEFAULT_SETS = tuple(name for name, spec in SETS.items() if "test" in spec.splits)
OURS = tuple(f"{tier}_k{k}" for tier in peer_rivals.TIERS for k in peer_rivals.STEPS)
SIDE_PX = 512
ROUNDS, LOOP_ROUNDS, TIMED_FRAMES = 40, 3, 8
TO_16_BIT = 16  # eight-bit frames are timed as a twelve-bit camera's


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The whole comparison; the document is saved when the frames are scored, and again when all are timed."""
    document: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.peers", *options.arguments]),
        "machine": machine.record(),
        "settings": {
            "limit": options.limit, "threads": options.threads, "rounds": options.rounds, "teacher": options.teacher,
            "loop_steps": options.loop_steps, "loop_limit": options.loop_limit,
        },
    }  # fmt: skip
    with ExitStack() as stack:
        loop = stack.enter_context(peer_rivals.teacher_loop(options.teacher, threads=options.threads))
        restorers = {
            tier: stack.enter_context(
                ps.load(bundle, device="cpu", precision=options.precision, threads=options.threads)
            )
            for tier, bundle in (("base", options.base), ("live", options.live))
        }
        document["ours"] = {
            tier: {"sha256": r.bundle.sha256, "backend": r.backend_name, "precision": r.precision}
            for tier, r in restorers.items()
        }
        rows = _scored_part(options, document, restorers, loop)
        times = _timed_part(options, document, restorers, loop)
    document |= {"ratios": ratios(times, OURS), "marks": [mark.as_dict() for mark in judge(rows, times)]}
    _save(options.json, document)
    return document


def _scored_part(
    options: argparse.Namespace, document: dict[str, Any], restorers: dict[str, ps.Restorer], loop: ps.Restorer
) -> list[Row]:
    trained = loop if options.teacher else None
    wanted = peer_rivals.scored(restorers, threads=options.threads, loop=trained, loop_steps=options.loop_steps)
    made, absent = build(wanted)
    if trained is None:
        absent[LOOP] = "not measured (no trained teacher was given: --teacher)"
    document["titles"] = {recipe.name: recipe.title for recipe in wanted} | {LOOP: peer_rivals.TIMED_TITLES[LOOP]}
    document["not_measured"] = absent
    rows = _scored(options, made)
    document["rows"] = [row.as_dict() for row in rows]
    _save(options.json, document)
    return rows


def _timed_part(
    options: argparse.Namespace, document: dict[str, Any], restorers: dict[str, ps.Restorer], loop: ps.Restorer
) -> Times:
    frames = timing_frames(options.data, options.sets, options.splits, options.side, options.timed_frames)
    runs, not_timed = peer_rivals.timed(
        list(frames.values()), restorers, threads=options.threads, loop=loop, loop_steps=options.loop_steps
    )
    times = take_turns(runs, rounds=options.rounds, rare=[LOOP], rare_rounds=options.loop_rounds, progress=_round_done)
    document["timing"] = {
        "frames": list(frames), "side_px": options.side, "threads": options.threads, "not_timed": not_timed,
        "rivals": {name: summary(taken) | {"times_ms": taken} for name, taken in times.items()},
    }  # fmt: skip
    return times


def timing_frames(
    data: Path, sets: Sequence[str], splits: Sequence[str], side_px: int, count: int
) -> dict[str, NDArray[np.uint16]]:
    """Real frames by key, (side, side) uint16, evenly from the sets that have any of that size in whole counts.

    Raises
    ------
    ValueError : none has
    """
    each = max(1, count // max(1, len(sets)))
    found: dict[str, NDArray[np.uint16]] = {}
    for pair in _pairs(data, sets, splits, max(each, 2)):
        if pair.frame.shape == (side_px, side_px) and pair.frame.dtype.kind == "u":
            factor = TO_16_BIT if pair.frame.dtype == np.uint8 else 1
            found[pair.key] = np.ascontiguousarray(pair.frame.astype(np.uint16) * factor)
    if not found:
        raise ValueError(f"no frame of {side_px}x{side_px} whole counts in {', '.join(sets)}; choose another --side")
    return dict(list(found.items())[:count])


def render(document: dict[str, Any]) -> str:
    """Markdown: marks, ratios, times, quality."""
    rows = [Row(**row) for row in document["rows"]]
    timing = document["timing"]
    ours = ", ".join(f"`{tier}` {facts['backend']} {facts['precision']}" for tier, facts in document["ours"].items())
    note = (
        f"photonstep: {ours}. {timing['side_px']}x{timing['side_px']} uint16, {len(timing['frames'])} real frames, "
        f"camera given; rivals take turns in an order drawn anew every round, {timing['threads']} threads (ONNX "
        "Runtime by hand takes its default). Brackets: 95 % over rounds."
    )
    loop = "" if document["settings"]["teacher"] else " Its weights are untrained: time only."
    steps = document["settings"]["loop_steps"]
    parts = [
        "# photonstep beside the peers", tables.machine_line(document), "## Marks",
        "Asked for is K = 1; K = 2 stands beside it. A mark is passed where the PSNR on the mean over sets and the "
        "speed against the bare filter are.",
        _markdown(marks_lines(document["marks"])), "## How many times as long the rivals take", note,
        _markdown(_ratio_lines(document)),
        f"The loop: {steps} DDIM steps of the teacher in plain PyTorch, float32.{loop}",
        tables.quality_table(rows, document),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _ratio_lines(document: dict[str, Any]) -> list[list[str]]:
    timing = document["timing"]
    lines = [["", "median ms", "p95 ms", "runs", *(peer_rivals.TIMED_TITLES[name] for name in OURS)]]
    for name, title in peer_rivals.TIMED_TITLES.items():
        if name in timing["not_timed"]:
            lines.append([title, timing["not_timed"][name], "", "", *("" for _ in OURS)])
            continue
        entry, found = timing["rivals"][name], document["ratios"].get(name, {})
        cells = [
            "" if mine not in found else f"{r['ratio']:.1f} ({r['low']:.1f} to {r['high']:.1f})"
            for mine, r in ((mine, found.get(mine, {})) for mine in OURS)
        ]
        lines.append([title, f"{entry['median_ms']:.1f}", f"{entry['p95_ms']:.1f}", str(entry["runs"]), *cells])
    return lines


def _scored(options: argparse.Namespace, made: Sequence[Method]) -> list[Row]:
    """Every method on every frame; the loop on the first few of each set."""
    others, loop = peer_rivals.split_loop(made)
    rows: list[Row] = []
    seen: dict[str, int] = {}
    for pair in _pairs(options.data, options.sets, options.splits, options.limit):
        seen[pair.set_name] = seen.get(pair.set_name, 0) + 1
        chosen = [*others, loop] if loop and seen[pair.set_name] <= options.loop_limit else others
        rows += measure_pair(pair, chosen, cameras_of(pair, chosen), {})
        figures = ", ".join(f"{r.method} {r.psnr_db:.2f}" for r in rows[-len(chosen) :] if r.psnr_db is not None)
        print(f"{pair.key}: {figures}", file=sys.stderr, flush=True)
    return rows


def _pairs(data: Path, sets: Sequence[str], splits: Sequence[str], limit: int | None) -> Iterator[Pair]:
    for set_name in sets:
        for split in SETS[set_name].splits:
            if split in splits:
                yield from datasets.pairs(data, set_name, split, limit)


def _round_done(index: int) -> None:
    print(f"round {index + 1}", file=sys.stderr, flush=True)


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *body = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([head, "| " + " | ".join("---" for _ in lines[0]) + " |", *body])


def _save(path: Path | None, document: dict[str, Any]) -> None:
    if path is not None:
        part = path.with_name(f"{path.name}.part")
        part.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        part.replace(path)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds paired/")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(DEFAULT_SETS))
    parser.add_argument("--splits", nargs="+", choices=("val", "test"), default=["test"])
    parser.add_argument("--limit", type=int, metavar="N", help="at most N frames per set and split (all)")
    parser.add_argument("--base", default="base", help="bundle, by name or path")
    parser.add_argument("--live", default="live", help="bundle, by name or path")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "int8"), help="of photonstep")
    parser.add_argument("--teacher", metavar="RUN|BUNDLE", help="trained teacher of the loop")
    parser.add_argument("--loop-steps", type=int, default=LOOP_STEPS)
    parser.add_argument(
        "--loop-limit", type=int, default=1, metavar="N", help="frames of each set that the loop scores"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="timed calls of each rival")
    parser.add_argument("--loop-rounds", type=int, default=LOOP_ROUNDS)
    parser.add_argument("--side", type=int, default=SIDE_PX, metavar="PX", help="side of the frames that are timed")
    parser.add_argument("--timed-frames", type=int, default=TIMED_FRAMES, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    options.arguments = list(arguments)
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    report = render(run(options))
    print(report)
    if options.markdown:
        options.markdown.write_text(report, encoding="utf-8")


if __name__ == "__main__":
    main()
