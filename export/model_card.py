"""``model_card.md``: what a bundle is for, what made it, what it costs, what was measured, and where it ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .lineage import Lineage
from .validation import Validation
from .validation_report import markdown

USES = {
    "denoise": (
        "Restoring single fluorescence, transmitted-light or electron microscope frames with Poisson-Gaussian noise, "
        "live or from files, so that people and programs see more at a lower dose."
    ),
    "super_resolution": (
        "Restoring single noisy microscope frames on a grid of half the pixel size: denoising and interpolation to "
        "twice the side in one, so that people and programs see more at a lower dose."
    ),
}
PRECISIONS = {
    "fp32": "float32, every backend",
    "bf16": "bfloat16",
    "fp16": "float16, strongly typed, for GPUs",
    "int8": "INT8 with unsigned activations, for CPUs",
    "int8_symmetric": "INT8, symmetric, for TensorRT",
}


def model_card(
    fields: Mapping[str, Any],
    members: Mapping[str, bytes],
    lineage: Lineage,
    validations: Sequence[Validation] = (),
    quantisation: Mapping[str, Any] | None = None,
) -> str:
    """Markdown for people, from the same facts that the manifest and the report hold for programs.

    Parameters
    ----------
    fields : the manifest's plain values
    members : the bundle's members so far, for their sizes
    validations : measured comparisons with a teacher or between precisions
    quantisation : ``quantization.json`` of the run, if any network is quantised
    """
    data = [(d["name"], d["licence"], d["source"]) for d in fields["training_data"]]
    sections = {
        "What it learnt from": _rows(("data", "licence", "source"), data),
        "How it was made": _lineage(lineage),
        "Size and cost": _cost(fields, members),
        "Quantisation": _quantisation(quantisation, fields) if quantisation else "",
        "Measured against its teacher": _gates(validations),
        "Limits": _limits(fields),
        "How to verify": _verify(fields),
    }
    head = (
        f"# {fields['name']} {fields['version']}\n\n{USES[fields['task']]} Licence of the weights: "
        f"{fields['licence']}. Made {fields['created']}.\n"
    )
    return "\n".join([head, *(f"## {title}\n\n{text}" for title, text in sections.items() if text)])


def _lineage(lineage: Lineage) -> str:
    rows = []
    for stage in (*lineage.teachers, *lineage.stages):
        cost, gained = stage.get("cost", {}), stage.get("gained", {})
        beside = " (teacher)" if stage in lineage.teachers else ""
        configuration = stage.get("configuration", {})
        teacher = configuration.get("teacher")
        rows.append((
            f"{stage.get('stage', 'train')}{beside}", str(stage.get("run", "")), teacher or "",
            _number(stage.get("kmac_per_px"), "{:.1f}"), _number(cost.get("steps"), "{:,}"),
            _number(cost.get("seconds", None), "{:.0f}", 1 / 60),
            _number(gained.get("last_held_out_loss"), "{:.4f}"),
        ))  # fmt: skip
    columns = ("stage", "run", "learns from", "kMAC per px", "steps", "minutes", "held-out loss at its end")
    pruned = [stage["pruning"] for stage in lineage.stages if isinstance(stage.get("pruning"), dict)]
    told = "".join(_pruning(pruning) for pruning in pruned)
    return _rows(columns, rows) + f"\n{told}Losses of stages that draw noise levels differently do not compare.\n"


def _pruning(pruning: Mapping[str, Any]) -> str:
    """``pruning.json`` in a sentence, as far as it says."""
    sides = [pruning.get(side) or {} for side in ("before", "after")]
    figures = [
        f"{sides[0][name]:.1f} to {sides[1][name]:.1f} {unit}"
        for name, unit in (("kmac_per_px", "kMAC per pixel"), ("ms", "ms where it was measured"))
        if all(name in side for side in sides)
    ]
    return f"Pruned to {pruning.get('target', 'a smaller size')}: {', '.join(figures)}. " if figures else ""


def _quantisation(report: Mapping[str, Any], fields: Mapping[str, Any]) -> str:
    """``quantization.json`` as a table of what each shipped network loses against its own float32."""
    shipped = {network["precision"] for network in fields["networks"]}
    rows = [
        (
            precision, str(entry.get("ranges", "")), ", ".join(entry.get("in_float", ())),
            _number(entry.get("worst_loss_db"), "{:+.3f}"), "yes" if entry.get("passes") else "no",
        )
        for precision, entry in report.get("networks", {}).items()
        if precision in shipped
    ]  # fmt: skip
    columns = ("network", "percentile of its ranges", "in float", "worst PSNR loss of a noise bin, dB", "passes")
    return _rows(columns, rows) + "\nEverything about it is in `report.json`, field `quantisation`.\n"


def _cost(fields: Mapping[str, Any], members: Mapping[str, bytes]) -> str:
    model = fields["model"]
    lines = [
        f"{model['parameters']:,} parameters, {model['kmac_per_px']:.1f} kMAC per pixel and evaluation; the default "
        f"plan is K = {fields['defaults']['steps']}, validated up to K = {fields['defaults']['max_steps']}.\n"
    ]
    rows = [
        (n["precision"], PRECISIONS[n["precision"]], _megabytes(members, n)) for n in fields["networks"]
    ]  # fmt: skip
    rows += [
        (f"frame graph, K = {g['steps']}", "uint16 frame in and out, any ONNX runtime", _megabytes(members, g))
        for g in fields.get("frame_graphs", ())
    ]
    return "\n".join([*lines, _rows(("network", "for", "MB"), rows)])


def _gates(validations: Sequence[Validation]) -> str:
    if not validations:
        return "Not measured: this bundle was packaged without a validation. Run `photonstep validate`.\n"
    return "\n".join(markdown(validation) for validation in validations)


def _limits(fields: Mapping[str, Any]) -> str:
    limits = fields["operating_range"]
    lines = [
        "Restored pixels are estimates: the mean of what the noise allows (K = 1), or one plausible sharpening of it "
        "(K > 1). Keep the raw frames. Do not measure what was not in the raw data: counts of single molecules, "
        "co-localisation near the resolution, or intensities of structures weaker than the noise.",
        f"Light: made for {limits['photons_min']:g} to {limits['photons_max']:g} photoelectrons per pixel at the "
        "brightest structures. Frames under 2 photoelectrons with little readout noise raise the flag "
        "`below_photon_floor`: bin or average them first.",
        f"Noise of neighbouring pixels may be correlated up to {limits['max_noise_correlation']:g} (lag 1). Above that "
        "restored frames can show structure that is not there; they raise the flag `correlated_noise`.",
        "Structures unlike anything in the training data can be smoothed away or drawn out; look at the raw frame too.",
        "Not for diagnosis.",
    ]  # fmt: skip
    return "\n".join(f"- {line}" for line in lines) + "\n"


def _verify(fields: Mapping[str, Any]) -> str:
    name = fields["name"]
    return (
        f"`photonstep doctor` restores the test frame inside on every backend and compares it with the expected "
        f"pixels. `photonstep validate {name}.photonstep --against TEACHER.photonstep` repeats the measurements above. "
        "The SHA-256 of every member is in the manifest, that of the file in `photonstep info`.\n"
    )


def _rows(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "| " + " | ".join("---" for _ in columns) + " |"]
    lines += ["| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _number(value: Any, form: str, factor: float = 1) -> str:
    return "" if value is None else form.format(value * factor if factor != 1 else value)


def _megabytes(members: Mapping[str, bytes], record: Mapping[str, Any]) -> str:
    return f"{len(members[record['member']]) / 1e6:.2f}"
