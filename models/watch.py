"""What a training shows while it runs: a progress bar or plain lines, the loss as a picture, TensorBoard's files."""

from __future__ import annotations

import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from .loop import Progress, print_progress
from .run_folder import LOG

CURVE: Final = "loss.png"
EVENTS: Final = "tensorboard"
CURVE_SECONDS: Final = 20.0
STEP_SCALARS: Final = 10  # a scalar of the training loss every so many steps


class Watch:
    """A progress callback and a context manager. What it cannot write, it warns of once; the training goes on.

    Parameters
    ----------
    output : run folder; gets ``loss.png``, and ``tensorboard/`` where that package is installed
    title : what stands before the progress bar
    bar : a live bar on stderr; None where stderr is a terminal, plain lines on stdout elsewhere
    """

    def __init__(self, output: Path, title: str, *, bar: bool | None = None) -> None:
        self._output = output
        self._title = title
        self._wants_bar = sys.stderr.isatty() if bar is None else bar
        self._bar: Any = None
        self._task: Any = None
        self._drawn = 0.0
        self._writer = _tensorboard(output / EVENTS)

    def __call__(self, progress: Progress) -> None:
        """After every step."""
        if self._bar is None:
            print_progress(progress)
        else:
            held_out = "" if progress.held_out_loss is None else f"held out {progress.held_out_loss:.4f}"
            shown = {"loss": f"{progress.loss:.4f}", **({"held_out": held_out} if held_out else {})}
            self._bar.update(self._task, completed=progress.step, total=progress.steps, **shown)
        if self._writer is not None:
            self._scalars(progress)
        last = progress.step == progress.steps
        if progress.held_out_loss is not None and (last or time.monotonic() - self._drawn > CURVE_SECONDS):
            draw_curve(self._output)
            self._drawn = time.monotonic()

    def _scalars(self, progress: Progress) -> None:
        try:
            if progress.held_out_loss is not None:
                self._writer.add_scalar("loss/held_out", progress.held_out_loss, progress.step)
            if progress.step % STEP_SCALARS == 0:
                self._writer.add_scalar("loss/training", progress.loss, progress.step)
        except Exception as error:  # its thread hands on whatever it met
            self._writer = None
            _warn_once(self._output / EVENTS, error)

    def __enter__(self) -> Self:
        if self._wants_bar:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                TextColumn("loss {task.fields[loss]} {task.fields[held_out]}"),
            )  # fmt: skip
            self._bar = Bar(*columns, console=Console(file=sys.stderr))
            self._task = self._bar.add_task(self._title, total=None, loss="", held_out="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._writer is not None:
            try:
                self._writer.close()
            except Exception as failure:  # as above
                _warn_once(self._output / EVENTS, failure)


def draw_curve(output: Path) -> Path:
    """``loss.png`` of a run folder, old or new but never half; where it cannot be drawn, a warning says so once."""
    from .loss_curve import draw, read_run

    path, partial = output / CURVE, output / f"{CURVE}.partial"
    try:
        draw([read_run(output)]).savefig(partial, format="png")
        partial.replace(path)
    except Exception as error:  # a picture is no reason to end a training
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        _warn_once(path, error)
    return path


_told: set[Path] = set()  # what cannot be written now will not be at the next validation either


def _warn_once(path: Path, error: Exception) -> None:
    if path not in _told:
        _told.add(path)
        warnings.warn(
            f"cannot write {path}: {error}; the training goes on without it, its losses are in {LOG}: free some space",
            stacklevel=2,
        )


def _tensorboard(folder: Path) -> Any:
    """A writer, or None with a line that says why."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print("TensorBoard is not installed: the loss goes to log.csv and loss.png alone (pip install tensorboard)")
        return None
    try:
        return SummaryWriter(str(folder))
    except Exception as error:  # a full disk
        _warn_once(folder, error)
        return None
