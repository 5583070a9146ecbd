"""Stop at the right moment: of all averaged weights that were validated, the ones with the lowest held-out loss."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch
from torch import nn

from ..runtime.errors import TrainingError
from .checkpoint import CHECKPOINT, WEIGHTS
from .run_folder import LOG, save_whole

BEST: Final = "best.pt"


class BestWeights:
    """The ``held_out`` callback of a run that keeps the best weights beside the checkpoint.

    Parameters
    ----------
    output : run folder; gets ``best.pt``
    loss : held-out loss of a network
    """

    def __init__(self, output: Path, loss: Callable[[nn.Module], float]) -> None:
        self._output = output
        self._loss = loss
        self._lowest = math.inf

    def begin(self, start: nn.Module | None) -> None:
        """Take up where an interrupted run stopped; else the weights of the start are the first to beat."""
        path = self._output / BEST
        if not (self._output / CHECKPOINT).exists():
            path.unlink(missing_ok=True)
        if path.exists():
            self._lowest = float(self._read()["loss"])
        elif start is not None:
            self._output.mkdir(parents=True, exist_ok=True)
            self._lowest = self._loss(start.eval())
            self._keep(start, at_start=True)

    def __call__(self, average: nn.Module) -> float:
        loss = self._loss(average)
        if loss < self._lowest:
            self._lowest = loss
            self._keep(average, at_start=False)
        return loss

    def finish(self) -> int:
        """Make the best weights those of the run; returns the step that they are of."""
        best = self._read()
        step = 0 if best["at_start"] else _step_of(self._output / LOG, float(best["loss"]))
        weights = torch.load(self._output / WEIGHTS, weights_only=True)
        save_whole({**weights, "state": best["state"], "step": step}, self._output / WEIGHTS)
        if step == 0:
            print("no step did better on the held-out fields than the start: the weights are those of the start")
        else:
            print(f"best on the held-out fields: step {step}, loss {best['loss']:.4f}")
        return step

    def _keep(self, network: nn.Module, *, at_start: bool) -> None:
        state = {name: value.detach().cpu() for name, value in network.state_dict().items()}
        save_whole({"state": state, "loss": self._lowest, "at_start": at_start}, self._output / BEST)

    def _read(self) -> dict[str, object]:
        try:
            saved: dict[str, object] = torch.load(self._output / BEST, weights_only=True, map_location="cpu")
        except Exception as error:  # torch raises several kinds for a damaged file
            raise TrainingError(f"{self._output / BEST} cannot be read: {error}; choose another output") from error
        return saved


def _step_of(log: Path, loss: float) -> int:
    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return int(min(rows, key=lambda row: abs(float(row["held_out_loss"]) - loss))["step"])
