"""The live engine under a camera: latency, staleness, memory, pauses, deadlines under load; see docs/live.md.

    python -m benchmarks.live --json live.json --markdown docs/results_live.md
    python -m benchmarks.live --json live.json --parts memory --minutes 60    # measures one part anew

Every part runs in a process of its own and is written to the JSON file when it is done; parts that an earlier run left
there stay until they are measured anew, and say of which commit they are. All parts take about half an hour. Nothing
else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from . import cores, live_parts, machine
from .live_ladder import deadline
from .live_parts import InProcess, say
from .live_settings import LiveSettings
from .live_tables import render

PARTS: Mapping[str, Callable[[LiveSettings, InProcess], dict[str, Any]]] = {
    "paced": live_parts.paced,
    "flatout": live_parts.flatout,
    "stale": live_parts.stale,
    "jitter": live_parts.jitter,
    "pause": live_parts.pause,
    "cost": live_parts.cost,
    "cameras": live_parts.cameras,
    "deadline": deadline,
    "memory": live_parts.memory,
}
SHORTER = {"jitter": 3_000, "cameras": 1_000}  # frames at most: these parts run several times


def measure(
    settings: LiveSettings,
    parts: Sequence[str],
    *,
    command: str,
    path: Path | None = None,
    run: InProcess = cores.isolated,
) -> dict[str, Any]:
    """Measure parts, one after the other; the document is saved after each.

    Parameters
    ----------
    path : JSON file; parts that it holds and that are not measured now are kept
    run : calls a function in a process of its own
    """
    document: dict[str, Any] = {"command": command, "machine": machine.record(), "parts": _earlier(path)}
    if settings.precision == "auto":
        document["choice"] = run(live_parts.chosen, settings)
        settings = replace(settings, precision=document["choice"]["precision"])
    document["settings"] = asdict(settings)
    for name in parts:
        say(f"part {name}")
        facts, started = machine.record(), time.monotonic()
        shorter = replace(settings, frames=min(settings.frames, SHORTER.get(name, settings.frames)))
        found = PARTS[name](shorter, run)
        document["parts"][name] = {
            "machine": facts, "command": command, "settings": asdict(shorter), "seconds": time.monotonic() - started,
            "found": found,
        }  # fmt: skip
        _save(path, document)
    return document


def _earlier(path: Path | None) -> dict[str, Any]:
    if path is None or not path.is_file():
        return {}
    parts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["parts"]
    return parts


def _save(path: Path | None, document: dict[str, Any]) -> None:
    if path is not None:
        part = path.with_name(f"{path.name}.part")
        part.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        part.replace(path)


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, LiveSettings]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    group = parser.add_argument_group("settings", "see benchmarks/live_settings.py")
    for field in fields(LiveSettings):
        name, default = f"--{field.name.replace('_', '-')}", field.default
        if isinstance(default, bool):
            group.add_argument(name, action="store_true")
        else:
            group.add_argument(name, type=type(default), default=default, help=f"({default})")
    options = parser.parse_args(arguments)
    try:
        settings = LiveSettings(**{field.name: getattr(options, field.name) for field in fields(LiveSettings)})
    except ValueError as error:
        parser.error(str(error))
    return options, settings


def main(arguments: Sequence[str] | None = None, run: InProcess = cores.isolated) -> None:
    given = sys.argv[1:] if arguments is None else arguments
    options, settings = parse(given)
    command = shlex.join(["python", "-m", "benchmarks.live", *given])
    report = render(measure(settings, options.parts, command=command, path=options.json, run=run))
    print(report)
    if options.markdown:
        options.markdown.write_text(report, encoding="utf-8")


if __name__ == "__main__":
    main()
