"""What the commands print: tables and lines made with rich from what the commands found."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console, Group
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from photonstep.bench import BenchRow
from photonstep.demo import Demo
from photonstep.doctor import Diagnosis, Trial
from photonstep.machine import cpu_model, describe
from photonstep.runtime.bundle import Bundle
from photonstep.runtime.camera import Camera
from photonstep.runtime.quality_flags import FLAGS

REPORT_LINES = 40  # of a report in another form than photonstep's own

# Worth a word when they are absent; imagecodecs reads TIFF compressions other than deflate.
RUNTIME_PACKAGES = ("openvino", "onnxruntime", "pillow", "imagecodecs")


def progress_bar(console: Console, *, disable: bool) -> Progress:
    """Return the progress bar of a restoration: file, bar, planes and time left."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TextColumn("planes, ETA"),
        TimeRemainingColumn(),
        console=console,
        disable=disable,
    )


def camera_line(file_name: str, channel: str, camera: Camera) -> str:
    """Return the camera of a file's channel on one line; ``channel`` may be empty."""
    where = f"{file_name}, {channel}" if channel else file_name
    return f"{where}: camera {camera_numbers(camera)}"


def camera_numbers(camera: Camera) -> str:
    """Return a camera's numbers and where they come from."""
    numbers, (y, x) = camera.summary(), camera.noise_correlation
    maps = ", medians of maps" if camera.map_shape else ""
    return (
        f"{camera.source}{maps}: offset {numbers['offset_adu']:.4g} ADU, gain {numbers['gain_e_per_adu']:.4g} e-/ADU, "
        f"readout noise {numbers['readout_noise_e']:.3g} e-, noise correlation {y:.2f} (y), {x:.2f} (x)"
    )


def flag_lines(flags: Counter[str], planes: int) -> Iterator[str]:
    """Yield a line for each flag that was raised: on how many planes, and what it means."""
    for flag, count in flags.most_common():
        yield f"{flag} on {count} of {planes} planes: {FLAGS.get(flag, '')}"


def _titled(title: str, table: Table) -> Group:
    # Not the table's own title: rich folds that to the table's width.
    return Group(Text(title, style="bold"), table)


def _columns(*columns: str) -> Table:
    table = Table(header_style="dim", box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    return table


def _facts(facts: Sequence[tuple[str, str]]) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(name, escape(value))
    return table


def demo_tables(demo: Demo, restorer: Any) -> Iterator[Group]:
    """Yield the demo's findings: quality against the ground truth, and what ran where at which speed."""
    quality = _columns("", "PSNR (dB)", "SSIM")
    quality.add_row("raw frame", f"{demo.raw_psnr_db:.2f}", f"{demo.raw_ssim:.3f}")
    quality.add_row("restored", f"[bold]{demo.psnr_db:.2f}[/]", f"[bold]{demo.ssim:.3f}[/]")
    yield _titled("Mouse brain, confocal: one real frame restored blind, against the mean of 50", quality)
    manifest, latency, (height, width) = restorer.bundle.manifest, demo.latency, demo.raw.shape
    place = cpu_model() if restorer.device == "cpu" else restorer.device
    runs = f"{latency.runs} runs of {height} x {width} px"
    facts = [
        ("bundle", f"{manifest.name} {manifest.version}, {demo.result.steps} step(s)"),
        ("ran on", f"{restorer.backend_name} {restorer.precision}, {place}"),
        ("latency", f"p50 {latency.p50_ms:.1f} ms, p99 {latency.p99_ms:.1f} ms ({runs})"),
        ("speed", f"{latency.fps:.1f} frames/s, {latency.outside_network_share:.0%} of the time outside the network"),
        ("camera", camera_numbers(demo.camera)),
    ]
    facts += [("flag", f"{flag}: {FLAGS[flag]}") for flag in demo.result.flags]
    yield _titled("\nWhat ran where", _facts(facts))


def bench_table(rows: Sequence[BenchRow]) -> Group:
    """Return the measurements as a table."""
    table = _columns("bundle", "runs on", "size", "steps", "p50 ms", "p99 ms", "fps", "outside net", "runs")
    for row in rows:
        latency = row.latency
        table.add_row(
            row.bundle,
            f"{row.backend} {row.precision} {row.device}",
            f"{row.height_px} x {row.width_px}",
            str(row.steps),
            f"{latency.p50_ms:.1f}",
            f"{latency.p99_ms:.1f}",
            f"{latency.fps:.1f}",
            f"{latency.outside_network_share:.0%}",
            str(latency.runs),
        )
    return _titled(f"Latency on {cpu_model()}, uint16 in to uint16 out", table)


def camera_table(camera: Camera) -> Group:
    """Return a calibrated camera as a table, the gain with its confidence interval."""
    numbers, interval = camera.summary(), camera.gain_interval_e_per_adu
    table = _columns("", "value", "unit", "95 % interval")
    table.add_row("offset", f"{numbers['offset_adu']:.2f}", "ADU", "")
    gain_interval = f"{interval[0]:.4g} to {interval[1]:.4g}" if interval else ""
    table.add_row("gain", f"{numbers['gain_e_per_adu']:.4g}", "e-/ADU", gain_interval)
    table.add_row("readout noise", f"{numbers['readout_noise_e']:.3g}", "e- rms", "")
    if camera.saturation_adu is not None:
        table.add_row("saturation", f"{camera.saturation_adu:.0f}", "ADU", "")
    table.add_row("noise correlation", "{:.2f}, {:.2f}".format(*camera.noise_correlation), "y, x", "")
    maps = ", medians of {} x {} maps".format(*camera.map_shape) if camera.map_shape else ""
    return _titled(f"Camera, {camera.source}{maps}", table)


def bundle_tables(bundle: Bundle) -> Iterator[Group]:
    """Yield what a bundle says about itself."""
    manifest = bundle.manifest
    yield _titled(f"{manifest.name} {manifest.version}", _facts(_bundle_facts(bundle)))
    sizes = {member.name: member.size_bytes for member in manifest.members}
    networks = _columns("precision", "member", "size", "opset")
    for network in manifest.networks:
        networks.add_row(network.precision, network.member, f"{sizes[network.member] / 1e6:.2f} MB", str(network.opset))
    yield _titled("\nNetworks", networks)
    data = Table("name", "licence", "source", header_style="dim", box=None, pad_edge=False)
    for item in manifest.training_data:
        data.add_row(*(escape(text) for text in (item.name, item.licence, item.source)))
    yield _titled("\nTraining data", data)
    if manifest.model_card is not None:
        yield _titled("", Text(f"model card: {manifest.model_card}; read it with: photonstep info --card", style="dim"))
    if manifest.report is not None:
        content = json.loads(bundle.read(manifest.report.member))
        told = list(_stages_and_gates(content)) or list(flatten(content))[:REPORT_LINES]
        yield _titled(f"\nReport (all figures in {manifest.report.member})", _facts(told))


def _bundle_facts(bundle: Bundle) -> list[tuple[str, str]]:
    manifest, model, limits = bundle.manifest, bundle.manifest.model, bundle.manifest.operating_range
    plan = manifest.defaults
    return [
        ("file", str(bundle.path)),
        ("sha256", bundle.sha256),
        ("task", manifest.task),
        ("created", str(manifest.created)),
        ("licence", manifest.licence),
        ("authors", ", ".join(manifest.authors)),
        ("provenance", manifest.provenance),
        ("model", f"{model.prediction}, {model.parameters:,} parameters, {model.kmac_per_px:.1f} kMAC per pixel"),
        ("tile halo", f"{model.receptive_radius_px} px"),
        ("default plan", f"{plan.sampler}, {plan.steps} step(s); validated up to {plan.max_steps}"),
        ("photons per pixel", f"{limits.photons_min:g} to {limits.photons_max:g}"),
        ("noise correlation", f"up to {limits.max_noise_correlation:g}"),
    ]


def _stages_and_gates(report: Any) -> Iterator[tuple[str, str]]:
    """What was done to the weights and how their gates went, a line each."""
    if not isinstance(report, dict):
        return
    for stage in report.get("stages", ()):
        cost, gained = stage.get("cost", {}), stage.get("gained", {})
        told = f"{stage['kmac_per_px']:.4g} kMAC per pixel" if "kmac_per_px" in stage else ""
        if cost and gained:
            told += f", {cost['steps']} steps, held-out loss {gained['last_held_out_loss']:.4f}"
        yield f"{stage.get('stage', '')} {stage.get('run', '')}".strip(), told.removeprefix(", ")
    for found in report.get("validations", ()):
        sides = (found.get(side, {}) for side in ("student", "teacher"))
        student, teacher = (f"{side.get('name', '?')} {side.get('precision', '?')}" for side in sides)
        missed = len(found.get("failures", ()))
        yield f"{student} against {teacher}", "passes every gate" if not missed else f"misses {missed} gates"


def flatten(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted name, text) for what nested JSON holds; of rows, as in a loss curve, only the last one."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield from flatten(child, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and any(isinstance(child, dict | list) for child in value):
        yield from flatten(value[-1], f"{name}, row {len(value)} of {len(value)}")
    elif isinstance(value, list):
        yield name, ", ".join(map(str, value))
    else:
        yield name, f"{value:.4g}" if isinstance(value, float) else str(value)


def doctor_tables(diagnosis: Diagnosis) -> Iterator[Group]:
    """Yield what the machine is, what ran on it, and what ``auto`` chose."""
    machine = describe()
    processor = f"{machine['cpu']}, {machine['cpu_count']} usable"
    features = " ".join(machine["cpu_features"]) or "unknown"
    facts = [("processor", processor), ("features", features), ("system", machine["system"])]
    facts += [("kernels", diagnosis.kernels), *diagnosis.devices]
    yield _titled("Machine", _facts(facts))
    packages = machine["packages"]
    versions = [("photonstep", machine["photonstep"]), ("python", machine["python"]), *packages.items()]
    absent = ", ".join(name for name in RUNTIME_PACKAGES if name not in packages)
    yield _titled("\nVersions", _facts([*versions, ("absent", absent)] if absent else versions))
    table = Table(
        "backend", "p50 ms", "p99 ms", "against the bundle's test frame", header_style="dim", box=None, pad_edge=False
    )
    for trial in diagnosis.trials:
        table.add_row(trial.name, *_trial_cells(trial))
    yield _titled("\nBackends, each one run here", table)
    if diagnosis.auto.latency is not None:
        yield _titled(
            f"\nauto chose {diagnosis.auto.name}",
            _facts([("why", diagnosis.choice), ("timed run", _timed(diagnosis.auto))]),
        )
    else:
        yield _titled("\nauto found nothing that runs", _facts([("cause", str(diagnosis.auto.cause))]))


def _timed(trial: Trial) -> str:
    latency = trial.latency
    if latency is None:
        return "none"
    return f"p50 {latency.p50_ms:.1f} ms, p99 {latency.p99_ms:.1f} ms, {latency.runs} runs"


def _trial_cells(trial: Trial) -> tuple[str, str, str]:
    if trial.latency is None:
        return "", "", f"[yellow]absent: {escape(str(trial.cause))}[/]"
    verdict = "[dim]the bundle has none[/]"
    if trial.comparison is not None:
        colour, word = ("green", "fits") if trial.is_right else ("red", "WRONG")
        verdict = f"[{colour}]{word}[/]: {trial.comparison}"
    return f"{trial.latency.p50_ms:.1f}", f"{trial.latency.p99_ms:.1f}", verdict
