"""Draw the loss of a training run: ``python -m photonstep.models.loss_curve runs/base -o docs/images/loss_base.png``.

The loss is EDM's, in the stabilised domain: the mean square error of the network's residual, about 1 before training.
It does not go to 0, because noise hides a part of every field. The training curve is the mean over the steps since the
last point, with new cameras in every batch; the held-out curve is that of the averaged weights on fixed batches of
fields that the training never sees.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

TRAIN_COLOUR, HELD_OUT_COLOUR, INK, GRID = "#9a9a9a", "#c2410c", "#222222", "#e5e5e5"
COLUMNS = ("step", "seconds", "train_loss", "held_out_loss")

Curve = dict[str, list[float]]


def read_log(run: Path) -> Curve:
    """The columns of ``log.csv`` that `models.train` left in a run folder.

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
    return {name: [float(row[name]) for row in rows] for name in COLUMNS}


def draw(curve: Curve, title: str) -> Figure:
    """Both losses against the optimiser step, each labelled with its last value."""
    figure = Figure(figsize=(7.2, 4.0), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    steps = [step / 1000 for step in curve["step"]]
    for name, label, colour in (
        ("train_loss", "training", TRAIN_COLOUR),
        ("held_out_loss", "held out", HELD_OUT_COLOUR),
    ):
        axes.plot(steps, curve[name], color=colour, linewidth=2, marker="o", markersize=3.5)
        text = f"{label}\n{curve[name][-1]:.4f}"
        axes.annotate(
            text, (steps[-1], curve[name][-1]), xytext=(8, 0), textcoords="offset points", color=colour, va="center"
        )
    _style(axes, title)
    return figure


def _style(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", color=INK, fontsize=11)
    axes.set_xlabel("optimiser steps, thousands", color=INK)
    axes.set_ylabel("EDM loss", color=INK)
    axes.set_xlim(left=0)
    axes.grid(axis="y", color=GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def run_title(run: Path, curve: Curve) -> str:
    """Tier, steps, seed and time of a run."""
    settings = json.loads((run / "config.json").read_text())["train"]
    minutes = curve["seconds"][-1] / 60
    return (
        f"{settings['tier']}: {curve['step'][-1]:,.0f} of {settings['steps']:,} steps in {minutes:.0f} min, "
        f"seed {settings['seed']}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="draw the loss of a training run")
    parser.add_argument("run", type=Path, help="run folder of photonstep.models.train")
    parser.add_argument("-o", "--output", type=Path, required=True, help="picture, .png or .svg")
    arguments = parser.parse_args()
    curve = read_log(arguments.run)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    draw(curve, run_title(arguments.run, curve)).savefig(arguments.output)
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
