"""Draw the loss of a training: ``python -m photonstep.models.loss_curve runs/base -o docs/images/loss_base.png``.

Several run folders are stages of one training, drawn one after another. The loss is EDM's, in the stabilised domain:
the mean square error of the network's residual, about 1 before training. It does not go to 0, because noise hides a
part of every field. The training curve is the mean over the steps since the last point, with new cameras in every
batch; the held-out curve is that of the averaged weights on fixed batches of fields that the training never sees.
Stages that draw noise levels differently have losses that do not compare.
"""

from __future__ import annotations

import argparse
import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

LINES = {"train_loss": ("training", "#9a9a9a"), "held_out_loss": ("held out", "#c2410c")}
INK, QUIET_INK, GRID = "#222222", "#777777", "#e5e5e5"
COLUMNS = ("step", "seconds", *LINES)


@dataclass(frozen=True)
class Stage:
    """One run: the settings of its ``config.json`` and the columns of its ``log.csv``."""

    settings: dict[str, Any]
    curve: dict[str, list[float]]


def read_run(run: Path) -> Stage:
    """What `models.train` left in a run folder.

    Raises
    ------
    ValueError : no log there, other columns, or no rows yet
    """
    path = run / "log.csv"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected the run folder of photonstep.models.train")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or set(COLUMNS) - set(rows[0]):
        got = ", ".join(rows[0]) if rows else "no rows"
        raise ValueError(f"{path}: holds {got}; expected rows of {', '.join(COLUMNS)}: let the training go on")
    curve = {name: [float(row[name]) for row in rows] for name in COLUMNS}
    record = json.loads((run / "config.json").read_text())
    return Stage(record.get("settings") or record["train"], curve)


def draw(stages: list[Stage]) -> Figure:
    """Both losses against the optimiser step, each labelled with its last value."""
    figure = Figure(figsize=(7.6, 4.0), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    before = 0.0
    for index, stage in enumerate(stages):
        steps = [(before + step) / 1000 for step in stage.curve["step"]]
        if index:
            axes.axvline(before / 1000, color=QUIET_INK, linewidth=0.8, linestyle=":")
        for name, (_, colour) in LINES.items():
            axes.plot(steps, stage.curve[name], color=colour, linewidth=2, marker="o", markersize=3.5)
        before += stage.curve["step"][-1]
    for name, (label, colour) in LINES.items():
        last = stages[-1].curve[name][-1]
        axes.annotate(
            f"{label}\n{last:.4f}", (before / 1000, last), xytext=(8, 0), textcoords="offset points", color=colour,
            va="center",
        )  # fmt: skip
    _style(axes, "\n".join(stage_title(stage) for stage in stages))
    return figure


def stage_title(stage: Stage) -> str:
    """Tier, steps, learning rate, seed and time of a run."""
    settings, curve = stage.settings, stage.curve
    minutes = curve["seconds"][-1] / 60
    measured = f", {settings['measured_share']:.0%} at the measured level" if "measured_share" in settings else ""
    return (
        f"{settings['tier']}: {curve['step'][-1]:,.0f} of {settings['steps']:,} steps in {minutes:.0f} min, "
        f"learning rate {settings['learning_rate']:g}{measured}, seed {settings['seed']}"
    )


def _style(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", color=INK, fontsize=9)
    axes.set_xlabel("optimiser steps, thousands", color=INK)
    axes.set_ylabel("EDM loss", color=INK)
    axes.set_xlim(left=0)
    axes.grid(axis="y", color=GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    parser = argparse.ArgumentParser(description="draw the loss of a training")
    parser.add_argument("runs", type=Path, nargs="+", help="run folders of photonstep.models.train, in order")
    parser.add_argument("-o", "--output", type=Path, required=True, help="picture, .png or .svg")
    arguments = parser.parse_args()
    stages = [read_run(run) for run in arguments.runs]
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    draw(stages).savefig(arguments.output)
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
