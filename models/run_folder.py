"""A run folder: ``config.json``, ``log.csv``, ``checkpoint.pt`` and ``weights.pt``, each old or new but never half.

Every stage writes a folder of its own, whose ``started_from`` names the one before.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
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
HEAD = ",".join(LOG_COLUMNS) + "\n"
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
    recordings: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """``config.json`` of a run folder.

    Parameters
    ----------
    stage : train, distill or prune
    training_data : name, licence and source of every set
    recordings : fingerprint of each of the user's sources, see `models.fingerprint`
    """
    sets = sorted(entry["name"] for entry in training_data or ())
    return {
        "stage": stage,
        "task": task,
        "settings": asdict(settings),
        "network": network.config.as_dict() if hasattr(network, "config") else None,
        "started_from": None if started_from is None else str(started_from),
        "teacher": None if teacher is None else str(teacher),
        "training_data": training_data or [],
        "material": {"sets": sets, "recordings": [dict(one) for one in recordings]} if sets else None,
    }


def refuse_other_settings(output: Path, record: Mapping[str, Any]) -> None:
    """A run is resumed with the settings and the material that it was begun with.

    Records of before the material was part of them say nothing about it, and what they do not say is not compared.

    Raises
    ------
    TrainingError : names the first setting, or property of the recordings, that differs
    """
    path = output / CONFIG
    if not path.exists():
        return
    before, now = _flat(json.loads(path.read_text())), _flat(json.loads(json.dumps(record)))
    for name, value in now.items():
        if name in before and name not in FREE_TO_CHANGE and before[name] != value:
            raise TrainingError(
                f"{output} was begun with {name} = {before[name]}, now asked for {value}; resume with the same "
                "settings and data, or choose another output folder"
            )


def write_record(output: Path, record: Mapping[str, Any], *, resumed: bool) -> None:
    """``config.json`` of a run that begins; one that is resumed keeps its own.

    A resumed run whose record says nothing about its material gets that of the record at hand, and its data as well.

    Raises
    ------
    TrainingError : it could not be written; what was there before still is
    """
    path = output / CONFIG
    if resumed and path.exists():
        before, now = json.loads(path.read_text()), json.loads(json.dumps(record))
        if before.get("material") or not now.get("material"):
            return
        known = before.get("training_data") or []
        more = [entry for entry in now["training_data"] if entry not in known]
        record = {**before, "material": now["material"], "training_data": known + more}
        if now["material"]["recordings"]:
            warnings.warn(
                f"{output} was begun before runs recorded which files they see: these are taken for the same, and "
                "fields that are held out now may have been trained on; begin anew in another folder to be sure",
                stacklevel=4,
            )
    write_whole(json.dumps(record, indent=1) + "\n", path)


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """Settings and material by name; runs of before the stages were told apart keep the settings under "train"."""
    apart = ("settings", "train", "training_data", "material")
    rest = {name: value for name, value in record.items() if name not in apart}
    return {**rest, **(record.get("settings") or record.get("train") or {}), **_flat_material(record.get("material"))}


def _flat_material(material: Mapping[str, Any] | None) -> dict[str, Any]:
    if not material:
        return {}
    sources = material["recordings"]
    by_name = {f"recordings[{i}].{name}": value for i, source in enumerate(sources) for name, value in source.items()}
    return {"sources of recordings": len(sources), **by_name, "sets": material["sets"]}


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


def write_whole(text: str, path: Path) -> None:
    """Write text so that either the old file or the new one is left, also on a full disk.

    Raises
    ------
    TrainingError : it could not be written; what was there before still is
    """
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text)
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise TrainingError(f"cannot write {path}: {error}; free some space and run the same command again") from error


def append_row(path: Path, step: int, seconds: float, train_loss: float, held_out_loss: float) -> None:
    """A row of ``log.csv``; the earlier rows stay whatever happens.

    Raises
    ------
    TrainingError : it could not be written
    """
    row = f"{step},{round(seconds)},{train_loss:.5f},{held_out_loss:.5f}\n"
    write_whole("".join([HEAD, *_rows(path), row]), path)


def keep_rows(path: Path, step: int) -> None:
    """Rows of after the checkpoint are about to be written again; a log without any row or heading is none.

    Raises
    ------
    TrainingError : it could not be written; the log is as it was
    """
    if not path.exists():
        return
    kept = [row for row in _rows(path) if int(row.split(",")[0]) <= step]
    if not kept:
        path.unlink()
    elif path.read_text() != HEAD + "".join(kept):
        write_whole(HEAD + "".join(kept), path)


def _rows(path: Path) -> list[str]:
    """Whole rows of a log, without its heading."""
    text = path.read_text() if path.exists() else ""
    head, *rows = text.splitlines(keepends=True) or [""]
    return [row for row in rows if row.endswith("\n")] if head == HEAD else []
