"""What a training shows while it runs: a progress bar or plain lines, the loss as a picture, TensorBoard's files."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from .loop import Progress, print_progress

CURVE: Final = "loss.png"
EVENTS: Final = "tensorboard"
CURVE_SECONDS: Final = 20.0
STEP_SCALARS: Final = 10  # a scalar of the training loss every so many steps


class Watch:
    """A progress callback and a context manager.

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
        if progress.held_out_loss is not None:
            self._writer.add_scalar("loss/held_out", progress.held_out_loss, progress.step)
        if progress.step % STEP_SCALARS == 0:
            self._writer.add_scalar("loss/training", progress.loss, progress.step)

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
            self._writer.close()


def draw_curve(output: Path) -> Path:
    """``loss.png`` of a run folder, old or new but never half."""
    from .loss_curve import draw, read_run

    partial = output / f"{CURVE}.partial"
    draw([read_run(output)]).savefig(partial, format="png")
    return partial.replace(output / CURVE)


def _tensorboard(folder: Path) -> Any:
    """A writer, or None with a line that says why."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print("TensorBoard is not installed: the loss goes to log.csv and loss.png alone (pip install tensorboard)")
        return None
    return SummaryWriter(str(folder))
