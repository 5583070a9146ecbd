"""A validation to read: a table for the terminal, Markdown for a model card, a self-contained HTML page, JSON, PNG."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..runtime.errors import TrainingError
from .gates import BlankBin, NoiseBin
from .validation import Validation

COLUMNS = ("scenes", "noise", "camera", "e-", "PSNR", "loss", "SSIM", "loss", "bias %", "missed")
BLANK_COLUMNS = ("blank fields", "camera", "photons", "frames", "teacher", "student", "missed")
STYLE = (
    "body{font:14px/1.45 system-ui,sans-serif;color:#222;max-width:1160px;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse;margin:1em 0}"
    "td,th{padding:2px 10px;text-align:right;border-bottom:1px solid #e5e5e5}"
    "td:first-child,th:first-child{text-align:left}th{color:#777;font-weight:normal}.missed{color:#b91c1c}"
    "img{max-width:100%}h1{font-size:1.4em}h2{font-size:1.1em;margin-top:2em}.passed{color:#15803d}"
)


def verdict_line(validation: Validation) -> str:
    """One sentence: who, against whom, and whether the gates are passed."""
    missed = len(validation.failures)
    outcome = "passes every gate" if not missed else f"misses {missed} gate{'s' * (missed > 1)}"
    return (
        f"{validation.student.title} against {validation.teacher.title}: {outcome} ({validation.gates.name}: "
        f"{validation.gates.psnr_loss_db:g} dB, SSIM {validation.gates.ssim_loss:g}, photon bias "
        f"{validation.gates.photon_bias_percent:g} %)"
    )


def table(validation: Validation) -> Group:
    """The bins, the blank fields, and the verdict, for a terminal 80 columns wide."""
    parts: list[Table | Text] = []
    for columns, rows in (
        (COLUMNS, [_bin_cells(validation, b) for b in validation.bins]),
        (BLANK_COLUMNS, [_blank_cells(b) for b in validation.blanks]),
    ):
        if rows:
            shown = Table(header_style="dim", box=None, pad_edge=False, padding=(0, 1, 0, 0))
            for index, column in enumerate(columns):
                shown.add_column(column, justify="left" if index < 2 else "right", no_wrap=True)
            for row in rows:
                shown.add_row(*row, style=None if row[-1] == "-" else "red")
            parts += [shown, Text("")]
    parts += [Text(note, style="dim") for note in validation.notes]
    parts += [Text(f"missed: {line}", style="red") for line in validation.failures if line.startswith("all blank")]
    parts.append(Text(verdict_line(validation), style="bold green" if validation.passed else "bold red"))
    return Group(*parts)


def markdown(validation: Validation) -> str:
    """The verdict and a row for every light level, worst over noise, camera and scenes: for the model card."""
    levels = sorted({b.photons for b in validation.bins})
    lines = [verdict_line(validation) + ".", ""]
    lines += ["| photons at the peak | worst PSNR loss, dB | worst SSIM loss | worst photon bias, % | missed |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    for level in levels:
        bins = [b for b in validation.bins if b.photons == level]
        missed = sum(len(b.failures(validation.gates)) for b in bins)
        lines.append(
            f"| {level:g} | {max(b.psnr_loss_db for b in bins):+.3f} | {max(b.ssim_loss for b in bins):+.4f} | "
            f"{max((b.student.bias_percent for b in bins), key=abs):+.2f} | {missed or 'none'} of {3 * len(bins)} |"
        )
    if validation.blanks:
        teacher, student = (sum(getattr(b, who) for b in validation.blanks) for who in ("teacher", "student"))
        frames = sum(b.frames for b in validation.blanks)
        lines += ["", f"Detections in {frames} restored blank fields: {student}; the teacher has {teacher}."]
    return "\n".join(lines) + "\n"


def to_html(validation: Validation) -> str:
    """One HTML page with its pictures inside: no other file, no script, nothing from the network."""
    from .validation_pictures import example_picture, psnr_picture, spectrum_picture

    title = f"Validation of {validation.student.name} {validation.student.version}"
    css = "passed" if validation.passed else "missed"
    parts = [f'<h1>{_text(title)}</h1><p class="{css}"><b>{_text(verdict_line(validation))}</b></p>']
    parts.append(_html_list(validation.failures, "missed"))
    parts.append(_html_list(validation.notes, ""))
    subjects = (("student", validation.student), ("teacher", validation.teacher))
    facts = [
        (who, s.title, f"{s.parameters:,}", f"{s.kmac_per_px:.1f}", f"{s.network_bytes / 1e6:.2f}", s.sha256[:16])
        for who, s in subjects
    ]
    parts.append(_html_table(("", "bundle", "parameters", "kMAC per px", "network MB", "SHA-256"), facts))
    parts.append("<h2>Side by side</h2>")
    for example in validation.examples:
        parts.append(f"<p>{example.photons:g} photoelectrons at the peak, white noise, known camera</p>")
        parts.append(_html_image(example_picture(example)))
    if validation.bins:
        parts += ["<h2>PSNR over light</h2>", _html_image(psnr_picture(validation))]
    if validation.spectra:
        parts += ["<h2>Sharpness</h2>", _html_image(spectrum_picture(validation))]
    parts += ["<h2>Every noise bin</h2>", _html_table(COLUMNS, [_bin_cells(validation, b) for b in validation.bins])]
    if validation.blanks:
        rows = [_blank_cells(b) for b in validation.blanks]
        parts += ["<h2>Detections in blank fields</h2>", _html_table(BLANK_COLUMNS, rows)]
    settings = _text(json.dumps(validation.settings, sort_keys=True))
    parts.append(f"<p>Settings: <code>{settings}</code>. How everything is measured: docs/validation.md.</p>")
    body = "\n".join(part for part in parts if part)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>'
        f"<style>{STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def to_png(validation: Validation) -> bytes:
    """The pictures of the page on one sheet."""
    from .validation_pictures import example_picture, psnr_picture, spectrum_picture, stacked

    pictures = [example_picture(example) for example in validation.examples]
    pictures += [psnr_picture(validation)] if validation.bins else []
    return stacked([*pictures, *([spectrum_picture(validation)] if validation.spectra else [])])


def to_json(validation: Validation) -> str:
    return json.dumps(validation.as_dict(), indent=1, allow_nan=False) + "\n"


def write_reports(
    validation: Validation,
    *,
    json_path: Path | None = None,
    html_path: Path | None = None,
    png_path: Path | None = None,
    overwrite: bool = False,
) -> tuple[Path, ...]:
    """Write the reports that have a path, each under a temporary name first.

    Raises
    ------
    TrainingError : a file exists and ``overwrite`` is False, or the folder cannot be written to
    """
    makers: dict[Path, Callable[[], bytes]] = {}
    if json_path is not None:
        makers[json_path] = lambda: to_json(validation).encode()
    if html_path is not None:
        makers[html_path] = lambda: to_html(validation).encode()
    if png_path is not None:
        makers[png_path] = lambda: to_png(validation)
    check_free(tuple(makers), overwrite=overwrite)
    for path, make in makers.items():
        partial = path.with_name(path.name + ".partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(make())
            partial.replace(path)
        except OSError as error:
            raise TrainingError(f"cannot write {path}: {error}; check the folder and free space") from error
        finally:
            partial.unlink(missing_ok=True)
    return tuple(makers)


def check_free(paths: Sequence[Path | None], *, overwrite: bool) -> None:
    """Refuse before the work what could not be written after it.

    Raises
    ------
    TrainingError : a file exists and ``overwrite`` is False
    """
    taken = [str(path) for path in paths if path is not None and path.exists()]
    if taken and not overwrite:
        raise TrainingError(f"{', '.join(taken)} exists; choose another name or pass overwrite (--overwrite)")


def _bin_cells(validation: Validation, found: NoiseBin) -> tuple[str, ...]:
    """The student's figures and what they lose against the teacher's."""
    missed = [miss.removeprefix("added photon ").split(" ")[0] for miss in found.failures(validation.gates)]
    return (
        found.source, found.noise, found.camera, f"{found.photons:g}", f"{found.student.psnr_db:.2f}",
        f"{found.psnr_loss_db:+.3f}", f"{found.student.ssim:.3f}", f"{found.ssim_loss:+.4f}",
        f"{found.student.bias_percent:+.2f}", ",".join(missed) or "-",
    )  # fmt: skip


def _blank_cells(found: BlankBin) -> tuple[str, ...]:
    counts = (f"{found.photons:g}", str(found.frames), str(found.teacher), str(found.student))
    return (found.noise, found.camera, *counts, "blank" if found.failures() else "-")


def _text(text: str) -> str:
    return html.escape(text)


def _html_list(lines: Sequence[str], css: str) -> str:
    return f'<ul class="{css}">' + "".join(f"<li>{_text(line)}</li>" for line in lines) + "</ul>" if lines else ""


def _html_image(png: bytes) -> str:
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(png).decode("ascii")}">'


def _html_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{_text(column)}</th>" for column in columns)
    body = "".join(
        f'<tr class="{"missed" if columns[-1] == "missed" and row[-1] != "-" else ""}">'
        + "".join(f"<td>{_text(cell)}</td>" for cell in row)
        + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"
