"""The range of every activation that is to be quantised, observed while the float network runs.

The calibrators are ONNX Runtime's own: ``minmax`` takes the extremes, ``percentile`` leaves the rarest values out,
``entropy`` picks the range whose histogram loses least information.

Source: onnxruntime.quantization.calibrate.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnx
from numpy.typing import NDArray

from .qdq import Range, convolutions, quantisable

Method = Literal["minmax", "percentile", "entropy"]
METHODS: tuple[Method, ...] = get_args(Method)
PERCENTILE = 99.999


def observed_ranges(network: bytes, states: Iterable[NDArray[np.float32]], method: Method) -> dict[str, Range]:
    """Run a network over states and watch the inputs of its inner convolutions.

    Parameters
    ----------
    network : ONNX bytes as `export.onnx.to_onnx` writes them
    states : (1, planes, H, W) float32 network inputs; one shape for the calibrators with a histogram
    method : "minmax", "percentile" or "entropy"

    Returns
    -------
    (low, high) by layer name, as `qdq.with_qdq` takes it
    """
    from onnxruntime.quantization import calibrate

    model = onnx.load_model_from_string(network)
    input_name = model.graph.input[0].name
    watched = {layer: convolutions(model)[layer].input[0] for layer in quantisable(model)}
    kind = {name: getattr(calibrate.CalibrationMethod, name.title().replace("max", "Max")) for name in METHODS}[method]
    options: dict[str, Any] = {"percentile": PERCENTILE} if method == "percentile" else {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "float.onnx"
        path.write_bytes(network)
        calibrator = calibrate.create_calibrator(
            path,
            list({node.op_type for node in model.graph.node if node.output[0] in watched.values()}),
            augmented_model_path=str(Path(folder) / "watched.onnx"),
            calibrate_method=kind,
            extra_options=options,
        )
        calibrator.collect_data(_Reader({input_name: state} for state in states))
        found = calibrator.compute_data().data
    return {layer: tuple(float(np.ravel(v)[0]) for v in found[tensor].range_value) for layer, tensor in watched.items()}


class _Reader:
    """What ONNX Runtime's calibrators read from."""

    def __init__(self, feeds: Iterable[dict[str, NDArray[np.float32]]]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self._feeds, None)
