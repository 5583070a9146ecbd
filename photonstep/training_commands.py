"""The commands that make weights: train, distill, prune, quantize. They parse, call and print.

They need the extra ``train``; everything else of photonstep works without it, so nothing heavy is imported up here.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from photonstep.runtime.errors import TrainingError

PANEL = "Training side (extra: train)"
EXTRA = "python -m pip install 'photonstep[train]'"
EXIT_MISSED = 1

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Run folder, weights.pt, bundle or shipped name.")]
OutputRun = Annotated[Path, typer.Option("--output", "-o", help="New run folder; an interrupted run resumes there.")]
OutputBeside = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        help="New run folder; an interrupted run resumes there. [dim]\\[default: beside RUN, as RUN-distilled or "
        "RUN-pruned; of a bundle in the current folder][/]",
    ),
]
PoolOption = Annotated[
    Path | None,
    typer.Option("--data", help="Folder that holds clean/; without it simulated fields and sample images alone."),
]
TrainingSteps = Annotated[int | None, typer.Option(min=1, help="Optimiser steps. [dim]\\[default: the stage's][/]")]
RateOption = Annotated[float | None, typer.Option(help="Highest learning rate. [dim]\\[default: the stage's][/]")]
SeedOption = Annotated[int | None, typer.Option(help="Of weights, crops, cameras and noise.")]
TruthShare = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Of the target; the rest is the teacher's output. [dim]\\[default: 0.5][/]"),
]
TrainDevice = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (train, distill, prune, quantize):
        app.command(rich_help_panel=PANEL)(command)


def train(
    data: Annotated[
        list[Path] | None,
        typer.Argument(metavar="DATA...", help="Your recordings: folders, TIFF or PNG files, OME-Zarr stores."),
    ] = None,
    output: OutputRun = Path("run"),
    kind: Annotated[
        Literal["paired", "repeated", "clean", "noisy"] | None,
        typer.Option(help="What the recordings are; told from the folders' names where they say it."),
    ] = None,
    tier: Annotated[str | None, typer.Option(help="Size of the network: live, base or teacher.")] = None,
    start_from: Annotated[
        str | None, typer.Option("--from", help="Fine-tune: a shipped bundle (base), a bundle, a run or a weights.pt.")
    ] = None,
    steps: TrainingSteps = None,
    learning_rate: RateOption = None,
    camera: Annotated[Path | None, typer.Option(help="camera.json of all recordings; estimated if not given.")] = None,
    pool: PoolOption = None,
    licence: Annotated[str, typer.Option(help="Of your recordings, for the record.")] = "unknown",
    seed: SeedOption = None,
    device: TrainDevice = "auto",
) -> None:
    """Train a denoiser, or fine-tune one on your own recordings (docs/your_own_data.md)."""
    work = training_side("models.fine_tune")
    request = work.TrainRequest(
        output=output, data=tuple(data or ()), kind=kind, tier=tier, start_from=start_from, steps=steps,
        learning_rate=learning_rate, camera=camera, seed=seed, pool=pool, licence=licence, device=device,
    )  # fmt: skip
    with _kept(output):
        found = work.train_recordings(request)
    print(
        f"{found.fields_trained} fields trained on, {found.fields_held_out} held out; {found.steps} steps in "
        f"{found.seconds / 60:.1f} min; held-out loss {found.first_held_out_loss:.4f} -> best at step "
        f"{found.best_step}, last {found.last_held_out_loss:.4f}\nwrote {found.weights} and {found.curve}"
    )


def distill(
    run: RunArgument,
    output: OutputBeside = None,
    steps: Annotated[
        Literal["1", "2", "4"], typer.Option(help="Network evaluations that the student will take.")
    ] = "1",
    detail: Annotated[
        bool, typer.Option("--detail", help="A student with a detail knob: 0 is the mean, 1 the teacher's walk.")
    ] = False,
    tier: Annotated[str | None, typer.Option(help="Size of the student; the teacher's if not given.")] = None,
    start_from: Annotated[str | None, typer.Option("--from", help="What the student starts from.")] = None,
    teacher_steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Evaluations of the teacher that one of the student's learns, with --steps 1; with --detail in its "
            "fresh batches alone. [dim]\\[default: 1][/]",
        ),
    ] = None,
    truth_share: TruthShare = None,
    measured_share: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Of samples at the camera's own noise level. [dim]\\[default: 0.85][/]"),
    ] = None,
    heun_steps: Annotated[
        int | None, typer.Option(min=1, help="Heun steps of the teacher, with --detail. [dim]\\[default: 16][/]")
    ] = None,
    cached_batches: Annotated[
        int | None,
        typer.Option(min=1, help="Batches that the teacher walks over once, with --detail. [dim]\\[default: 128][/]"),
    ] = None,
    training_steps: TrainingSteps = None,
    learning_rate: RateOption = None,
    pool: PoolOption = None,
    seed: SeedOption = None,
    device: TrainDevice = "auto",
) -> None:
    """Teach a student to do in few evaluations what its teacher does in many (docs/compression.md)."""
    of_mean = {"teacher_steps": teacher_steps, "truth_share": truth_share, "measured_share": measured_share}
    of_detail = {"heun_steps": heun_steps, "cached_batches": cached_batches}
    if not detail:
        refuse_idle(of_detail, "without --detail; add it, or leave them out")
    if not detail and steps != "1":
        refuse_idle(of_mean, f"with --steps {steps}, which learns the teacher's finer walk alone; leave them out")
    chosen = {**of_mean, **of_detail, "steps": training_steps, "learning_rate": learning_rate, "seed": seed}
    work = training_side("export.detail" if detail else "export.distil")
    kind, call = (work.DetailSettings, work.distill_detail) if detail else (work.DistilSettings, work.distill)
    settings = kind(device=device, **given(chosen))
    student = output or _beside(run, "distilled")
    with _kept(student):
        found = call(run, student, steps=int(steps), data=pool, tier=tier, start_from=start_from, settings=settings)
    print(found)


def prune(
    run: RunArgument,
    output: OutputBeside = None,
    target_macs: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of the multiply-accumulates to keep, such as 0.5.")
    ] = None,
    target_ms: Annotated[
        float | None, typer.Option(min=0, help="Milliseconds of one evaluation to reach, on a frame of --frame-px.")
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="What it learns from; the unpruned network if not given.")] = None,
    truth_share: TruthShare = None,
    backend: Annotated[str, typer.Option(help="Where time is measured: openvino or onnxruntime.")] = "openvino",
    backend_precision: Annotated[
        Literal["auto", "fp32", "bf16"],
        typer.Option(help="Of the measured networks; auto is bf16 where the CPU has it."),
    ] = "auto",
    threads: Annotated[int, typer.Option(min=1, help="Of the measured backend.")] = 1,
    frame_px: Annotated[int, typer.Option(min=16, help="Side of the measured frame.")] = 512,
    latency_table: Annotated[
        Path | None,
        typer.Option(
            help="JSON of measured times to begin with and to add to. [dim]\\[default: OUTPUT/latency.json][/]"
        ),
    ] = None,
    multiple: Annotated[int, typer.Option(help="Widths stay multiples of this: 8, 16 or 32.")] = 16,
    training_steps: TrainingSteps = None,
    learning_rate: RateOption = None,
    pool: PoolOption = None,
    seed: SeedOption = None,
    device: TrainDevice = "auto",
) -> None:
    """Take out the channels that cost most time for what they give, then let the rest recover."""
    work = training_side("export.prune")
    chosen = {"truth_share": truth_share, "steps": training_steps, "learning_rate": learning_rate, "seed": seed}
    settings = work.PruneSettings(
        target_macs=target_macs, target_ms=target_ms, multiple=multiple, backend=backend, threads=threads,
        backend_precision=backend_precision, frame_px=frame_px, device=device, **given(chosen),
    )  # fmt: skip
    if latency_table is not None and latency_table.exists():
        with reading(latency_table, "a table of measured times"):
            json.loads(latency_table.read_text())
    pruned = output or _beside(run, "pruned")
    with _kept(pruned):
        found = work.prune(run, pruned, data=pool, teacher=teacher, settings=settings, latency_table=latency_table)
    print(found)


def quantize(
    run: RunArgument,
    precision: Annotated[Literal["int8", "fp16"], typer.Option(help="int8: for CPUs and for TensorRT; or fp16.")] = (
        "int8"
    ),
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder; RUN/quantized if not given.")] = None,
    pool: PoolOption = None,
    frames: Annotated[
        list[Path] | None, typer.Option("--frame", help="A real frame (TIFF) to calibrate on; may be repeated.")
    ] = None,
    in_float: Annotated[
        list[str] | None,
        typer.Option(metavar="LAYER", help="A layer that stays in float, with int8; may be repeated."),
    ] = None,
    percentiles: Annotated[
        list[float] | None,
        typer.Option(
            "--percentiles",
            help="Share that a range holds, with int8; repeat for several, of which the best is taken. "
            "[dim]\\[default: 99.9, 99.99, 99.995, 99.999, 100][/]",
        ),
    ] = None,
) -> None:
    """Write networks of lower precision beside a run's weights; one that misses its gate is not written."""
    if precision == "fp16":
        refuse_idle({"in_float": in_float, "percentiles": percentiles}, "with --precision fp16; leave them out")
    work = training_side("export.quantize")
    chosen = {"in_float": tuple(in_float or ()) or None, "percentiles": tuple(percentiles or ()) or None}
    settings = work.QuantizeSettings(frames=(*work.QuantizeSettings.frames, *map(str, frames or ())), **given(chosen))
    found = work.quantize(run, precision=precision, data=pool, output=output, settings=settings)
    for name, entry in found.entries.items():
        worst = max(row["loss_db"] for row in entry["by_noise"])
        verdict = f"wrote {found.files[name]}" if found.passes(name) else "misses its gate: not written"
        print(f"{name}: {verdict}, {entry['size_bytes'] / 1e6:.2f} MB, at worst {worst:+.3f} dB against float32")
    if not all(found.passes(name) for name in found.entries):
        print("ship the higher precision, or fine-tune: python -m photonstep.export.qat")
        raise typer.Exit(EXIT_MISSED)


def _beside(run: str, what: str) -> Path:
    """The default run folder of a stage, printed: beside the run; for a bundle in the current folder.

    Raises
    ------
    TrainingError : nothing there to start from
    """
    from photonstep.runtime.bundle import SUFFIX
    from photonstep.runtime.restore import shipped_bundles

    path, shipped = Path(run), shipped_bundles()
    if run not in shipped and not path.exists():
        raise TrainingError(
            f"nothing at {run}; expected a run folder, a weights.pt, a {SUFFIX} file or one of {', '.join(shipped)}"
        )
    if run in shipped or path.suffix == SUFFIX:
        output = Path(f"{path.stem}-{what}")
    else:
        folder = path.parent if path.suffix == ".pt" else path
        if folder.name in ("", ".."):  # "." has no name of its own
            folder = folder.resolve()
        output = folder.parent / f"{folder.name}-{what}"
    print(f"run folder: {output}")
    return output


@contextmanager
def _kept(output: Path) -> Iterator[None]:
    """Ctrl-C tells what is left of a run."""
    try:
        yield
    except KeyboardInterrupt:
        kept = f"the run folder {output} is kept, and the same command goes on"
        left = kept if output.exists() else f"nothing was begun in {output} yet"
        raise KeyboardInterrupt(f"interrupted; {left}") from None


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Errors of reading ``path`` name it.

    Raises
    ------
    TrainingError : in place of OSError, ValueError (damaged JSON and TIFF are such) or a TrainingError without the file
    """
    try:
        yield
    except (OSError, ValueError, TrainingError) as error:
        cause = getattr(error, "strerror", None) or error
        raise TrainingError(f"{path} cannot be read as {what}: {cause}") from error


def refuse_idle(options: dict[str, Any], why: str) -> None:
    """Raises TrainingError where one of these options, by parameter name, was given: it would not do anything."""
    idle = ", ".join(f"--{name.replace('_', '-')}" for name in given(options))
    if idle:
        raise TrainingError(f"{idle}: no effect {why}")


def given(values: dict[str, Any]) -> dict[str, Any]:
    """The options that were given; the settings know the defaults of the others."""
    return {name: value for name, value in values.items() if value is not None}


def training_side(module: str) -> Any:
    """A module of the training rooms.

    Raises
    ------
    TrainingError : a package of the extra is absent; the message names it
    """
    try:
        return import_module(f"photonstep.{module}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("photonstep"):
            raise
        raise TrainingError(f"{error.name} is not installed; the training side needs it: {EXTRA}") from error
