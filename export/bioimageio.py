"""A bundle as a BioImage Model Zoo package: one zip that bioimageio.core and the tools around it run.

The package holds the whole restoration (`export.frame_graph`) as ONNX: uint16 counts in, uint16 counts out, axes b, c,
y, x, one frame a batch. The camera's numbers are constants in it: the zoo's optional inputs have no default values, and
its tools would ask for them at every image. So a package is for one camera; write one for yours with ``camera=``.

Needs onnx. Where bioimageio.spec is installed, it must find the package valid before the file appears.

Source: bioimage.io model description 0.5.12, github.com/bioimage-io/spec-bioimage-io.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import re
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image

from ..runtime.bundle import FRAME_INPUTS, FRAME_OUTPUT, Bundle, publish
from ..runtime.camera import Camera
from ..runtime.errors import BundleError, CameraError
from ..runtime.plan import MINIMUM_SIDE_PX
from ..runtime.restore import find_bundle, load
from .frame_graph import frame_graph_of

FORMAT_VERSION = "0.5.12"
DESCRIPTION, WEIGHTS, DOCUMENTATION, COVER = "bioimageio.yaml", "weights.onnx", "README.md", "cover.png"
TEST_INPUT, TEST_OUTPUT = "test_input.npy", "test_output.npy"
SAMPLE_INPUT, SAMPLE_OUTPUT = "sample_input.png", "sample_output.png"
COVER_PX = 256
INPUT_ID, OUTPUT_ID = "raw", "denoised"
LICENCE = "LICENSE.txt"
NAMED = (WEIGHTS, DOCUMENTATION, COVER, TEST_INPUT, TEST_OUTPUT, SAMPLE_INPUT, SAMPLE_OUTPUT, LICENCE)
TAGS = ("denoising", "image-restoration", "diffusion", "fluorescence-light-microscopy", "2d")
CITATIONS: tuple[dict[str, str], ...] = (
    {
        "text": "Karras et al. 2022, Elucidating the design space of diffusion-based generative models",
        "doi": "10.48550/arXiv.2206.00364",
    },
    {
        "text": "Makitalo and Foi 2013, Optimal inversion of the generalized Anscombe transformation",
        "doi": "10.1109/TIP.2012.2202675",
    },
)


def write(
    bundle: str | Path | Bundle,
    output: str | Path,
    *,
    steps: int = 1,
    camera: Camera | None = None,
    citations: Sequence[Mapping[str, str]] = CITATIONS,
    github_user: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the package of a bundle.

    Parameters
    ----------
    bundle : a shipped bundle's name, a ``.photonstep`` file, or a loaded bundle; it holds a test frame
    output : the ``.zip`` file; its folder exists
    steps : network evaluations, 1 (mean) to 4 (detail)
    camera : scalar offset, gain and readout noise that the package is for; None takes the test frame's
    citations : what to cite, each with ``text`` and ``doi`` or ``url``
    github_user : who maintains the package in the zoo; needed for an upload, not to run it
    overwrite : replace an existing file; False refuses

    Returns
    -------
    the output; same bundle and settings, same bytes

    Raises
    ------
    BundleError : no test frame, the file exists or cannot be written, or bioimageio.spec finds the package invalid
    CameraError : a camera with maps
    PlanError : steps out of range
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.load(find_bundle(bundle))
    target = Path(output)
    if target.suffix != ".zip":
        raise BundleError(f"{target.name} does not end in .zip; a BioImage Model Zoo package is one: rename the output")
    if os.path.lexists(target) and not overwrite:
        raise BundleError(f"{target} exists; choose another name or pass overwrite=True")
    if opened.manifest.test_frame is None:
        raise BundleError(
            f"{opened.path.name} has no test frame, which a package must have; export the bundle with one"
        )
    known = _checked_camera(opened, camera)
    files = _files(opened, steps, known)
    description = _description(opened, steps, known, citations, files)
    if github_user:
        description["maintainers"] = [{"github_user": github_user}]
    files = {DESCRIPTION: (json.dumps(description, indent=1) + "\n").encode(), **files}  # JSON is YAML
    content = _zip(files)
    _validate(content)
    publish(content, target, overwrite)
    return target


def graph_of_camera(frame_graph: bytes, camera: Camera) -> bytes:
    """A frame graph as the zoo wants it: ``raw`` in, ``denoised`` out, (1, 1, H, W); camera numbers are constants."""
    model = onnx.load_model_from_string(frame_graph)
    graph = model.graph
    sides = [[dim.dim_param for dim in value.type.tensor_type.shape.dim] for value in (graph.input[0], graph.output[0])]
    for name in FRAME_INPUTS[1:]:
        number = np.array(getattr(camera, name), np.float32)
        graph.initializer.append(onnx.numpy_helper.from_array(number, name))
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([0, 1], np.int64), "batch_and_channel"))
    nodes = [helper.make_node("Squeeze", [INPUT_ID, "batch_and_channel"], [FRAME_INPUTS[0]], name="plane"), *graph.node]
    nodes.append(helper.make_node("Unsqueeze", [FRAME_OUTPUT, "batch_and_channel"], [OUTPUT_ID], name="tensor"))
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    graph.input.append(helper.make_tensor_value_info(INPUT_ID, TensorProto.UINT16, [1, 1, *sides[0]]))
    graph.output.append(helper.make_tensor_value_info(OUTPUT_ID, TensorProto.UINT16, [1, 1, *sides[1]]))
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _checked_camera(bundle: Bundle, camera: Camera | None) -> Camera:
    known = camera or Camera(**bundle.manifest.test_frame.camera.model_dump())  # type: ignore[union-attr]
    if known.map_shape is not None:
        raise CameraError(
            f"the camera has maps of {known.map_shape}; a package takes scalars: give it the maps' medians"
        )
    return known


def _files(bundle: Bundle, steps: int, camera: Camera) -> dict[str, bytes]:
    """Every file of the package but its description."""
    manifest = bundle.manifest
    frame = bundle.read_array(manifest.test_frame.input)  # type: ignore[union-attr]
    restorer = load(bundle, precision="fp32")
    restored = restorer.restore(frame, camera=camera, steps=steps).image
    restorer.close()
    listed = steps in [graph.steps for graph in manifest.frame_graphs]
    graph = bundle.frame_graph(steps) if listed else frame_graph_of(bundle, steps)
    files = {
        WEIGHTS: graph_of_camera(graph, camera),
        TEST_INPUT: _npy(frame[None, None]),
        TEST_OUTPUT: _npy(restored[None, None]),
        SAMPLE_INPUT: _png(frame),
        SAMPLE_OUTPUT: _png(restored),
        COVER: _cover(frame, restored),
        DOCUMENTATION: _documentation(bundle, steps, camera).encode(),
        "camera.json": (json.dumps(_numbers(camera), indent=1) + "\n").encode(),
    }
    if " " in manifest.licence:  # an expression of several licences has no identifier of its own
        files[LICENCE] = f"SPDX-License-Identifier: {manifest.licence}\n".encode()
    if manifest.model_card is not None:
        files["model_card.md"] = bundle.read(manifest.model_card)
    if manifest.report is not None:
        files["report.json"] = bundle.read(manifest.report.member)
        files |= {picture: bundle.read(picture) for picture in manifest.report.pictures}
    return files


def _description(
    bundle: Bundle, steps: int, camera: Camera, citations: Sequence[Mapping[str, str]], files: Mapping[str, bytes]
) -> dict[str, Any]:
    """``bioimageio.yaml``."""
    manifest, listed = bundle.manifest, _Files(files)
    expected = np.load(io.BytesIO(files[TEST_OUTPUT]))
    tolerance = {"relative_tolerance": 0.001, "absolute_tolerance": min(1.0, float(expected.max()) / 100)}
    provenance = {
        "bundle_sha256": bundle.sha256, "steps": steps, "camera": _numbers(camera),
        "training_data": [entry.model_dump() for entry in manifest.training_data],
    }  # fmt: skip
    return {
        "type": "model",
        "format_version": FORMAT_VERSION,
        "name": f"photonstep {manifest.name} {manifest.version.replace('.', '-')} ({_evaluations(steps)})",
        "description": (
            f"Restores raw microscope frames{' at twice the sampling' * (manifest.scale == 2)}: a diffusion model that "
            f"starts at the measured frame, cut down to {_evaluations(steps)}. For one camera: {_in_words(camera)}."
        ),
        "version": manifest.version,
        "timestamp": f"{manifest.created.isoformat()}T00:00:00+00:00",
        "authors": [{"name": re.sub(r"[/\\]", " ", author)} for author in manifest.authors],
        "cite": [dict(entry) for entry in citations],
        "license": {"source": LICENCE} if LICENCE in files else manifest.licence,
        "tags": list(TAGS),
        "documentation": listed[DOCUMENTATION],
        "covers": [listed[COVER]],
        "attachments": [listed[name] for name in files if name not in NAMED],
        **_tensors(listed, manifest.scale),
        "weights": {"onnx": {**listed[WEIGHTS], "opset_version": _opset(files[WEIGHTS])}},
        "config": {"bioimageio": {"reproducibility_tolerance": [tolerance]}, "photonstep": provenance},
    }


class _Files:
    """Files by name as the description lists them."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = files

    def __getitem__(self, name: str) -> dict[str, str]:
        return {"source": name, "sha256": hashlib.sha256(self._files[name]).hexdigest()}


def _tensors(listed: _Files, scale: int) -> dict[str, Any]:
    """``inputs`` and ``outputs``: one frame each."""
    free = {"min": MINIMUM_SIDE_PX, "step": 1}
    same = [{"tensor_id": INPUT_ID, "axis_id": axis} for axis in "yx"]
    counts = {"type": "uint16", "range": [0, 65535]}
    raw = {
        "id": INPUT_ID, "description": "one raw frame in camera counts", "axes": _axes([free, free]), "data": counts,
        "test_tensor": listed[TEST_INPUT], "sample_tensor": listed[SAMPLE_INPUT],
    }  # fmt: skip
    restored = {
        "id": OUTPUT_ID, "description": "the restored frame in camera counts", "axes": _axes(same, 1 / scale),
        "data": counts, "test_tensor": listed[TEST_OUTPUT], "sample_tensor": listed[SAMPLE_OUTPUT],
    }  # fmt: skip
    return {"inputs": [raw], "outputs": [restored]}


def _axes(sizes: list[dict[str, Any]], scale: float = 1.0) -> list[dict[str, Any]]:
    sides = [
        {"type": "space", "id": axis, "size": size, "scale": scale} for axis, size in zip("yx", sizes, strict=True)
    ]
    return [{"type": "batch", "size": 1}, {"type": "channel", "channel_names": ["intensity"]}, *sides]


def _documentation(bundle: Bundle, steps: int, camera: Camera) -> str:
    manifest = bundle.manifest
    rows = "\n".join(f"| {d.name} | {d.licence} | {d.source} |" for d in manifest.training_data)
    card = f"\n{bundle.read(manifest.model_card).decode()}" if manifest.model_card is not None else ""
    return f"""# photonstep {manifest.name} {manifest.version}, {_evaluations(steps)}

Restores raw microscope frames: uint16 camera counts in, uint16 camera counts out, {MINIMUM_SIDE_PX} px a side or more.
Stabilisation of the noise, normalisation, padding, network, sampler, inverse and photon balance are inside; do not
normalise, pad or tile the frames. Restored pixels are estimates: record the raw frames too, and measure on those.

## Camera

The package is for one camera, whose numbers are constants in it: {_in_words(camera)}.
On frames of another camera the noise level is wrong, and so is the result.
For your own camera: `photonstep.export.bioimageio.write(bundle, "mine.zip", camera=Camera(...))`.

## Validation

Restore frames of a still sample and compare each with the mean of many: root mean square error and structural
similarity should improve on the raw frame's, the mean brightness should agree within half a percent, and what the
restored frame shows should be there in the mean. The test tensors hold such a frame's input and output.
The bundle that this was made of has the SHA-256 {bundle.sha256}.

## Training data

| data | licence | source |
| --- | --- | --- |
{rows}

{manifest.provenance}
{card}"""


def _evaluations(steps: int) -> str:
    return "1 network evaluation" if steps == 1 else f"{steps} network evaluations"


def _in_words(camera: Camera) -> str:
    y, x = camera.noise_correlation
    return (
        f"offset {camera.offset_adu:.6g} ADU, gain {camera.gain_e_per_adu:.6g} photoelectrons per ADU, readout noise "
        f"{camera.readout_noise_e:.6g} e-, lag-1 noise correlation (y, x) {y:.3g}, {x:.3g}"
    )


def _numbers(camera: Camera) -> dict[str, Any]:
    """The camera's numbers as the graph holds them, with the precision that it holds them in."""
    return {name: np.float32(getattr(camera, name)).tolist() for name in FRAME_INPUTS[1:]}


def _opset(graph: bytes) -> int:
    return int(onnx.load_model_from_string(graph).opset_import[0].version)


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _cover(frame: NDArray[np.uint16], restored: NDArray[np.uint16]) -> bytes:
    """The frame beside its restoration, two squares in a picture of 2:1, in one grey scale."""
    low, high = np.percentile(restored, [0.5, 99.8])
    halves = []
    for image in (frame, restored):
        side = min(image.shape)
        grey = np.clip((image[:side, :side].astype(np.float64) - low) / max(high - low, 1.0), 0, 1)
        square = Image.fromarray(np.rint(grey * 255).astype(np.uint8))
        halves.append(np.asarray(square.resize((COVER_PX, COVER_PX), Image.Resampling.NEAREST)))
    return _png(np.concatenate(halves, axis=1))


def _png(image: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def _zip(files: Mapping[str, bytes]) -> bytes:
    """Stored, sorted behind the description, without the clock: same files, same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(files, key=lambda name: (name != DESCRIPTION, name)):
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, files[name])
    return buffer.getvalue()


def _validate(content: bytes) -> None:
    """Raise a `BundleError` unless bioimageio.spec finds the package valid; nothing where it is not installed."""
    if importlib.util.find_spec("bioimageio") is None or importlib.util.find_spec("bioimageio.spec") is None:
        return
    from bioimageio.spec import InvalidDescr, load_description

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "package.zip"
        path.write_bytes(content)
        found = load_description(path)
    if isinstance(found, InvalidDescr):
        raise BundleError(
            f"bioimageio.spec refuses the package: {found.validation_summary.format()}; correct the bundle's manifest"
        )
