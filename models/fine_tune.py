"""Training on one's own recordings, with settings that fit: what ``photonstep train DATA... -o run/`` does.

    result = train_recordings(TrainRequest(data=(Path("my_data"),), output=Path("runs/mine"), start_from="base"))

From a shipped bundle, ten images and a few minutes on a processor suffice: a low learning rate after a short warm-up,
three quarters of every batch from the recordings, the rest from the built-in pool so that nothing is forgotten, and of
all averages of the weights the one that does best on held-out fields.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from ..runtime.camera import Camera
from ..runtime.errors import TrainingError
from .checkpoint import CHECKPOINT, WEIGHTS
from .loop import Progress
from .recordings import Kind, Source, find_scenes, split_fields
from .run_folder import LOG
from .train import TrainConfig, train
from .watch import Watch, draw_curve

FROM_NOTHING: Final[dict[str, Any]] = {"steps": 30000, "measured_share": 0.5}
FINE_TUNING: Final[dict[str, Any]] = {
    "steps": 600, "batch": 8, "learning_rate": 6e-4, "warmup_steps": 30, "ema_decay": 0.99, "measured_share": 0.85,
    "simulated_fields": 200, "validate_every": 50, "checkpoint_seconds": 30.0,
}  # fmt: skip
# their own restorations teach less than references do: smaller steps
WITHOUT_REFERENCE: Final[dict[str, Any]] = {**FINE_TUNING, "learning_rate": 3e-4, "steps": 400}


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """What a user asks for; None leaves the choice to the settings above.

    Parameters
    ----------
    data : folders, image files or OME-Zarr stores; empty trains on the built-in pool alone
    output : run folder; an interrupted run resumes there when the same request is made again
    kind : paired, repeated, clean or noisy; None where the names of folders tell
    tier : size of the network; None takes that of ``start_from``, or base
    start_from : a shipped bundle's name, a bundle, a run folder or a ``weights.pt``; None starts from nothing
    camera : of all recordings: a camera or its file
    pool : folder that holds ``clean/`` with the permissive sets
    licence : of the recordings, for the record
    """

    output: Path
    data: tuple[Path, ...] = ()
    kind: Kind | None = None
    tier: str | None = None
    start_from: str | Path | None = None
    steps: int | None = None
    learning_rate: float | None = None
    camera: Camera | Path | None = None
    seed: int | None = None
    pool: Path | None = None
    licence: str = "unknown"
    device: str = "auto"

    def sources(self) -> list[Source]:
        camera = Camera.load(self.camera) if isinstance(self.camera, str | Path) else self.camera
        return [Source(path=Path(path), kind=self.kind, camera=camera, licence=self.licence) for path in self.data]

    def settings(self, *, without_reference: bool) -> TrainConfig:
        """The settings of the run."""
        if self.start_from is None:
            chosen = {**FROM_NOTHING, "tier": self.tier or "base"}
        else:
            chosen = {**(WITHOUT_REFERENCE if without_reference else FINE_TUNING), "tier": self.tier}
        asked = {"steps": self.steps, "learning_rate": self.learning_rate, "seed": self.seed}
        config = TrainConfig(**{**chosen, **{k: v for k, v in asked.items() if v is not None}}, device=self.device)
        return replace(config, validate_every=max(1, min(config.validate_every, config.steps)))


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a training gave.

    Parameters
    ----------
    curve : picture of the losses, where it could be drawn
    best_step : the step that the weights are of; 0 where nothing did better on held-out fields than the start
    held_out_loss : of these weights; at the first and last validation too
    """

    weights: Path
    curve: Path
    steps: int
    best_step: int
    seconds: float
    first_held_out_loss: float
    last_held_out_loss: float
    fields_trained: int
    fields_held_out: int

    def __str__(self) -> str:
        fields = (
            f"{self.fields_trained} fields of view, {self.fields_held_out} held out; " if self.fields_trained else ""
        )
        return (
            f"{self.steps} steps in {self.seconds / 60:.1f} min; {fields}held-out loss {self.first_held_out_loss:.4f} "
            f"at the first look, {self.last_held_out_loss:.4f} at the last; weights of step {self.best_step}: "
            f"{self.weights}"
        )


def train_recordings(
    request: TrainRequest, *, bar: bool | None = None, progress: Callable[[Progress], None] | None = None
) -> TrainResult:
    """Train on a user's recordings, or resume.

    Parameters
    ----------
    bar : a live progress bar; None where stderr is a terminal
    progress : called after every step instead of the built-in display

    Raises
    ------
    TrainingError, ImageError, CameraError, ShapeError : the message names the file or setting
    """
    output = Path(request.output)
    if not request.data and request.pool is None and request.start_from is not None:
        raise TrainingError("nothing to train on: give recordings, or --data with the folder of the clean sets")
    sources = request.sources()
    scenes = [scene for source in sources for scene in find_scenes(source)]
    config = request.settings(without_reference=any(scene.kind == "noisy" for scene in scenes))
    sides = split_fields(scenes, config.held_out_share)
    _check_output(output, request.data)
    watch = nullcontext(progress) if progress else Watch(output, f"training {output.name}", bar=bar)
    with watch as shown:
        weights = train(config, request.pool, output, start_from=request.start_from, sources=sources, progress=shown)
    return _result(weights, *(len({scene.field for scene in side}) for side in sides))


def _check_output(output: Path, data: tuple[Path, ...]) -> None:
    if output.exists() and not output.is_dir():
        raise TrainingError(f"{output} is a file; expected the name of a run folder")
    for path in data:
        if output.resolve().is_relative_to(path.resolve()):
            raise TrainingError(f"{output} lies within the recordings of {path}; choose a folder outside of them")
    if (output / WEIGHTS).exists() and not (output / CHECKPOINT).exists():
        raise TrainingError(f"{output} holds weights but no checkpoint to go on from; choose another output folder")


def _result(weights: Path, trained: int, held_out: int) -> TrainResult:
    output = weights.parent
    with (output / LOG).open(newline="") as file:
        rows = list(csv.DictReader(file))
    return TrainResult(
        weights=weights,
        curve=draw_curve(output),
        steps=int(rows[-1]["step"]),
        best_step=int(torch.load(weights, weights_only=True, map_location="cpu")["step"]),
        seconds=float(rows[-1]["seconds"]),
        first_held_out_loss=float(rows[0]["held_out_loss"]),
        last_held_out_loss=float(rows[-1]["held_out_loss"]),
        fields_trained=trained,
        fields_held_out=held_out,
    )
