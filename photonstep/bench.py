"""``photonstep bench``: latency of bundles x frame sizes x steps on this machine, as a table and as JSON."""

import datetime
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from photonstep.demo import DEMO_FRAME
from photonstep.latency import Latency, measure_latency
from photonstep.machine import describe
from photonstep.runtime.camera import Camera
from photonstep.runtime.errors import PlanError
from photonstep.runtime.images import open_image


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """One measurement; the frame is uint16 (``height_px``, ``width_px``) in and out."""

    bundle: str
    sha256: str
    backend: str
    precision: str
    device: str
    height_px: int
    width_px: int
    steps: int
    latency: Latency


def bench_frame(height_px: int, width_px: int) -> npt.NDArray[np.uint16]:
    """Return the shipped real frame as uint16, mirrored or cropped to a size: real structure, real noise."""
    with open_image(DEMO_FRAME) as reader:
        raw = next(plane for _, plane in reader.planes())
    repeats = [-(-wanted // have) for wanted, have in zip((height_px, width_px), raw.shape, strict=True)]
    rows = np.concatenate([raw[:: -1 if k % 2 else 1] for k in range(repeats[0])], axis=0)
    mirrored = np.concatenate([rows[:, :: -1 if k % 2 else 1] for k in range(repeats[1])], axis=1)
    return np.ascontiguousarray(mirrored[:height_px, :width_px].astype(np.uint16) * 16)


def run_bench(
    load: Callable[[str], Any],
    *,
    bundles: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    steps: Sequence[int],
    budget_s: float,
) -> Iterator[BenchRow]:
    """Yield one row for each bundle, size and number of steps, each measured for at most ``budget_s`` seconds.

    Parameters
    ----------
    load : returns the Restorer of a bundle's name or path
    sizes : (height, width) in px
    """
    camera: Camera | None = None
    for bundle in bundles:
        restorer = load(bundle)
        for height_px, width_px in sizes:
            frame = bench_frame(height_px, width_px)
            camera = camera or Camera.estimate(bench_frame(512, 512))
            for count in steps:
                yield BenchRow(
                    bundle=restorer.bundle.manifest.name,
                    sha256=restorer.bundle.sha256,
                    backend=restorer.backend_name,
                    precision=restorer.precision,
                    device=restorer.device,
                    height_px=height_px,
                    width_px=width_px,
                    steps=count,
                    latency=measure_latency(
                        restorer, frame, camera=camera, budget_s=budget_s, max_runs=500, steps=count
                    ),
                )


def bench_record(rows: Sequence[BenchRow], *, threads: int | None) -> dict[str, Any]:
    """Return the measurements with the machine, the versions and the commit, ready for JSON."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"measured": now, "machine": describe(), "threads": threads, "rows": [asdict(row) for row in rows]}


def parse_size(text: str) -> tuple[int, int]:
    """Return (height, width) in px from "512" or "512x640".

    Raises
    ------
    PlanError : not one or two whole numbers from 16 to 8192
    """
    parts = text.lower().split("x")
    try:
        height_px, width_px = (int(part) for part in (parts if len(parts) == 2 else [text, text]))
    except ValueError:
        raise PlanError(
            f"frame size is {text!r}; expected a number such as 512, or height x width such as 512x640"
        ) from None
    if not (16 <= height_px <= 8192 and 16 <= width_px <= 8192):
        raise PlanError(f"frame size is {text!r}; expected 16 to 8192 px on each side")
    return height_px, width_px


def check_json_path(path: Path, *, overwrite: bool) -> None:
    """Raise PlanError when the record must not be written to ``path``."""
    if path.exists() and not overwrite:
        raise PlanError(f"{path}: exists already; choose another name, or pass --overwrite")
    if not path.resolve().parent.is_dir():
        raise PlanError(f"{path}: there is no folder {path.resolve().parent}; make it first")


def write_json(record: dict[str, Any], path: Path) -> None:
    """Write the record in one step."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(json.dumps(record, indent=1) + "\n")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
