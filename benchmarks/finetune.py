"""Fine-tuning the shipped base on a set that its weights have never seen: gain in dB, minutes on one core.

    python -m benchmarks.finetune --data ../shared/data

W2S widefield cells, ten of the training fields, of which some are held out to choose the weights:

paired    noisy frames with their references
noisy     the same noisy frames alone, no reference anywhere

Scored on other fields through the runtime, every frame blind, K = 1, protocol B. ``val`` is what choices were made on;
``test`` is measured for the report alone. The fine-tuned weights do not ship: the licence of the set is unclear. FMD
frames, of another microscope, tell what fine-tuning forgets.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

import photonstep as ps

from . import datasets, machine
from .summary import interval_95

SET, ELSEWHERE = "w2s8", "fmd_fov1"
FIELDS = 10
SEED = 20261124
MODES = ("paired", "noisy")


def ten_fields(data: Path) -> list[Path]:
    """Ten of the training fields, evenly spread over the list."""
    files = sorted((data / "paired" / SET / "train").glob("*.tif"))
    if len(files) < FIELDS:
        raise FileNotFoundError(f"{len(files)} files in {data / 'paired' / SET / 'train'}; expected {FIELDS} or more")
    return [files[i] for i in np.linspace(0, len(files) - 1, FIELDS).round().astype(int)]


def lay_out(files: Sequence[Path], folder: Path, mode: str) -> Path:
    """The fields as a user would keep them: ``noisy/`` and, for pairs, ``clean/``."""
    for path in files:
        noisy, clean = tifffile.imread(path)
        for name, stack in (("noisy", noisy), ("clean", clean))[: 2 if mode == "paired" else 1]:
            (folder / name).mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(folder / name / path.name, stack, photometric="minisblack", metadata={"axes": "CYX"})
    return folder


def fine_tune(
    data: Path, files: Sequence[Path], folder: Path, mode: str, options: argparse.Namespace
) -> dict[str, Any]:
    """Train; settings, time and held-out losses of the run, and the bundle that it gave."""
    from photonstep.models.fine_tune import TrainRequest, train_recordings

    started, cpu_started = time.perf_counter(), time.process_time()
    request = TrainRequest(
        data=(lay_out(files, folder / mode, mode),), output=folder / f"run-{mode}", start_from="base", seed=SEED,
        pool=data if (data / "clean").is_dir() else None, licence="unclear, see docs/training.md",
        steps=options.steps, learning_rate=options.learning_rate, device="cpu",
    )  # fmt: skip
    result = train_recordings(request, bar=False)
    return {
        "minutes": (time.perf_counter() - started) / 60,
        "cpu_minutes": (time.process_time() - cpu_started) / 60,
        "steps": result.steps,
        "best_step": result.best_step,
        "held_out_loss": [result.first_held_out_loss, result.last_held_out_loss],
        "fields": [result.fields_trained, result.fields_held_out],
        "settings": json.loads((result.weights.parent / "config.json").read_text())["settings"],
        "bundle": str(bundle_of(result.weights, folder / f"{mode}.photonstep")),
    }


def bundle_of(weights: Path, path: Path) -> Path:
    """The base bundle with other weights, float32, for measuring only."""
    from photonstep.export.onnx import to_onnx
    from photonstep.models.checkpoint import load_network
    from photonstep.runtime.bundle import Bundle, write_bundle
    from photonstep.runtime.restore import find_bundle

    fields = Bundle.load(find_bundle("base")).manifest.model_dump(mode="json", exclude_none=True)
    for computed in ("format", "format_version", "members", "test_frame", "report", "frame_graphs", "model_card"):
        fields.pop(computed, None)
    record = next(n for n in fields["networks"] if n["precision"] == "fp32")
    fields |= {"name": path.stem, "networks": [record]}
    write_bundle(path, fields, {record["member"]: to_onnx(load_network(weights))}, True)
    return path


def scores(bundles: dict[str, str], data: Path, set_name: str, split: str, limit: int | None) -> dict[str, Any]:
    """Mean PSNR and SSIM of every bundle, and the gain over the shipped one with its 95 % interval over fields."""
    restorers = {name: ps.load(path, device="cpu", precision="fp32", threads=1) for name, path in bundles.items()}
    rows: dict[str, list[tuple[float, float]]] = {name: [] for name in restorers}
    fields: list[str] = []
    for pair in datasets.pairs(data, set_name, split, limit):
        camera = ps.Camera.estimate(pair.frame)
        fields.append(pair.field)
        for name, restorer in restorers.items():
            image = restorer.restore(pair.frame.astype(np.float32), camera=camera, steps=1).image
            rows[name].append(datasets.score(pair, image))
    table = {name: np.array(values) for name, values in rows.items()}
    found: dict[str, Any] = {"frames": len(fields), "fields": len(set(fields))}
    for name, values in table.items():
        psnr, ssim = (float(v) for v in values.mean(0))
        found[name] = {"psnr_db": psnr, "ssim": ssim}
        if name != "base":
            gains = values[:, 0] - table["base"][:, 0]
            found[name] |= {"gain_db": float(gains.mean()), "interval_95_db": interval_95(gains, fields)}
    return found


def run(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    document: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.finetune", *options.arguments]),
        "machine": machine.record(),
        "seed": SEED,
        "runs": {},
    }
    with tempfile.TemporaryDirectory(prefix="photonstep-finetune-") as temporary:
        folder = options.keep or Path(temporary)
        files = ten_fields(options.data)
        document["trained_on"] = [path.stem for path in files]
        for mode in options.modes:
            document["runs"][mode] = fine_tune(options.data, files, folder, mode, options)
        bundles = {"base": "base", **{mode: document["runs"][mode].pop("bundle") for mode in options.modes}}
        wanted = [(SET, split) for split in options.splits] + [(ELSEWHERE, "val")]
        document["scores"] = {
            f"{name} {split}": scores(bundles, options.data, name, split, options.limit) for name, split in wanted
        }
    return document


def table(document: dict[str, Any]) -> str:
    """The document as lines of Markdown."""
    lines = ["| frames | weights | PSNR, dB | SSIM | gain, dB (95 %) |", "| --- | --- | --- | --- | --- |"]
    for place, found in document["scores"].items():
        for name in ("base", *document["runs"]):
            row, gain = found[name], "shipped"
            if name != "base":
                low_high = row["interval_95_db"]
                spread = f" ({low_high[0]:+.2f} to {low_high[1]:+.2f})" if low_high else ""
                gain = f"{row['gain_db']:+.2f}{spread}"
            lines.append(f"| {place}, {found['frames']} | {name} | {row['psnr_db']:.2f} | {row['ssim']:.3f} | {gain} |")
    for mode, facts in document["runs"].items():
        lines.append(
            f"\n{mode}: {facts['minutes']:.1f} min, {facts['cpu_minutes']:.1f} of processor time, best at step "
            f"{facts['best_step']} of {facts['steps']}"
        )
    return "\n".join(lines)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds paired/, and clean/ for the pool")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--splits", nargs="+", choices=("val", "test"), default=["val", "test"])
    parser.add_argument("--limit", type=int, metavar="N", help="at most N frames per set and split")
    parser.add_argument("--steps", type=int, help="optimiser steps (default: the preset's)")
    parser.add_argument("--learning-rate", type=float, help="default: the preset's")
    parser.add_argument("--keep", type=Path, help="folder that keeps the run folders and bundles")
    parser.add_argument("--json", type=Path, help="write the document here")
    options = parser.parse_args(arguments)
    options.arguments = list(arguments)
    return options


def main() -> None:
    options = parse(sys.argv[1:])
    if options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    document = run(options)
    if options.json is not None:
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(table(document))


if __name__ == "__main__":
    main()
