"""The training loop that every stage shares: training, distillation, recovery after pruning, quantisation-aware tuning.

A stage supplies what differs: ``batch(index)``, which must depend on its index alone, and ``loss(network, batch)``. The
loop does the rest: AdamW with warm-up and a cosine, an exponential moving average of the weights, clipped gradients,
bfloat16 autocast, batches prepared one ahead, and a run folder that a later call resumes. A run that was interrupted
therefore ends at the weights of one that was not.

    run_loop(network, settings, output, batch=batch, loss=loss, record=run_settings("distill", settings, network))
"""

from __future__ import annotations

import copy
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..runtime.errors import TrainingError
from .checkpoint import CHECKPOINT
from .run_folder import (
    LOG,
    append_row,
    keep_rows,
    refuse_other_settings,
    save_whole,
    write_record,
    write_weights,
)

AnyBatch = TypeVar("AnyBatch")


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """What the loop needs to know; the settings of a stage inherit from it and add their own.

    Parameters
    ----------
    learning_rate : its highest value; ``warmup_steps`` lead up to it, a cosine leads down to a hundredth of it
    ema_decay : of the averaged weights, which are the result
    gradient_clip : largest norm of the gradient
    precision : bf16 (convolutions under autocast) or fp32
    device : auto takes CUDA where torch finds it; or cpu, cuda, cuda:1, ...
    """

    steps: int
    learning_rate: float = 2e-3
    warmup_steps: int = 500
    ema_decay: float = 0.9995
    gradient_clip: float = 0.5
    weight_decay: float = 1e-4
    seed: int = 20261122
    precision: str = "bf16"
    device: str = "auto"
    validate_every: int = 2000
    checkpoint_seconds: float = 120.0

    def __post_init__(self) -> None:
        if self.steps < 0 or self.validate_every < 1 or self.warmup_steps < 1:
            raise TrainingError(
                f"steps {self.steps}, validate_every {self.validate_every}, warmup_steps {self.warmup_steps}; expected "
                "steps of 0 or more, and at least 1 of the others"
            )
        if not (self.learning_rate > 0 and 0 <= self.ema_decay < 1 and self.gradient_clip > 0):
            raise TrainingError(
                f"learning rate {self.learning_rate}, ema_decay {self.ema_decay}, gradient_clip {self.gradient_clip}; "
                "expected positive numbers, and a decay below 1"
            )
        if self.precision not in ("bf16", "fp32"):
            raise TrainingError(f"precision is {self.precision!r}; expected bf16 or fp32")

    def torch_device(self) -> torch.device:
        """Where the run takes place.

        Raises
        ------
        TrainingError : a device that torch does not find here
        """
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        device = torch.device(self.device)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise TrainingError(f"device is {self.device!r}, but torch finds no CUDA here; use cpu or auto")
        return device


@dataclass(frozen=True)
class Progress:
    """After every step; ``held_out_loss`` is a number when the averaged network has just been validated."""

    step: int
    steps: int
    seconds: float
    loss: float
    held_out_loss: float | None = None


def print_progress(progress: Progress) -> None:
    """One line per validation."""
    if progress.held_out_loss is not None:
        print(
            f"step {progress.step:6d} of {progress.steps}  {progress.seconds:6.0f} s  train {progress.loss:.4f}  "
            f"held out {progress.held_out_loss:.4f}",
            flush=True,
        )


@dataclass
class RunState:
    """What a checkpoint holds. ``losses`` are those since the last row of the log."""

    network: nn.Module
    average: nn.Module
    optimiser: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)

    def save(self, path: Path) -> None:
        parts = {name: getattr(self, name).state_dict() for name in ("network", "average", "optimiser")}
        save_whole({**parts, "step": self.step, "seconds": self.seconds, "losses": self.losses}, path)

    def load(self, path: Path, device: torch.device) -> None:
        try:
            saved = torch.load(path, weights_only=True, map_location=device)
            for name in ("network", "average", "optimiser"):
                getattr(self, name).load_state_dict(saved[name])
        except Exception as error:  # torch raises several kinds for a damaged or foreign file
            raise TrainingError(f"{path} does not fit this run: {error}; choose another output folder") from error
        self.step, self.seconds, self.losses = saved["step"], saved["seconds"], list(saved.get("losses", []))


def run_loop(
    network: nn.Module,
    settings: LoopSettings,
    output: Path,
    *,
    batch: Callable[[int], AnyBatch],
    loss: Callable[[nn.Module, AnyBatch], Tensor],
    record: Mapping[str, Any],
    held_out: Callable[[nn.Module], float] | None = None,
    average: nn.Module | None = None,
    progress: Callable[[Progress], None] | None = print_progress,
) -> Path:
    """Train ``network`` to the last step, or go on where an earlier call on the same folder stopped.

    Parameters
    ----------
    network : starts from the weights that it has; trained in place
    output : run folder; gets ``config.json``, ``log.csv``, ``checkpoint.pt`` and at the end ``weights.pt``
    batch : index of a step -> tensors in a dataclass, tuple or dict; called in a thread, one step ahead, the same
        whenever it is asked for the same index
    loss : scalar float32 of a network and a batch on its device; called under autocast, random numbers come from the
        batch alone
    record : content of ``config.json``, see `run_settings`
    held_out : loss of the averaged network (evaluation mode, float32) on data of its own
    average : network that becomes the moving average; give it where the loss needs it too (consistency targets)
    progress : called after every step

    Returns
    -------
    path of ``weights.pt``: the averaged weights with their network configuration

    Raises
    ------
    TrainingError : the folder holds a run of other settings or other data, a loss that is not finite, a file that
        cannot be written
    KeyboardInterrupt, SystemExit : Ctrl-C or SIGTERM, after the step at hand and its checkpoint
    """
    output.mkdir(parents=True, exist_ok=True)
    state = _start(network, settings, output, record, average)
    with _stop_request() as stopped:
        _walk(state, settings, output, batch, loss, held_out, progress, stopped)
    return write_weights(state.average, output, state.step)


def to_device(batch: AnyBatch, device: torch.device) -> AnyBatch:
    """Tensors in a dataclass, tuple, list or dict, moved."""
    moved: Any = batch
    if isinstance(batch, Tensor):
        moved = batch.to(device, non_blocking=True)
    elif is_dataclass(batch) and not isinstance(batch, type):
        moved = type(batch)(**{f.name: to_device(getattr(batch, f.name), device) for f in fields(batch)})
    elif isinstance(batch, dict):
        moved = {name: to_device(value, device) for name, value in batch.items()}
    elif isinstance(batch, tuple | list):
        moved = type(batch)(to_device(value, device) for value in batch)
    return moved  # type: ignore[no-any-return]


def _start(
    network: nn.Module, settings: LoopSettings, output: Path, record: Mapping[str, Any], average: nn.Module | None
) -> RunState:
    checkpoint, device = output / CHECKPOINT, settings.torch_device()
    if checkpoint.exists():
        refuse_other_settings(output, record)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(network) if average is None else average.to(device)
    average.requires_grad_(False).eval()
    average.load_state_dict(network.state_dict())
    optimiser = torch.optim.AdamW(
        [p for p in network.parameters() if p.requires_grad],
        lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=settings.weight_decay, fused=True,
    )  # fmt: skip
    state = RunState(network, average, optimiser)
    if checkpoint.exists():
        state.load(checkpoint, device)
        print(f"resuming at step {state.step}")
    write_record(output, record, resumed=checkpoint.exists())
    keep_rows(output / LOG, state.step)
    return state


def _walk(
    state: RunState,
    settings: LoopSettings,
    output: Path,
    batch: Callable[[int], AnyBatch],
    loss: Callable[[nn.Module, AnyBatch], Tensor],
    held_out: Callable[[nn.Module], float] | None,
    progress: Callable[[Progress], None] | None,
    stopped: threading.Event,
) -> None:
    if state.step == settings.steps > 0 and not (output / LOG).exists():  # lost by an earlier version on a full disk
        _log_row(state, output, held_out)
    started, saved = time.monotonic() - state.seconds, time.monotonic()
    for prepared in _one_ahead(batch, state.step, settings.steps):
        state.losses.append(_step(state, prepared, loss, settings))
        state.step += 1
        state.seconds = time.monotonic() - started
        last, latest, validated = state.step == settings.steps, state.losses[-1], None
        if state.step % settings.validate_every == 0 or last:
            latest, validated = _log_row(state, output, held_out)
        if progress is not None:
            progress(Progress(state.step, settings.steps, state.seconds, latest, validated))
        if last or stopped.is_set() or time.monotonic() - saved > settings.checkpoint_seconds:
            state.save(output / CHECKPOINT)
            saved = time.monotonic()
        if stopped.is_set() and not last:
            print(f"stopped at step {state.step} of {settings.steps}; the same command goes on from there", flush=True)
            return


def _log_row(state: RunState, output: Path, held_out: Callable[[nn.Module], float] | None) -> tuple[float, float]:
    """Mean training loss since the last row, and the held-out loss of the averaged weights."""
    latest = float(np.mean(state.losses)) if state.losses else math.nan
    validated = math.nan if held_out is None else held_out(state.average)
    append_row(output / LOG, state.step, state.seconds, latest, validated)
    state.losses.clear()
    return latest, validated


def _step(
    state: RunState, batch: AnyBatch, loss: Callable[[nn.Module, AnyBatch], Tensor], settings: LoopSettings
) -> float:
    state.network.train()
    for group in state.optimiser.param_groups:
        group["lr"] = settings.learning_rate * _schedule(state.step, settings)
    parameters = [p for group in state.optimiser.param_groups for p in group["params"]]
    device = parameters[0].device
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=settings.precision == "bf16"):
        value = loss(state.network, to_device(batch, device))
    if not torch.isfinite(value):
        raise TrainingError(
            f"the loss is {value.item()} at step {state.step}; lower the learning rate ({settings.learning_rate}) or "
            "look for frames that are not finite"
        )
    state.optimiser.zero_grad(set_to_none=True)
    value.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(parameters, settings.gradient_clip)
    state.optimiser.step()
    _follow(state.average, state.network, min(settings.ema_decay, (state.step + 1) / (state.step + 10)))
    return value.item()


@torch.no_grad()
def _follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
    for mean, value in zip(average.buffers(), network.buffers(), strict=True):
        mean.copy_(value)


def _schedule(step: int, settings: LoopSettings) -> float:
    warm = min(1.0, (step + 1) / settings.warmup_steps)
    return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(step / settings.steps, 1.0))))


def _one_ahead(batch: Callable[[int], AnyBatch], first: int, steps: int) -> Iterator[AnyBatch]:
    """Batches ``first`` to the last, each prepared while the one before is being learnt."""
    if first >= steps:
        return
    with ThreadPoolExecutor(1) as ahead:
        upcoming = ahead.submit(batch, first)
        for index in range(first, steps):
            ready = upcoming.result()
            if index + 1 < steps:
                upcoming = ahead.submit(batch, index + 1)
            yield ready


@contextmanager
def _stop_request() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM wait for the step at hand; the second one does not. Signals belong to the main thread."""
    stopped, received = threading.Event(), []
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def ask(number: int, frame: object) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        received.append(number)
        stopped.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        raise KeyboardInterrupt if received[0] == signal.SIGINT else SystemExit(128 + received[0])
