"""The command line. Commands only parse, call and print; what they do lives in the module of the same name.

Heavy imports stay inside the commands: ``photonstep --help`` answers at once.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from photonstep import bundle_commands, training_commands
from photonstep.runtime.errors import BundleError, CameraError, PhotonstepError

if TYPE_CHECKING:
    from rich.console import Console

    from photonstep.runtime.camera import Camera

EXIT_SOME_FAILED, EXIT_ERROR, EXIT_INTERRUPTED = 1, 2, 130
GOOD_MAP_FRAMES = 100


class ReportingGroup(TyperGroup):
    """Turns a PhotonstepError or OSError into one red line and exit code 2, and Ctrl-C into exit code 130."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except (PhotonstepError, OSError) as error:
            if ctx.params.get("debug") or isinstance(error, BrokenPipeError):  # whose handling is click's affair
                raise
            print_error(error)
            raise typer.Exit(EXIT_ERROR) from None
        except KeyboardInterrupt as stop:
            told = str(stop) or "interrupted; unfinished output was removed"
            _messages().print(told, style="yellow", markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(EXIT_INTERRUPTED) from None


app = typer.Typer(
    cls=ReportingGroup,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Restore microscope frames at camera speed with few-step diffusion models.\n\n"
    "Start with [bold]photonstep demo[/bold].",
)

BundleOption = Annotated[
    str, typer.Option(help="Bundle: [cyan]base[/], [cyan]live[/], [cyan]sr2[/] or the path of a .photonstep file.")
]
DeviceOption = Annotated[
    str, typer.Option(help="auto, cpu or cuda. A device that is asked for and cannot run is an error.")
]
BackendOption = Annotated[str | None, typer.Option(help="openvino or onnxruntime; chosen by a timed run if not given.")]
PrecisionOption = Annotated[str, typer.Option(help="auto, fp32, bf16 or int8.")]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="CPU threads; all cores if not given.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output (never an input).")]


def main() -> None:
    """Entry point of the ``photonstep`` command."""
    app(prog_name="photonstep")


def _show_version(wanted: bool) -> None:
    if wanted:
        from photonstep import __version__

        print(f"photonstep {__version__}")
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of every command; `ReportingGroup` reads ``debug``."""


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the picture goes (PNG).")] = Path(
        "photonstep-demo.png"
    ),
    bundle: BundleOption = "base",
    device: DeviceOption = "cpu",
    overwrite: OverwriteOption = False,
) -> None:
    """Restore a real noisy frame that ships with photonstep, and draw raw | restored | ground truth."""
    from photonstep import demo as work
    from photonstep.report import demo_tables

    work.check_picture_path(output, overwrite=overwrite)
    restorer = _load(bundle, device=device)
    found = work.run_demo(restorer)
    work.save_picture(work.draw_demo(found, restorer), output, overwrite=overwrite)
    for table in demo_tables(found, restorer):
        _results().print(table)
    _results().print(f"picture: [bold]{output}[/bold]", soft_wrap=True)


@app.command()
def restore(
    inputs: Annotated[
        list[str], typer.Argument(metavar="IN...", help="TIFF, OME-TIFF or PNG files, folders of them, or wildcards.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A file for one input, else a folder (made if absent).")
    ],
    bundle: BundleOption = "base",
    camera: Annotated[
        Path | None, typer.Option(help="camera.json of [cyan]photonstep calibrate[/].", rich_help_panel="Camera")
    ] = None,
    offset_adu: Annotated[
        float | None, typer.Option(help="Offset in ADU (dark level).", rich_help_panel="Camera")
    ] = None,
    gain_e_per_adu: Annotated[
        float | None,
        typer.Option(help="Photoelectrons per ADU (some vendors print the reciprocal).", rich_help_panel="Camera"),
    ] = None,
    readout_noise_e: Annotated[
        float | None, typer.Option(help="Readout noise in photoelectrons, rms.", rich_help_panel="Camera")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, help="Network evaluations: 1 is the mean, 2 to 4 give more detail. [dim]\\[default: the bundle's][/]"
        ),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(help="ddim, ddpm, dpm_solver_pp_2m, heun or consistency. [dim]\\[default: the bundle's][/]"),
    ] = None,
    detail: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Knob of bundles that have one: 0 is the mean, 1 most texture."),
    ] = None,
    output_unit: Annotated[
        Literal["input", "photoelectrons"],
        typer.Option("--unit", help="Keep the input's dtype and unit, or write float32 photoelectrons."),
    ] = "input",
    device: DeviceOption = "auto",
    backend: BackendOption = None,
    precision: PrecisionOption = "auto",
    threads: ThreadsOption = None,
    overwrite: OverwriteOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Restore every plane of image files; axes, pixel size, metadata and dtype are kept.

    Without camera numbers, the camera is estimated once for each channel of each file and printed.
    """
    from photonstep import restore_files as work
    from photonstep.runtime.plan import Plan

    Plan(steps=steps or 1, sampler=sampler or "ddim")  # a wrong name is told before any work starts
    asked = {"steps": steps, "sampler": sampler, "detail": detail}
    given = {name: value for name, value in asked.items() if value is not None}
    plan = work.Plan(
        camera=_camera(camera, offset_adu, gain_e_per_adu, readout_noise_e),
        output=output_unit,
        options=given,
        overwrite=overwrite,
    )
    pairs = work.plan_targets(work.expand_inputs(inputs), output, plan)
    if len(pairs) > 1 or pairs[0][1] != output:
        work.make_folder(output)
    outcome = work.Outcome()
    jobs = work.inspect(pairs, plan, outcome)
    if len(pairs) == 1 and outcome.failures:
        raise outcome.failures[0][1]
    if jobs:
        restorer = _load(bundle, device=device, backend=backend, precision=precision, threads=threads)
        _restore_all(jobs, restorer, plan, outcome, quiet=quiet)
    _report_outcome(outcome, len(pairs), quiet=quiet)
    if outcome.failures:
        raise typer.Exit(EXIT_SOME_FAILED)


def _restore_all(jobs: list[Any], restorer: Any, plan: Any, outcome: Any, *, quiet: bool) -> None:
    from photonstep import restore_files as work
    from photonstep.report import camera_line, progress_bar

    console = _messages()
    with progress_bar(console, disable=quiet) as progress:
        task = progress.add_task("restoring", total=sum(job.plane_count for job in jobs))
        planned = 0
        for job in jobs:
            progress.update(task, description=job.source.name)
            planned += job.plane_count

            def show_camera(channel: str, camera: "Camera", job: Any = job) -> None:
                if not quiet:
                    line = camera_line(job.source.name, channel, camera)
                    console.print(line, markup=False, highlight=False, soft_wrap=True)

            try:
                work.restore_file(
                    job, restorer, plan, outcome, on_camera=show_camera, on_plane=lambda: progress.advance(task)
                )
            except PhotonstepError as error:
                if len(jobs) == 1 and not outcome.failures:
                    raise
                outcome.failures.append((job.source, error))
                progress.update(task, completed=planned)


def _report_outcome(outcome: Any, file_count: int, *, quiet: bool) -> None:
    from photonstep.report import flag_lines

    console = _messages()
    for _, error in outcome.failures:
        print_error(error)
    if quiet:
        return
    for line in flag_lines(outcome.flags, outcome.planes):
        console.print(line, style="yellow", highlight=False, soft_wrap=True)
    done = file_count - len(outcome.failures)
    console.print(f"{outcome.planes} planes restored, {done} of {file_count} files written", highlight=False)


@app.command()
def calibrate(
    dark: Annotated[Path, typer.Option(help="Stack of frames taken with the shutter closed.")],
    flat: Annotated[
        list[Path],
        typer.Option(help="Stack of frames of one constant, even illumination; repeat for several light levels."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the camera goes.")] = Path("camera.json"),
    maps: Annotated[
        bool, typer.Option(help="Offset and readout noise for each pixel (100 or more dark frames), or one number.")
    ] = True,
    overwrite: OverwriteOption = False,
) -> None:
    """Measure a camera by photon transfer: offset and readout noise from dark frames, gain from flat ones."""
    from photonstep.calibrate import calibrate_files
    from photonstep.report import camera_table

    if output.exists() and not overwrite:
        raise CameraError(f"{output}: exists already; choose another --output, or pass --overwrite")
    camera, dark_count = calibrate_files(dark, flat, maps=maps)
    camera.save(output, overwrite=overwrite)
    if maps and dark_count < GOOD_MAP_FRAMES:
        _messages().print(
            f"the readout map is read from {dark_count} dark frames, so single pixels are off by about "
            f"{100 / (2 * (dark_count - 1)) ** 0.5:.0f} %; record {GOOD_MAP_FRAMES} or more, or pass --no-maps",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )
    _results().print(camera_table(camera))
    _results().print(f"camera: [bold]{output}[/bold]", soft_wrap=True)


@app.command()
def info(
    bundle: Annotated[str, typer.Argument(help="base, live, sr2 or the path of a .photonstep file.")],
    card: Annotated[bool, typer.Option("--card", help="Print the model card (Markdown) instead.")] = False,
) -> None:
    """Show what a bundle holds: networks, range, licences of the training data, validation report."""
    from photonstep.report import bundle_tables
    from photonstep.runtime.bundle import Bundle
    from photonstep.runtime.restore import find_bundle

    opened = Bundle.load(find_bundle(bundle))
    if card:
        if opened.manifest.model_card is None:
            raise BundleError(f"{opened.path.name} holds no model card; leave --card out")
        print(opened.read(opened.manifest.model_card).decode())
        return
    for table in bundle_tables(opened):
        _results().print(table)


@app.command()
def doctor(bundle: BundleOption = "base") -> None:
    """Check this machine: versions, devices, backends, what auto chooses and the timed run that proves it."""
    from photonstep.doctor import examine
    from photonstep.report import doctor_tables

    found = examine(bundle)
    for table in doctor_tables(found):
        _results().print(table)
    if not found.can_run:
        raise typer.Exit(EXIT_SOME_FAILED)


@app.command()
def bench(
    bundle: Annotated[
        list[str] | None, typer.Option(help="Bundle, may be repeated. [dim]\\[default: base, live][/]")
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(
            help="Frame size, 512 or 512x640 (height x width), may be repeated. [dim]\\[default: 256, 512, 1024][/]"
        ),
    ] = None,
    steps: Annotated[
        list[int] | None, typer.Option(min=1, help="Steps, may be repeated. [dim]\\[default: 1, 2, 4][/]")
    ] = None,
    device: DeviceOption = "auto",
    backend: BackendOption = None,
    precision: PrecisionOption = "auto",
    threads: ThreadsOption = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Time for each row.")] = 5.0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the rows with machine, versions and commit.")
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Measure latency: bundles x frame sizes x steps, uint16 frame in to uint16 frame out."""
    from photonstep import bench as work
    from photonstep.report import bench_table

    if json_file is not None:
        work.check_json_path(json_file, overwrite=overwrite)
    sizes = [work.parse_size(text) for text in size or ("256", "512", "1024")]

    def load(name: str) -> Any:
        return _load(name, device=device, backend=backend, precision=precision, threads=threads)

    bundles, counts = bundle or ("base", "live"), steps or (1, 2, 4)
    with _messages().status("measuring"):
        rows = list(work.run_bench(load, bundles=bundles, sizes=sizes, steps=counts, budget_s=seconds))
    _results().print(bench_table(rows))
    if json_file is not None:
        work.write_json(work.bench_record(rows, threads=threads), json_file)


training_commands.add_to(app)
bundle_commands.add_to(app)


def print_error(error: Exception) -> None:
    """Print an error as one red line on stderr."""
    message = " ".join(str(error).split())
    _messages().print(f"error: {message}", style="red", markup=False, highlight=False, soft_wrap=True)


def _load(bundle: str, **choices: Any) -> Any:
    import photonstep

    return photonstep.load(bundle, **choices)


def _camera(path: Path | None, offset: float | None, gain: float | None, readout: float | None) -> "Camera | None":
    """Return the camera that the options name, None when they name none."""
    from photonstep.runtime.camera import Camera

    numbers = {"--offset-adu": offset, "--gain-e-per-adu": gain, "--readout-noise-e": readout}
    missing = [name for name, value in numbers.items() if value is None]
    if path is not None and len(missing) < len(numbers):
        raise CameraError("--camera and camera numbers were both given; give one or the other")
    if path is not None:
        return Camera.load(path)
    if len(missing) == len(numbers):
        return None
    if missing:
        raise CameraError(f"a camera has three numbers; {', '.join(missing)} missing")
    return Camera(offset_adu=offset, gain_e_per_adu=gain, readout_noise_e=readout)


def _results() -> "Console":
    from rich.console import Console

    return Console(file=sys.stdout)


def _messages() -> "Console":
    from rich.console import Console

    return Console(file=sys.stderr)


if __name__ == "__main__":
    main()
