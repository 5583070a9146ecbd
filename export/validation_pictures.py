"""Pictures of a validation, as PNG bytes: restorations side by side, PSNR over light, spectra for sharpness."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .noise_bins import Plane
from .validation import Example, Validation

INK, QUIET_INK, GRID = "#222222", "#777777", "#e5e5e5"
TEACHER, STUDENT, TRUTH, NOISY = "#1d4ed8", "#c2410c", "#222222", "#b0b0b0"
STYLES = {
    "truth": ("ground truth", TRUTH, "-"),
    "noisy": ("noisy frame", NOISY, "-"),
    "teacher": ("teacher", TEACHER, "-"),
    "student": ("student", STUDENT, "-"),
    "teacher_detail": ("teacher, detail", TEACHER, ":"),
    "student_detail": ("student, detail", STUDENT, ":"),
}
DIFFERENCE_OF_PEAK = 0.1  # what the difference picture shows as full red or blue
SHOWN_PX = 192


def example_picture(example: Example) -> bytes:
    """Noisy, teacher, student, student minus teacher; below, ground truth and the two detail restorations."""
    figure = Figure(figsize=(10.4, 5.6), dpi=110, layout="constrained")
    black, white = np.percentile(example.truth, (0.5, 99.8))
    top = [("noisy frame", example.noisy), ("teacher", example.teacher), ("student", example.student)]
    below = [
        ("ground truth", example.truth),
        ("teacher, detail", example.teacher_detail),
        ("student, detail", example.student_detail),
    ]
    axes = figure.subplots(2, 4)
    for row, panels in zip(axes, (top, below), strict=True):
        for place, (title, plane) in zip(row, panels, strict=False):
            _panel(place, title, plane, example)
            place.images[-1].set(cmap="gray", clim=(black, max(white, black + 1e-6)))
    limit = DIFFERENCE_OF_PEAK * example.photons
    for place, kind, pair in (
        (axes[0, 3], "", (example.student, example.teacher)),
        (axes[1, 3], ", detail", (example.student_detail, example.teacher_detail)),
    ):
        _panel(place, f"student - teacher{kind}", pair[0] - pair[1], example)
        place.images[-1].set(cmap="RdBu_r", clim=(-limit, limit))
        place.set_xlabel(f"red, blue: +-{limit:g} photoelectrons", fontsize=7, color=QUIET_INK)
    return _png(figure)


def psnr_picture(validation: Validation) -> bytes:
    """PSNR and its loss over the light level, one column for each kind of noise; the gate as a line."""
    sources = list(dict.fromkeys(b.source for b in validation.bins))
    noises = list(dict.fromkeys(b.noise for b in validation.bins))
    levels = [b.photons for b in validation.bins]
    figure = Figure(figsize=(10.4, 5.4), dpi=110, layout="constrained")
    axes = figure.subplots(2, len(noises), squeeze=False, sharex=True)
    for column, noise in enumerate(noises):
        above, below = axes[:, column]
        below.set(xscale="log", xlim=(min(levels) * 0.7, max(levels) * 1.4))
        for index, source in enumerate(sources):
            for camera, dash in (("known", "-"), ("blind", "--")):
                bins = [b for b in validation.bins if (b.noise, b.source, b.camera) == (noise, source, camera)]
                x, label = [b.photons for b in bins], f"{source}, {camera} camera"
                marker = "os^"[index % 3]
                for colour, y in ((TEACHER, [b.teacher.psnr_db for b in bins]),
                                  (STUDENT, [b.student.psnr_db for b in bins])):  # fmt: skip
                    above.plot(x, y, dash, color=colour, marker=marker, markersize=4)
                below.errorbar(
                    x, [b.psnr_loss_db for b in bins], yerr=[b.psnr_loss_error_db for b in bins], fmt=dash,
                    color=STUDENT, marker=marker, markersize=4, label=label, elinewidth=0.8,
                )  # fmt: skip
        below.axhline(validation.gates.psnr_loss_db, color=INK, linewidth=1, linestyle=":")
        below.legend(fontsize=7, frameon=False)
        _style(above, f"{noise} noise: teacher blue, student orange", "PSNR, dB")
        _style(below, f"loss; dotted: the gate, {validation.gates.psnr_loss_db:g} dB", "PSNR loss, dB")
        below.set_xlabel("photoelectrons at the peak", color=INK, fontsize=8)
    return _png(figure)


def spectrum_picture(validation: Validation) -> bytes:
    """Radially averaged power against spatial frequency: what falls below the ground truth's line is blurred."""
    figure = Figure(figsize=(10.4, 3.6), dpi=110, layout="constrained")
    axes = figure.subplots(1, 2)
    truth = validation.spectra.get("truth")
    for name, power in validation.spectra.items():
        label, colour, dash = STYLES[name]
        frequency = (np.arange(len(power)) + 0.5) / (2 * len(power))
        axes[0].plot(frequency, power, dash, color=colour, label=label)
        if truth is not None and name not in ("truth", "noisy"):
            axes[1].plot(frequency, power / truth, dash, color=colour, label=label)
    axes[0].set_yscale("log")
    axes[1].axhline(1.0, color=TRUTH, linewidth=1)
    axes[1].set_ylim(0, 1.5)
    _style(axes[0], "radially averaged power", "photoelectrons squared")
    _style(axes[1], "share of the ground truth's power (sharpness)", "")
    for place in axes:
        place.set_xlabel("cycles per pixel", color=INK, fontsize=8)
        place.legend(fontsize=7, frameon=False)
    return _png(figure)


def stacked(pictures: Sequence[bytes]) -> bytes:
    """PNG pictures below one another as one PNG."""
    from PIL import Image

    opened = [Image.open(io.BytesIO(content)).convert("RGB") for content in pictures]
    canvas = Image.new("RGB", (max(p.width for p in opened), sum(p.height for p in opened)), "white")
    top = 0
    for picture in opened:
        canvas.paste(picture, (0, top))
        top += picture.height
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _panel(axes: Axes, title: str, plane: Plane, example: Example) -> None:
    scale = example.truth.shape[0] // plane.shape[0]  # a super-resolution pair's frame is coarser
    height, width = (min(n, SHOWN_PX // scale) for n in plane.shape)
    top, left = ((n - m) // 2 for n, m in zip(plane.shape, (height, width), strict=True))
    axes.imshow(plane[top : top + height, left : left + width], interpolation="nearest")
    axes.set_title(title, fontsize=8, color=INK)
    axes.set_xticks([])
    axes.set_yticks([])


def _style(axes: Axes, title: str, ylabel: str) -> None:
    axes.set_title(title, loc="left", color=INK, fontsize=8)
    axes.set_ylabel(ylabel, color=INK, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(axis="y", color=GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})  # no version: the same figures, the same bytes
    return buffer.getvalue()
