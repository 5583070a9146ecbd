"""The commands of the training side: train, distill, prune, quantize, export, validate. They parse, call and print.

They need the extra ``train``; everything else of photonstep works without it, so nothing heavy is imported up here.
"""

import json
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
PoolOption = Annotated[
    Path | None,
    typer.Option("--data", help="Folder that holds clean/; without it simulated fields and sample images alone."),
]
TrainingSteps = Annotated[int | None, typer.Option(min=1, help="Optimiser steps. [dim]\\[default: the stage's][/]")]
RateOption = Annotated[float | None, typer.Option(help="Highest learning rate. [dim]\\[default: the stage's][/]")]
SeedOption = Annotated[int | None, typer.Option(help="Of weights, crops, cameras and noise.")]
TrainDevice = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (train, distill, prune, quantize, export, validate):
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
    work = _training_side("models.fine_tune")
    request = work.TrainRequest(
        output=output, data=tuple(data or ()), kind=kind, tier=tier, start_from=start_from, steps=steps,
        learning_rate=learning_rate, camera=camera, seed=seed, pool=pool, licence=licence, device=device,
    )  # fmt: skip
    found = work.train_recordings(request)
    print(
        f"{found.fields_trained} fields trained on, {found.fields_held_out} held out; {found.steps} steps in "
        f"{found.seconds / 60:.1f} min; held-out loss {found.first_held_out_loss:.4f} -> best at step "
        f"{found.best_step}, last {found.last_held_out_loss:.4f}\nwrote {found.weights} and {found.curve}"
    )


def distill(
    run: RunArgument,
    output: OutputRun,
    steps: Annotated[
        Literal["1", "2", "4"], typer.Option(help="Network evaluations that the student will take.")
    ] = "1",
    detail: Annotated[
        bool, typer.Option("--detail", help="A student with a detail knob: 0 is the mean, 1 the teacher's walk.")
    ] = False,
    tier: Annotated[str | None, typer.Option(help="Size of the student; the teacher's if not given.")] = None,
    start_from: Annotated[str | None, typer.Option("--from", help="What the student starts from.")] = None,
    teacher_steps: Annotated[
        int, typer.Option(min=1, help="Evaluations of the teacher that one of the student's learns, with --steps 1.")
    ] = 1,
    training_steps: TrainingSteps = None,
    learning_rate: RateOption = None,
    pool: PoolOption = None,
    seed: SeedOption = None,
    device: TrainDevice = "auto",
) -> None:
    """Teach a student to do in few evaluations what its teacher does in many (docs/compression.md)."""
    work = _training_side("export.detail" if detail else "export.distil")
    chosen = {"steps": training_steps, "learning_rate": learning_rate, "seed": seed}
    if detail:
        settings, call = work.DetailSettings(device=device, **_given(chosen)), work.distill_detail
    else:
        settings = work.DistilSettings(device=device, teacher_steps=teacher_steps, **_given(chosen))
        call = work.distill
    print(call(run, output, steps=int(steps), data=pool, tier=tier, start_from=start_from, settings=settings))


def prune(
    run: RunArgument,
    output: OutputRun,
    target_macs: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of the multiply-accumulates to keep, such as 0.5.")
    ] = None,
    target_ms: Annotated[
        float | None, typer.Option(min=0, help="Milliseconds of one evaluation to reach, 512x512.")
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="What it learns from; the unpruned network if not given.")] = None,
    backend: Annotated[str, typer.Option(help="Where time is measured: openvino or onnxruntime.")] = "openvino",
    multiple: Annotated[int, typer.Option(help="Widths stay multiples of this: 8, 16 or 32.")] = 16,
    threads: Annotated[int, typer.Option(min=1, help="Of the measured backend.")] = 1,
    training_steps: TrainingSteps = None,
    learning_rate: RateOption = None,
    pool: PoolOption = None,
    seed: SeedOption = None,
    device: TrainDevice = "auto",
) -> None:
    """Take out the channels that cost most time for what they give, then let the rest recover."""
    work = _training_side("export.prune")
    settings = work.PruneSettings(
        target_macs=target_macs, target_ms=target_ms, multiple=multiple, backend=backend, threads=threads,
        device=device, **_given({"steps": training_steps, "learning_rate": learning_rate, "seed": seed}),
    )  # fmt: skip
    print(work.prune(run, output, data=pool, teacher=teacher, settings=settings))


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
) -> None:
    """Write networks of lower precision beside a run's weights; one that misses its gate is not written."""
    work = _training_side("export.quantize")
    settings = work.QuantizeSettings(frames=(*work.QuantizeSettings.frames, *map(str, frames or ())))
    found = work.quantize(run, precision=precision, data=pool, output=output, settings=settings)
    for name, entry in found.entries.items():
        worst = max(row["loss_db"] for row in entry["by_noise"])
        verdict = f"wrote {found.files[name]}" if found.passes(name) else "misses its gate: not written"
        print(f"{name}: {verdict}, {entry['size_bytes'] / 1e6:.2f} MB, at worst {worst:+.3f} dB against float32")
    if not all(found.passes(name) for name in found.entries):
        print("ship the higher precision, or fine-tune: python -m photonstep.export.qat")
        raise typer.Exit(EXIT_MISSED)


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder; for the other formats a bundle will do.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The .photonstep file.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the bundle; the run folder's name if not given.")] = None,
    version: Annotated[str, typer.Option("--bundle-version", help="Of the bundle.")] = "1.0.0",
    test_frame: Annotated[Path | None, typer.Option(help="A raw uint8 or uint16 frame (TIFF) to prove it on.")] = None,
    frame_steps: Annotated[
        list[int] | None,
        typer.Option(min=1, help="A whole restoration of so many evaluations as one graph; may be repeated (1, 4)."),
    ] = None,
    validations: Annotated[
        list[Path] | None, typer.Option("--validation", help="JSON of photonstep validate, for the report.")
    ] = None,
    licence: Annotated[str, typer.Option(help="Of the weights, an SPDX expression.")] = "MIT",
    tensorrt: Annotated[
        Literal["rtx", "classic"] | None, typer.Option(help="Build a TensorRT engine on this machine, into its cache.")
    ] = None,
    engine_precision: Annotated[
        Literal["fp16", "int8_symmetric"], typer.Option(help="Of the TensorRT engine.")
    ] = "fp16",
    bioimageio: Annotated[
        Path | None, typer.Option(help="Also write a BioImage Model Zoo package (.zip) of the bundle.")
    ] = None,
    camera: Annotated[Path | None, typer.Option(help="camera.json that the BioImage package is made for.")] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Make a bundle of a run: networks, whole-frame graphs, report, model card; or other formats of a bundle."""
    bundle = run if run.suffix == ".photonstep" or not run.is_dir() else output
    if bundle is None:
        raise TrainingError("no output given; expected --output NAME.photonstep for the bundle of a run")
    if bundle is output:
        _package(run, bundle, name, version, test_frame, frame_steps, validations, licence, overwrite)
    elif output is not None:
        raise TrainingError(f"{run} is a bundle already; leave --output out, or give a run folder")
    if bioimageio is not None:
        from photonstep.runtime.camera import Camera

        shown = None if camera is None else Camera.load(camera)
        written = _training_side("export.bioimageio").write(bundle, bioimageio, camera=shown, overwrite=overwrite)
        print(f"wrote {written}")
    if tensorrt is not None:
        _build_engine(bundle, tensorrt, engine_precision)


def validate(
    bundle: Annotated[str, typer.Argument(help="The student: a .photonstep file or a shipped name.")],
    against: Annotated[str, typer.Option(help="The teacher, or the same bundle for another precision.")],
    precision: Annotated[str, typer.Option(help="Of the student: fp32, bf16, int8.")] = "fp32",
    against_precision: Annotated[str, typer.Option(help="Of the teacher.")] = "fp32",
    steps: Annotated[int | None, typer.Option(min=1, help="Evaluations of the student.")] = None,
    against_steps: Annotated[int | None, typer.Option(min=1, help="Evaluations of the teacher.")] = None,
    gate: Annotated[
        Literal["stage", "total"], typer.Option(help="Limit of the PSNR loss: 0.1 dB a stage, 0.3 dB in total.")
    ] = "total",
    pool: PoolOption = None,
    scenes: Annotated[int | None, typer.Option(min=0, help="Simulated scenes in every noise bin.")] = None,
    size_px: Annotated[int | None, typer.Option("--size", min=32, metavar="PX", help="Side of the frames.")] = None,
    blank_frames: Annotated[int | None, typer.Option(min=0, help="Empty fields for every light level.")] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="All figures.")] = None,
    html: Annotated[Path | None, typer.Option(help="Report with pictures, one self-contained page.")] = None,
    png: Annotated[Path | None, typer.Option(help="The report's pictures on one sheet.")] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Hold a student against its teacher in every noise bin; exit code 1 where a gate is missed."""
    from rich.console import Console

    work, report = _training_side("export.validate"), _training_side("export.validation_report")
    report.check_free((json_path, html, png), overwrite=overwrite)
    console = Console()
    with console.status("photographing and restoring") as status:
        found = work.validate(
            bundle, against, precision=precision, against_precision=against_precision, steps=steps,
            against_steps=against_steps, gates=work.GATES[gate], data=pool,
            progress=lambda done, total: status.update(f"restored {done} of {total} frames"),
            **_given({"scenes": scenes, "size_px": size_px, "blank_frames": blank_frames}),
        )  # fmt: skip
    console.print(report.table(found))
    for path in report.write_reports(found, json_path=json_path, html_path=html, png_path=png, overwrite=overwrite):
        print(f"wrote {path}")
    if not found.passed:
        raise typer.Exit(EXIT_MISSED)


def _package(
    run: Path, output: Path, name: str | None, version: str, test_frame: Path | None, frame_steps: list[int] | None,
    validations: list[Path] | None, licence: str, overwrite: bool,
) -> None:  # fmt: skip
    work, records = _training_side("export.package"), _training_side("export.validation")
    bundle = work.package(
        run, output, name=name or run.resolve().name, version=version,
        test_frame=test_frame or Path(__file__).parent / "demo_data" / "demo.tif",
        frame_steps=frame_steps or (1, 4), licence=licence, overwrite=overwrite,
        validation=[records.Validation.from_dict(json.loads(path.read_text())) for path in validations or ()],
    )  # fmt: skip
    print(f"wrote {bundle!r}, {output.stat().st_size / 1e6:.2f} MB, SHA-256 {bundle.sha256}")


def _build_engine(bundle: Path, flavour: str, precision: str) -> None:
    def show(progress: Any) -> None:
        left = "" if progress.remaining_s is None else f", about {progress.remaining_s:.0f} s left"
        print(f"\r{100 * progress.done:3.0f} %  {progress.phase:.40}{left}\033[K", end="", flush=True)

    made = _training_side("export.tensorrt").build(bundle, precision=precision, flavour=flavour, progress=show)
    print(f"\r\033[Kengine {'found' if made.cached else f'built in {made.seconds:.1f} s'}: {made.path}")


def _given(values: dict[str, Any]) -> dict[str, Any]:
    """The options that were given; the settings know the defaults of the others."""
    return {name: value for name, value in values.items() if value is not None}


def _training_side(module: str) -> Any:
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
