"""Markdown from a results document.

    python -m benchmarks.tables results.json

Prints what ``python -m benchmarks.quality`` printed when it wrote that file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .bias import PHOTONS, worst
from .datasets import SETS
from .marks import Mark, judge
from .summary import Group, Row, best_gaussian, gain_of, groups, mean_of

OURS = "base_k1"
VERDICTS = {True: "passed", False: "**missed**", None: "not measured"}


def render(document: Mapping[str, Any]) -> str:
    """The whole report: the marks, quality, time, bias and speed, as far as the document holds them."""
    rows = [Row(**row) for row in document["rows"]]
    parts = ["# Measured results", machine_line(document), "## Marks", marks_table(judge(rows, document))]
    parts.append(quality_table(rows, document))
    if any(row.method == OURS for row in rows):
        parts += ["## Gain over the peers, image by image", gain_table(rows, document)]
    if "timing" in document:
        parts += ["## Time for one 512x512 frame", timing_table(document["timing"], document["titles"])]
    if "bias" in document:
        parts += ["## Photon bias", bias_table(document["bias"])]
    if "speed" in document:
        parts += ["## Speed", speed_table(document["speed"])]
    return "\n\n".join(parts) + "\n"


def machine_line(document: Mapping[str, Any]) -> str:
    facts = document["machine"]
    limit = document["settings"]["limit"]
    partial = "" if limit is None else f" **Only {limit} frames per set.**"
    return (
        f"{facts['cpu']}, {facts['cpu_count']} cores, Python {facts['python']}, commit {facts['commit']}, "
        f"{facts['utc']}. Command: `{document['command']}`.{partial}"
    )


def quality_table(rows: Sequence[Row], document: Mapping[str, Any]) -> str:
    """One table of PSNR / SSIM for each set and split, the FMD modalities as columns beside their set."""
    by_set: dict[tuple[str, str], list[Group]] = {}
    for group in groups(rows):
        by_set.setdefault((group.set_name, group.split), []).append(group)
    parts: list[str] = []
    for (set_name, split), columns in by_set.items():
        mean = next((m for name in document["titles"] if (m := mean_of(rows, columns[0], name))), None)
        size = "" if mean is None else f", {_count(mean.images, 'image')} of {_count(mean.fields, 'field')}"
        parts.append(f"## {set_name}, {split}: protocol {SETS[set_name].protocol}{size}")
        parts.append(_quality_columns(rows, columns, document))
    return "\n\n".join(parts)


def _quality_columns(rows: Sequence[Row], columns: Sequence[Group], document: Mapping[str, Any]) -> str:
    head = ["method", "PSNR dB / SSIM", "95 % over fields"] + [group.modality or "" for group in columns[1:]]
    lines = [head]
    for method, title in document["titles"].items():
        if method.startswith("gaussian_"):
            continue
        if method in document["not_measured"]:
            lines.append([title, document["not_measured"][method]] + [""] * (len(head) - 2))
            continue
        lines.append([title, *_cells(rows, columns, [method] * len(columns))])
        if method == "raw":
            lines += _gaussian_lines(rows, columns)
    return _markdown(lines)


def _gaussian_lines(rows: Sequence[Row], columns: Sequence[Group]) -> list[list[str]]:
    """The oracle's Gaussian: one sigma for the whole set, and, beside modalities, each one's own."""
    best = best_gaussian(rows, columns[0])
    if best is None:
        return []
    lines = [[f"best Gaussian (sigma {_sigma(best)} px)", *_cells(rows, columns, [best] * len(columns))]]
    if len(columns) > 1:
        own = [best_gaussian(rows, group) or best for group in columns[1:]]
        cells = _cells(rows, columns[1:], own)
        cells = [f"{cells[0]}", *cells[2:]]
        labelled = [f"{cell} (sigma {_sigma(method)})" for cell, method in zip(cells, own, strict=True)]
        lines.append(["best Gaussian of each modality", "", "", *labelled])
    return lines


def _cells(rows: Sequence[Row], columns: Sequence[Group], methods: Sequence[str]) -> list[str]:
    """PSNR / SSIM of every column, the first one's interval after it."""
    cells: list[str] = []
    for index, (group, method) in enumerate(zip(columns, methods, strict=True)):
        mean = mean_of(rows, group, method)
        cells.append(_without_mean(rows, group, method) if mean is None else f"{mean.psnr_db:.2f} / {mean.ssim:.3f}")
        if index == 0:
            interval = None if mean is None else mean.psnr_95
            cells.append("" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}")
    return cells


def _without_mean(rows: Sequence[Row], group: Group, method: str) -> str:
    chosen = group.rows(rows, method)
    failed = sum(row.psnr_db is None for row in chosen)
    if failed:
        return f"failed on {failed} of {_count(len(chosen), 'image')}"
    return f"incomplete: {_count(len(chosen), 'image')}" if chosen else "not measured"


def gain_table(rows: Sequence[Row], document: Mapping[str, Any]) -> str:
    """PSNR of base at K = 1 minus that of every other method on the same images, with its interval over fields."""
    columns = groups(rows)
    lines = [["base K = 1, dB above", *(group.title for group in columns)]]
    for method, title in document["titles"].items():
        gains = [gain_of(rows, group, OURS, method) for group in columns]
        if method != OURS and any(gain is not None for gain in gains):
            lines.append([title, *("" if gain is None else _gain(*gain) for gain in gains)])
    return _markdown(lines)


def _gain(mean_db: float, interval: tuple[float, float] | None) -> str:
    return f"{mean_db:+.2f}" if interval is None else f"{mean_db:+.2f} ({interval[0]:+.2f} to {interval[1]:+.2f})"


def timing_table(timing: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """Median time of every method, and how many times as long as base at K = 1 it takes."""
    methods = timing["methods"]
    unit = methods.get("base_k1", {}).get("median_ms")
    lines = [["method", "median ms", "least ms", "runs", "times base K = 1"]]
    for name, entry in methods.items():
        title = titles.get(name) or titles[name.removesuffix("_filter_only")] + ", its filter alone"
        ratio = "" if unit is None else f"{entry['median_ms'] / unit:.1f}"
        lines.append([title, f"{entry['median_ms']:.1f}", f"{entry['min_ms']:.1f}", str(entry["runs"]), ratio])
    return f"{timing['note']}\n\n{_markdown(lines)}"


def bias_table(bias: dict[str, Any]) -> str:
    """The worst field at every light level, in percent."""
    worst_of = {(c["bundle"], c["steps"], c["camera"], c["photons"]): c["bias_percent"] for c in worst(bias)}
    lines = [["bundle", "K", "camera", *(f"{p:g} photons" for p in PHOTONS)]]
    for bundle, steps, camera in dict.fromkeys(key[:3] for key in worst_of):
        values = [worst_of.get((bundle, steps, camera, p)) for p in PHOTONS]
        lines.append([bundle, str(steps), camera, *("no camera" if v is None else f"{v:+.2f} %" for v in values)])
    fields = len({case["field"] for case in bias["cases"]})
    note = f"Restored mean over true mean, minus 1; the worst of {fields} fields. Simulated camera: {bias['camera']}."
    return f"{note}\n\n{_markdown(lines)}"


def speed_table(speed: Mapping[str, Any]) -> str:
    lines = [["bundle", "frame", "K", "p50 ms", "p99 ms", "fps", "outside the network", "backend"]]
    for row in speed["rows"]:
        latency = row["latency"]
        share = f"{100 * latency['outside_network_share']:.0f} %"
        times = [f"{latency[key]:.1f}" for key in ("p50_ms", "p99_ms", "fps")]
        frame = f"{row['height_px']}x{row['width_px']}"
        lines.append([row["tier"], frame, str(row["steps"]), *times, share, f"{row['backend']} {row['precision']}"])
    note = f"uint16 in to uint16 out, camera given, {speed['threads']} CPU threads."
    return f"{note} `import photonstep`, with `load` and `Camera`: {speed['import_s']:.2f} s.\n\n{_markdown(lines)}"


def marks_table(marks: Sequence[Mark]) -> str:
    lines = [["mark", "target", "measured", "verdict"]]
    lines += [[mark.name, mark.target, mark.measured, VERDICTS[mark.passed]] for mark in marks]
    return _markdown(lines)


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *body = ["| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines]
    return "\n".join([head, "| " + " | ".join("---" for _ in lines[0]) + " |", *body])


def _sigma(method: str) -> str:
    return method.removeprefix("gaussian_")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="JSON of python -m benchmarks.quality")
    print(render(json.loads(parser.parse_args().results.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
