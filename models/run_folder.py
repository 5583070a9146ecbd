"""A run folder: ``config.json``, ``log.csv``, ``checkpoint.pt`` and ``weights.pt``, each old or new but never half.

Every stage writes a folder of its own, whose ``started_from`` names the one before.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..runtime.errors import TrainingError
from .checkpoint import CONFIG, WEIGHTS

if TYPE_CHECKING:
    from .loop import LoopSettings

LOG = "log.csv"
LOG_COLUMNS = ("step", "seconds", "train_loss", "held_out_loss")
FREE_TO_CHANGE = frozenset({"validate_every", "checkpoint_seconds", "device"})  # none of them decides the weights


def run_settings(
    stage: str,
    settings: LoopSettings,
    network: nn.Module,
    *,
    task: str = "denoise",
    started_from: str | Path | None = None,
    teacher: str | Path | None = None,
    training_data: list[dict[str, str]] | None = None,
) -> dict[str, Any]:
    """``config.json`` of a run folder.

    Parameters
    ----------
    stage : train, distill or prune
    training_data : name, licence and source of every set
    """
    return {
        "stage": stage,
        "task": task,
        "settings": asdict(settings),
        "network": network.config.as_dict() if hasattr(network, "config") else None,
        "started_from": None if started_from is None else str(started_from),
        "teacher": None if teacher is None else str(teacher),
        "training_data": training_data or [],
    }


def refuse_other_settings(output: Path, record: Mapping[str, Any]) -> None:
    """A run is resumed with the settings that it was begun with.

    Raises
    ------
    TrainingError : names the first setting that differs
    """
    path = output / CONFIG
    if not path.exists():
        return
    before, now = _flat(json.loads(path.read_text())), _flat(json.loads(json.dumps(record)))
    for name, value in now.items():
        if name in before and name not in FREE_TO_CHANGE and before[name] != value:
            raise TrainingError(
                f"{output} was begun with {name} = {before[name]}, now asked for {value}; resume with the same "
                "settings, or choose another output folder"
            )


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by name; runs of before the stages were told apart keep them under "train"."""
    rest = {name: value for name, value in record.items() if name not in ("settings", "train", "training_data")}
    return {**rest, **(record.get("settings") or record.get("train") or {})}


def save_whole(content: Mapping[str, Any], path: Path) -> None:
    """``torch.save`` that leaves either the old file or the new one, also on a full disk.

    Raises
    ------
    TrainingError : it could not be written; what was there before still is
    """
    partial = path.with_name(path.name + ".partial")
    try:
        torch.save(dict(content), partial)
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
        partial.unlink(missing_ok=True)
        raise TrainingError(
            f"cannot write {path}: {error}; an earlier one is kept: free some space and run the same command again"
        ) from error


def write_weights(network: nn.Module, output: Path, step: int) -> Path:
    """``weights.pt`` of a run folder."""
    path, config = output / WEIGHTS, getattr(network, "config", None)
    shape = config.as_dict() if config is not None else None
    save_whole({"network": shape, "state": network.state_dict(), "step": step}, path)
    return path


def append_row(path: Path, step: int, seconds: float, train_loss: float, held_out_loss: float) -> None:
    """A row of ``log.csv``."""
    new = not path.exists()
    try:
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(LOG_COLUMNS)
            writer.writerow([step, round(seconds), f"{train_loss:.5f}", f"{held_out_loss:.5f}"])
    except OSError as error:
        raise TrainingError(f"cannot write {path}: {error}; free some space and run the same command again") from error


def keep_rows(path: Path, step: int) -> None:
    """Rows of after the checkpoint are about to be written again."""
    if not path.exists():
        return
    head, *rows = path.read_text().splitlines(keepends=True)
    kept = [row for row in rows if row.endswith("\n") and int(row.split(",")[0]) <= step]
    if kept != rows:
        path.write_text("".join([head, *kept]))
