"""Make a bundle of a training run: ``python -m photonstep.export.package runs/base -o models/zoo/base.photonstep``.

Into it go the network in every precision that the run has, whole restorations as single graphs, a test frame with the
pixels to expect, the lineage of the weights with what each stage cost and gained, validations, and a model card.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import tifffile
from numpy.typing import NDArray

from ..models import data as training_data
from ..models.checkpoint import load_network
from ..models.network import INPUT_PLANES, Denoiser, kmac_per_px, parameter_count, receptive_radius_px
from ..models.noise import CameraRanges
from ..runtime.bundle import Bundle, write_bundle
from ..runtime.camera import Camera
from ..runtime.errors import BundleError, PhotonstepError
from ..runtime.manifest import Precision
from ..runtime.restore import load
from .frame_graph import add_frame_graphs
from .lineage import Lineage, built_in_data, lineage_of
from .model_card import model_card
from .onnx import INPUT_NAME, OPSET, OUTPUT_NAME, to_onnx
from .validation import Validation

# trained up to 0.86, but above this real frames showed structure that their reference has not: flag them
MAX_NOISE_CORRELATION = 0.5
TOLERANCE_COUNTS = 2.0  # an 8-bit frame's noise is several counts; bfloat16 stays within this
TEST_FRAME_PX = 256
QUANTISED = "quantized"  # folder of a run, written by export.quantize
CARD, REPORT, CURVES = "model_card.md", "report.json", "validation.png"
OWN_LICENCE, OWN_AUTHORS = "MIT", ("the photonstep developers",)
NO_LICENCE, NO_AUTHORS = "NOASSERTION", ("unknown",)
VERBS = {"train": "trained", "distill": "distilled", "prune": "pruned"}


def package(
    run: Path,
    output: Path,
    *,
    name: str,
    version: str,
    test_frame: Path,
    frame_steps: Sequence[int] = (1, 4),
    precisions: Sequence[Precision] | None = None,
    validation: Validation | Sequence[Validation] | None = None,
    licence: str | None = None,
    authors: Sequence[str] | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Write the bundle of a run.

    Parameters
    ----------
    run : folder that training, distillation or pruning left, with ``weights.pt`` (or ``checkpoint.pt``: its averaged
        weights so far)
    output : the ``.photonstep`` file
    test_frame : TIFF whose first page is a raw 8- or 16-bit frame
    frame_steps : numbers of steps for which a whole restoration goes in as one graph
    precisions : beside fp32, those of ``run/quantized`` to ship; None takes all that are there
    validation : results of `export.validate.validate` for this very network
    licence : SPDX expression, of the weights; None is MIT for weights that saw photonstep's own material alone, and
        NOASSERTION for those that saw other recordings
    authors : of the weights; None names photonstep's developers, or nobody where other recordings were learnt from
    overwrite : replace an existing file

    Raises
    ------
    BundleError : the bundle would not load again, the output exists, a precision is absent, or a validation is of
        another network, or lower precisions were made of other weights
    TrainingError : the run or one that it started from is incomplete
    """
    validations = _as_tuple(validation)
    if output.exists() and not overwrite:
        raise BundleError(f"{output} exists; choose another name or pass overwrite (--overwrite)")
    network, lineage = load_network(run), lineage_of(run)
    frame = _test_frame(test_frame)
    camera = Camera.estimate(frame)
    fields = _manifest(network, name, version, lineage) | _rights(lineage, licence, authors)
    members = {"step_fp32.onnx": to_onnx(network)}
    _add_quantised(fields, members, run / QUANTISED, precisions)
    _check_validations(fields, members, validations)
    add_frame_graphs(fields, members, frame_steps)
    _add_test_frame(fields, members, frame, camera, output)
    quantisation = _quantisation(run / QUANTISED) if len(fields["networks"]) > 1 else None
    _add_report(fields, members, lineage, quantisation, validations)
    card = model_card(fields, members, lineage, validations, quantisation)
    members[CARD], fields["model_card"] = card.encode(), CARD
    return write_bundle(output, fields, members, overwrite)


def _as_tuple(validation: Validation | Sequence[Validation] | None) -> tuple[Validation, ...]:
    if validation is None:
        return ()
    return (validation,) if isinstance(validation, Validation) else tuple(validation)


def _test_frame(path: Path) -> NDArray[np.uint16]:
    page = tifffile.imread(path, key=0)
    if page.dtype.name not in ("uint8", "uint16") or page.ndim != 2:
        raise BundleError(
            f"{path} is {page.dtype} of shape {page.shape}; a test frame is a raw (H, W) uint8 or uint16 frame"
        )
    return np.ascontiguousarray(page[:TEST_FRAME_PX, :TEST_FRAME_PX].astype(np.uint16))


def _rights(lineage: Lineage, licence: str | None, authors: Sequence[str] | None) -> dict[str, Any]:
    """Whose weights they are: photonstep's where nothing but its own material was learnt from."""
    own = {item["name"] for item in lineage.training_data} <= {item["name"] for item in built_in_data()}
    return {
        "licence": licence or (OWN_LICENCE if own else NO_LICENCE),
        "authors": list(authors or (OWN_AUTHORS if own else NO_AUTHORS)),
    }


def _learnt_with(lineage: Lineage, name: str) -> Any:
    """A setting that the weights still live by: of the latest stage that has it; training forgets those before it."""
    for stage in reversed(lineage.stages):
        record = stage.get("configuration", {})
        settings = record.get("settings") or record.get("train") or {}
        if name in settings or stage.get("stage") == "train":
            return settings.get(name)
    return None


def _manifest(network: Denoiser, name: str, version: str, lineage: Lineage) -> dict[str, Any]:
    config, ranges = network.config, CameraRanges()
    task = lineage.last.get("configuration", {}).get("task", "denoise")
    degradation = float(_learnt_with(lineage, "degradation_sigma") or 0.0)
    if task == "super_resolution" and not degradation:
        raise BundleError(
            f"no stage of {_provenance(lineage)} says its degradation_sigma, which the runtime must tell the network; "
            "keep the run folders of all stages beside one another"
        )
    return {
        "name": name,
        "version": version,
        "created": date.today().isoformat(),
        "task": task,
        "scale": 2 if task == "super_resolution" else 1,
        "provenance": f"{_provenance(lineage)}; docs/{'training' if task == 'denoise' else task}.md",
        "training_data": list(lineage.training_data),
        "model": {
            "prediction": "edm_f",
            "conditioning": "sigma_map",
            "sigma_data": config.sigma_data,
            "noise_correlation_input": True,
            "detail_input": config.planes > INPUT_PLANES,
            "degradation_sigma": degradation,
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
        "defaults": {"steps": int(_learnt_with(lineage, "student_steps") or 1), "sampler": "ddim", "max_steps": 4},
        "operating_range": {
            "sigma_min": 0.002,
            "sigma_max": 0.3,
            "photons_min": ranges.peak_photons[0],
            "photons_max": ranges.peak_photons[1],
            "max_noise_correlation": MAX_NOISE_CORRELATION,
        },
        "test_frame": None,
    }


def _provenance(lineage: Lineage) -> str:
    """The stages in one sentence."""
    told = []
    for stage in lineage.stages:
        configuration = stage.get("configuration", {})
        settings = configuration.get("settings") or configuration.get("train") or {}
        if not settings:  # a bundle, or a run whose folder is gone
            told.append(f"{stage.get('stage', 'run')} {stage.get('run', '')}".rstrip())
            continue
        tier = f" as tier {settings['tier']}" if "tier" in settings else ""
        teacher = f" from {configuration['teacher']}" if configuration.get("teacher") else ""
        seed = f", seed {settings['seed']}" if "seed" in settings else ""
        told.append(
            f"{VERBS.get(stage.get('stage', 'train'), stage.get('stage'))}{tier}{teacher} for "
            f"{settings.get('steps', '?')} steps{seed}"
        )
    return ", then ".join(told)


def _add_quantised(
    fields: dict[str, Any], members: dict[str, bytes], folder: Path, precisions: Sequence[Precision] | None
) -> None:
    """Networks of lower precision that `export.quantize` made of these weights."""
    there = {p: folder / f"step_{p}.onnx" for p in get_args(Precision) if p != "fp32"}
    there = {p: path for p, path in there.items() if path.exists()}
    absent = [p for p in precisions or () if p not in there and p != "fp32"]
    if absent:
        raise BundleError(
            f"{folder} has no network of {', '.join(absent)} (it has {', '.join(there) or 'none'}); make it with "
            "photonstep quantize"
        )
    exact = hashlib.sha256(members["step_fp32.onnx"]).hexdigest()
    made_of = (_quantisation(folder) or {}).get("networks", {})
    for precision, path in there.items():
        if precisions is None or precision in precisions:
            if made_of.get(precision, {}).get("float_sha256") != exact:
                raise BundleError(
                    f"{path} was made of other weights than the run has now, or does not say of which; make it again "
                    "with photonstep quantize"
                )
            members[path.name] = path.read_bytes()
            opset = onnx.load_model_from_string(members[path.name]).opset_import[0].version
            fields["networks"].append({"precision": precision, "member": path.name, "opset": opset})


def _add_test_frame(
    fields: dict[str, Any], members: dict[str, bytes], frame: NDArray[np.uint16], camera: Camera, output: Path
) -> None:
    """A raw frame and its expected pixels, which the runtime makes of the same members: so a first bundle has none."""
    draft = Path(f"{output}.draft.photonstep")
    try:
        first = write_bundle(draft, fields, members, True)
        expected = _restored(first, frame, camera, "fp32")
        lower = [p for p in ("bf16", "int8") if p in first.networks]  # what CPUs run
        farthest = [np.abs(_restored(first, frame, camera, p).astype(float) - expected).max() for p in lower]
    finally:
        draft.unlink(missing_ok=True)
    members["test_frame.raw"] = frame.astype("<u2").tobytes()
    members["test_frame_restored.raw"] = expected.astype("<u2").tobytes()
    fields["test_frame"] = {
        "input": {"member": "test_frame.raw", "shape": list(frame.shape), "dtype": "uint16"},
        "expected": {"member": "test_frame_restored.raw", "shape": list(expected.shape), "dtype": "uint16"},
        "camera": {
            "offset_adu": float(camera.offset_adu),
            "gain_e_per_adu": float(camera.gain_e_per_adu),
            "readout_noise_e": float(camera.readout_noise_e),
            "noise_correlation": list(camera.noise_correlation),
        },
        # another machine's sums differ in the last digits, so one count more than was met here
        "tolerance_counts": float(max([TOLERANCE_COUNTS, *(worst + 1 for worst in farthest)])),
    }


def _restored(bundle: Bundle, frame: NDArray[np.uint16], camera: Camera, precision: str) -> NDArray[np.uint16]:
    restorer = load(bundle, precision=precision)
    try:
        restored: NDArray[np.uint16] = restorer(frame, camera=camera)
        return restored
    finally:
        restorer.close()


def _quantisation(folder: Path) -> dict[str, Any] | None:
    path = folder / "quantization.json"
    if not path.exists():
        return None
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def _check_validations(
    fields: Mapping[str, Any], members: Mapping[str, bytes], validations: Sequence[Validation]
) -> None:
    """A validation is of these very weights, or it says nothing about this bundle."""
    shipped = {hashlib.sha256(members[n["member"]]).hexdigest() for n in fields["networks"]}
    for validation in validations:
        if validation.student.network_sha256 not in shipped:
            measured = validation.student
            raise BundleError(
                f"the validation is of {measured.title} with network {measured.network_sha256[:12]}, which is none "
                f"of this bundle's ({', '.join(s[:12] for s in sorted(shipped))}); validate again"
            )


def _add_report(
    fields: dict[str, Any],
    members: dict[str, bytes],
    lineage: Lineage,
    quantisation: dict[str, Any] | None,
    validations: Sequence[Validation],
) -> None:
    report: dict[str, Any] = {"stages": list(lineage.stages)}
    report |= {"teachers": list(lineage.teachers)} if lineage.teachers else {}
    report |= {"quantisation": quantisation} if quantisation else {}
    report |= {"validations": [v.as_dict() for v in validations]} if validations else {}
    members[REPORT] = (json.dumps(report, indent=1, allow_nan=False) + "\n").encode()
    fields["report"] = {"member": REPORT}
    if validations:
        from .validation_pictures import psnr_picture

        members[CURVES] = psnr_picture(validations[0])
        fields["report"]["pictures"] = [CURVES]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="make a bundle of a training run")
    parser.add_argument("run", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--name", help="default: the run folder's name")
    parser.add_argument("--version", default="1.0.0")
    parser.add_argument("--test-frame", type=Path, default=Path("photonstep/demo_data/demo.tif"))
    parser.add_argument("--frame-steps", type=int, nargs="*", default=[1, 4], help="whole restorations as one graph")
    parser.add_argument(
        "--precisions", nargs="*", choices=get_args(Precision), help="of run/quantized; default: all that are there"
    )
    parser.add_argument("--validation", type=Path, nargs="+", default=[], help="JSON of photonstep validate")
    parser.add_argument("--licence", help="of the weights, SPDX; default: MIT where only the built-in sets were learnt")
    parser.add_argument("--author", nargs="+", dest="authors", help="of the weights")
    parser.add_argument("--overwrite", action="store_true")
    options = parser.parse_args(arguments)
    try:
        bundle = package(
            options.run, options.output, name=options.name or options.run.resolve().name, version=options.version,
            test_frame=options.test_frame, frame_steps=options.frame_steps, precisions=options.precisions,
            validation=[Validation.from_dict(json.loads(path.read_text())) for path in options.validation],
            licence=options.licence, authors=options.authors, overwrite=options.overwrite,
        )  # fmt: skip
    except (PhotonstepError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {bundle!r}, {options.output.stat().st_size / 1e6:.2f} MB, SHA-256 {bundle.sha256}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
