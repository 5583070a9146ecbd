"""Markdown of the live benchmark's record: marks first, then latencies, then what each part found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .live_marks import judge
from .tables import marks_table

STAGES = ("queue", "compute", "network", "deliver", "total")
Record = Mapping[str, Any]


def render(document: Record) -> str:
    """The whole page, as far as the parts were measured."""
    parts = {name: entry["found"] for name, entry in document["parts"].items()}
    sections = ["# The live engine, measured", _setting(document), "## Marks", marks_table(judge(parts))]
    sections += ["## Latency", _LEGEND, _latency_table(parts)]
    for name, section in _SECTIONS.items():
        if name in parts:
            sections += section(parts[name])
    sections += ["## When each part was measured", _origins(document)]
    return "\n\n".join(sections) + "\n"


_LEGEND = (
    "ms. queue: put to start; compute: the work on a frame, preview included; network: the part of it inside the "
    "network; deliver: result to consumer; total: from when the frame was due (flat out: from put) to the consumer."
)


def _setting(document: Record) -> str:
    settings, machine = document["settings"], document["machine"]
    return (
        f"{machine['cpu']}, {machine['cpu_count']} cores, Python {machine['python']}, commit {machine['commit']}. "
        f"{settings['side_px']}x{settings['side_px']} uint16 of a simulated camera that looks at a real scene, bundle "
        f"`{settings['bundle']}`, {settings['precision']}, {settings['threads']} threads. Command: "
        f"`{document['command']}`."
    )


def _latency_table(parts: Mapping[str, Record]) -> str:
    lines = [["run", "fps", "stage", "p50", "p95", "p99", "p99.9", "max", "outside the network", "dropped"]]
    for title, run in _runs(parts):
        for index, stage in enumerate(STAGES):
            values = run["stages"][stage]
            if values is None:
                continue
            cells = [f"{values[p]:.2f}" for p in ("p50", "p95", "p99", "p99.9", "max")]
            first = [title, _number(run["fps"], ".1f")] if index == 0 else ["", ""]
            share = run["outside_network_share"]
            last = ["" if share is None else f"{share:.1%}", _dropped(run)] if index == 0 else ["", ""]
            lines.append([*first, stage, *cells, *last])
    return _markdown(lines)


def _runs(parts: Mapping[str, Record]) -> Iterator[tuple[str, Record]]:
    """Runs with latencies and how the table names them."""
    named = {
        "paced": [("paced", ())],
        "flatout": [("flat out", ("preview",)), ("flat out, no preview", ("no_preview",))],
        "stale": [("faster camera", ())],
        "jitter": [("on one core, 1 thread", ("one_core",)), ("on all cores", ("all_cores",))],
        "cameras": [
            *((f"two cameras, one restorer: {i + 1}", ("shared", "cameras", i)) for i in range(2)),
            *((f"two cameras, a restorer each: {i + 1}", ("apart", "cameras", i)) for i in range(2)),
        ],
        "deadline": [("ladder under load", ())],
    }
    for name, runs in named.items():
        for title, way in runs if name in parts else ():
            found: Any = parts[name]
            for step in way:
                found = found[step]
            yield title, found


def _paced(part: Record) -> list[str]:
    camera = part["camera"]
    late, age = camera["late_ms"], part["staleness"]["age_ms"]
    return [
        "## The paced camera's own jitter",
        f"{camera['frames']} frames at {camera['fps']:.3f} fps of {camera['asked_fps']:.3f} asked: handed in after "
        f"they were due by p50 {late['p50']:.2f}, p99 {late['p99']:.2f}, p99.9 {late['p99.9']:.2f}, at most "
        f"{late['max']:.2f} ms; drift from the first to the last tenth {camera['drift_ms']:+.3f} ms. A shown frame was "
        f"put p50 {age['p50']:.1f}, at most {age['max']:.1f} ms before.",
    ]


def _stale(part: Record) -> list[str]:
    found, fps = part["staleness"], part["camera"]["fps"]
    age, outdated = found["age_ms"], found["outdated_ms"]
    return [
        "## Staleness",
        "A result is outdated from when a newer frame's `put` had returned; with `latest` that must not be before the "
        f"work on it began. {found['violations']} of {found['results']} results violate that (more than "
        f"{found['race_ms']:g} ms), {found['within_race']} lie within the race between taking a frame and reading the "
        f"clock. The camera gave {fps:.0f} fps, {_number(part['fps'], '.0f')} were shown. Age of what is shown, put to "
        f"result: p50 {age['p50']:.1f}, p99 {age['p99']:.1f}, at most {age['max']:.1f} ms; a newer frame had been "
        f"there for p50 {outdated['p50']:.1f}, at most {outdated['max']:.1f} ms.",
    ]


def _pause(part: Record) -> list[str]:
    lines = [["", "first frames after the pauses, ms", "worst", "p50 without a pause", "ratio"]]
    for name, title in (("kept_warm", "kept warm"), ("left_alone", "left alone")):
        found = part[name]
        p50 = found["running_ms"]["p50"]
        firsts = ", ".join(f"{ms:.1f}" for ms in found["first_ms"])
        worst = found["worst_first_ms"]
        lines.append([title, firsts, f"{worst:.1f}", f"{p50:.1f}", f"{worst / p50:.2f}"])
    return ["## After a pause", f"Pauses of {part['kept_warm']['pause_s']:g} s.", _markdown(lines)]


def _memory(part: Record) -> list[str]:
    hour = part["mb_per_hour"]
    text = "too few samples for a slope"
    if hour is not None:
        text = (
            f"slope {hour['slope']:+.2f} MB per hour (95 %: {hour['low']:+.2f} to {hour['high']:+.2f}), extrapolated "
            f"from {part['seconds'] / 60:.1f} minutes, the first tenth left out"
        )
    return [
        "## Memory",
        f"{part['put']} frames. RSS at first {_number(part['first_mb'], '.1f')} MB, settled "
        f"{_number(part['settled_mb'], '.1f')}, last {_number(part['last_mb'], '.1f')}, at most "
        f"{_number(part['most_mb'], '.1f')} MB; {text}. Ring and output buffers: {part['buffer_bytes'] / 1e6:.1f} MB.",
    ]


def _cost(part: Record) -> list[str]:
    lines = [["variant", "put to result, median ms", "p95 ms", "above plain, ms", "turns"]]
    for name, found in part["variants"].items():
        above = "" if name == "plain" else f"{found['above_plain_ms']:+.2f}"
        lines.append([name, f"{found['median_ms']:.2f}", f"{found['p95_ms']:.2f}", above, str(found["runs"])])
    lines += [[name, f"not measured ({why})", "", "", ""] for name, why in part["not_measured"].items()]
    note = "Streams on one restorer take turns frame by frame; a scene that stands still."
    return ["## What the preview and temporal fusion take", note, _markdown(lines)]


def _deadline(part: Record) -> list[str]:
    names = list(dict.fromkeys([*part["idle"]["plans"], *part["busy"]["plans"]]))
    lines = [["the other core", "results", *names, "late", "capture to result p50", "p99", "max"]]
    for phase in ("idle", "busy"):
        found = part[phase]
        took = found["capture_to_result_ms"] or dict.fromkeys(("p50", "p99", "max"))
        counts = [str(found["plans"].get(name, 0)) for name in names]
        times = [_number(took[p], ".1f") for p in ("p50", "p99", "max")]
        lines.append([phase, str(found["results"]), *counts, str(found["late"]), *times])
    seconds = [["second", "the other core", "plans", "late"]]
    for entry in part["timeline"]:
        plans = ", ".join(f"{name}: {count}" for name, count in entry["plans"].items())
        seconds.append([str(entry["second"]), "busy" if entry["busy"] else "idle", plans, str(entry["late"])])
    note = (
        f"`{part['bundle']}` with at most {part['steps']} steps, deadline {part['deadline_ms']:g} ms, "
        f"{part['camera']['asked_fps']:g} fps; a program keeps core {part['busy_cpu']} busy now and then."
    )
    return ["## The deadline ladder under load", note, _markdown(lines), _markdown(seconds)]


_SECTIONS = {
    "paced": _paced, "stale": _stale, "pause": _pause, "memory": _memory, "cost": _cost, "deadline": _deadline,
}  # fmt: skip


def _origins(document: Record) -> str:
    lines = [["part", "utc", "commit", "load average at its start", "seconds", "precision", "side, px"]]
    for name, entry in document["parts"].items():
        machine, settings = entry["machine"], entry["settings"]
        load, side = str(machine.get("load_average_1min", "")), str(settings["side_px"])
        cells = [machine["utc"], str(machine["commit"]), load, f"{entry['seconds']:.0f}", settings["precision"], side]
        lines.append([name, *cells])
    return _markdown(lines)


def _dropped(run: Record) -> str:
    return ", ".join(f"{reason}: {count}" for reason, count in run["dropped"].items()) or "none"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *body = ["| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines]
    return "\n".join([head, "| " + " | ".join("---" for _ in lines[0]) + " |", *body])
