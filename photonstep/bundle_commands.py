"""The commands for finished weights: export makes bundles and other formats, validate holds them against a teacher.

They need the extra ``train``, as `training_commands` do; nothing heavy is imported up here.
"""

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from photonstep.runtime.errors import TrainingError
from photonstep.training_commands import (
    EXIT_MISSED,
    PANEL,
    OverwriteOption,
    PoolOption,
    given,
    reading,
    refuse_idle,
    training_side,
)

DEMO_FRAME = Path(__file__).parent / "demo_data" / "demo.tif"
BUNDLE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")  # as the manifest wants it
Frame = tuple[int, int] | None  # height, width, pixels


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (export, validate):
        app.command(rich_help_panel=PANEL)(command)


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run folder; for the other formats a bundle will do.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The .photonstep file.")] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="Of the bundle: lower-case letters, digits, - and _. "
            "[dim]\\[default: the run folder's, in lower case, every other character a -][/]"
        ),
    ] = None,
    version: Annotated[str, typer.Option("--bundle-version", help="Of the bundle.")] = "1.0.0",
    test_frame: Annotated[Path | None, typer.Option(help="A raw uint8 or uint16 frame (TIFF) to prove it on.")] = None,
    frame_steps: Annotated[
        list[int] | None,
        typer.Option(min=1, help="A whole restoration of so many evaluations as one graph; may be repeated (1, 4)."),
    ] = None,
    validations: Annotated[
        list[Path] | None, typer.Option("--validation", help="JSON of photonstep validate, for the report.")
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option(help="Of the weights, SPDX. [dim]\\[default: MIT, or NOASSERTION after recordings of yours][/]"),
    ] = None,
    authors: Annotated[list[str] | None, typer.Option("--author", help="Of the weights; repeat for several.")] = None,
    tensorrt: Annotated[
        Literal["rtx", "classic"] | None, typer.Option(help="Build a TensorRT engine on this machine, into its cache.")
    ] = None,
    engine_precision: Annotated[
        Literal["fp16", "int8_symmetric"] | None,
        typer.Option(help="Of the TensorRT engine. [dim]\\[default: fp16][/]"),
    ] = None,
    engine_min: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="H W", help="Smallest frame of the engine, in pixels. [dim]\\[default: 64 64][/]"),
    ] = None,
    engine_opt: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="H W", help="Frame that the engine is tuned for. [dim]\\[default: 512 512][/]"),
    ] = None,
    engine_max: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="H W", help="Largest frame of the engine. [dim]\\[default: 2048 2048][/]"),
    ] = None,
    bioimageio: Annotated[
        Path | None, typer.Option(help="Also write a BioImage Model Zoo package (.zip) of the bundle.")
    ] = None,
    bioimageio_steps: Annotated[
        int | None, typer.Option(min=1, help="Evaluations in the BioImage package. [dim]\\[default: 1][/]")
    ] = None,
    camera: Annotated[Path | None, typer.Option(help="camera.json that the BioImage package is made for.")] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Make a bundle of a run: networks, whole-frame graphs, report, model card; or other formats of a bundle."""
    engine: dict[str, Any] = {
        "engine_precision": engine_precision, "engine_min": engine_min, "engine_opt": engine_opt,
        "engine_max": engine_max,
    }  # fmt: skip
    zoo = {"bioimageio_steps": bioimageio_steps, "camera": camera}
    if tensorrt is None:
        refuse_idle(engine, "without --tensorrt; add it, or leave them out")
    if bioimageio is None:
        refuse_idle(zoo, "without --bioimageio; add it, or leave them out")
    folder = _run_folder(run)
    if folder is None:
        own = {"output": output, "name": name, "test_frame": test_frame, "frame_steps": frame_steps}
        refuse_idle(
            own | {"validation": validations}, f"on {run}, a bundle already; leave it out, or give a run folder"
        )
        if bioimageio is None and tensorrt is None:
            raise TrainingError(
                f"{run} is a bundle already; say what to make of it: --bioimageio FILE.zip or --tensorrt rtx"
            )
    elif output is None:
        raise TrainingError("no output given; expected --output NAME.photonstep for the bundle of a run")
    else:
        _package(folder, output, name, version, test_frame, frame_steps, validations, licence, authors, overwrite)
    bundle = output or run
    if bioimageio is not None:
        from photonstep.runtime.camera import Camera

        chosen = given({"steps": bioimageio_steps, "camera": None if camera is None else Camera.load(camera)})
        written = training_side("export.bioimageio").write(bundle, bioimageio, overwrite=overwrite, **chosen)
        print(f"wrote {written}")
    if tensorrt is not None:
        _build_engine(bundle, tensorrt, **engine)


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
    seed: Annotated[int | None, typer.Option(help="Of scenes and noise.")] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="CPU threads; more than one may change the last digits. [dim]\\[default: 1][/]"),
    ] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="All figures.")] = None,
    html: Annotated[Path | None, typer.Option(help="Report with pictures, one self-contained page.")] = None,
    png: Annotated[Path | None, typer.Option(help="The report's pictures on one sheet.")] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Hold a student against its teacher in every noise bin; exit code 1 where a gate is missed."""
    from rich.console import Console

    work, report = training_side("export.validate"), training_side("export.validation_report")
    report.check_free((json_path, html, png), overwrite=overwrite)
    chosen = {
        "scenes": scenes, "size_px": size_px, "blank_frames": blank_frames, "seed": seed, "threads": threads,
    }  # fmt: skip
    console = Console()
    with console.status("photographing and restoring") as status:
        found = work.validate(
            bundle, against, precision=precision, against_precision=against_precision, steps=steps,
            against_steps=against_steps, gates=work.GATES[gate], data=pool,
            progress=lambda done, total: status.update(f"restored {done} of {total} frames"),
            **given(chosen),
        )  # fmt: skip
    console.print(report.table(found))
    for path in report.write_reports(found, json_path=json_path, html_path=html, png_path=png, overwrite=overwrite):
        print(f"wrote {path}")
    if not found.passed:
        raise typer.Exit(EXIT_MISSED)


def _run_folder(run: str) -> Path | None:
    """The folder of a run; None for a bundle.

    Raises
    ------
    BundleError : a bundle that is not there
    TrainingError : neither run nor bundle
    """
    from photonstep.runtime.bundle import SUFFIX
    from photonstep.runtime.restore import find_bundle, shipped_bundles

    path, shipped = Path(run), shipped_bundles()
    if path.suffix == SUFFIX or run in shipped:
        find_bundle(run)
        return None
    if path.is_dir():
        return path.absolute() if str(path) in shipped else path  # ./base is the folder, base the shipped bundle
    if path.is_file():
        raise TrainingError(f"{run} is neither run folder nor bundle; of a weights.pt give the folder: {path.parent}")
    raise TrainingError(
        f"no such run folder: {run}; expected the folder of a run, a {SUFFIX} file or one of {', '.join(shipped)}"
    )


def _bundle_name(asked: str | None, run: Path) -> str:
    """A name that the manifest takes.

    Raises
    ------
    TrainingError : the one that was asked for is not, or the folder's has nothing to keep
    """
    if asked is not None and not BUNDLE_NAME.fullmatch(asked):
        raise TrainingError(
            f"--name is {asked!r}; expected up to 63 lower-case letters, digits, - and _, not beginning with - or _"
        )
    folder = run.resolve().name
    name = asked or re.sub(r"[^a-z0-9_-]", "-", folder.lower()).strip("-_")[:63]
    if not name:
        raise TrainingError(f"the folder's name {folder!r} has no letter or digit for the bundle's; give --name")
    return name


def _package(
    run: Path, output: Path, name: str | None, version: str, test_frame: Path | None, frame_steps: list[int] | None,
    validations: list[Path] | None, licence: str | None, authors: list[str] | None, overwrite: bool,
) -> None:  # fmt: skip
    from tifffile import imread

    work, records = training_side("export.package"), training_side("export.validation")
    title, frame, known = _bundle_name(name, run), test_frame or DEMO_FRAME, []
    with reading(frame, "a TIFF"):
        imread(frame, key=0)
    for path in validations or ():
        with reading(path, "a validation"):
            known.append(records.Validation.from_dict(json.loads(path.read_text())))
    bundle = work.package(
        run, output, name=title, version=version, test_frame=frame, frame_steps=frame_steps or (1, 4),
        validation=known, licence=licence, authors=authors, overwrite=overwrite,
    )  # fmt: skip
    print(f"wrote {bundle!r}, {output.stat().st_size / 1e6:.2f} MB, SHA-256 {bundle.sha256}")


def _build_engine(
    bundle: str | Path, flavour: str, *, engine_precision: str | None, engine_min: Frame, engine_opt: Frame,
    engine_max: Frame,
) -> None:  # fmt: skip
    def show(progress: Any) -> None:
        left = "" if progress.remaining_s is None else f", about {progress.remaining_s:.0f} s left"
        print(f"\r{100 * progress.done:3.0f} %  {progress.phase:.40}{left}\033[K", end="", flush=True)

    work = training_side("export.tensorrt")
    profile = work.Profile(**given({"smallest": engine_min, "usual": engine_opt, "largest": engine_max}))
    made = work.build(bundle, precision=engine_precision or "fp16", flavour=flavour, profile=profile, progress=show)
    print(f"\r\033[Kengine {'found' if made.cached else f'built in {made.seconds:.1f} s'}: {made.path}")
