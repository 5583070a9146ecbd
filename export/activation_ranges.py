"""The range of every activation that is to be quantised, observed while the float network runs.

The calibrators are ONNX Runtime's own: the extremes (percentile 100), or a percentile that leaves the rarest values out
and so makes finer steps for the others.

Source: onnxruntime.quantization.calibrate.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from .qdq import Range, convolutions, quantisable

MINMAX = 100.0


def observed_ranges(network: bytes, states: Iterable[NDArray[np.float32]]) -> dict[str, Range]:
    """The extremes of every inner convolution's input; see `percentile_ranges`."""
    return percentile_ranges(network, states, (MINMAX,))[MINMAX]


def percentile_ranges(
    network: bytes, states: Iterable[NDArray[np.float32]], percentiles: Sequence[float]
) -> dict[float, dict[str, Range]]:
    """Run a network over states and watch the inputs of its inner convolutions.

    Parameters
    ----------
    network : ONNX bytes as `export.onnx.to_onnx` writes them
    states : (1, planes, H, W) float32 network inputs
    percentiles : how much of the values shall lie within; 100 is all of them

    Returns
    -------
    by percentile: (low, high) by layer name, as `qdq.with_qdq` takes it
    """
    from onnxruntime.quantization import calibrate

    model = onnx.load_model_from_string(network)
    input_name = model.graph.input[0].name
    watched = {layer: convolutions(model)[layer].input[0] for layer in quantisable(model)}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):  # it reports on itself
        path = Path(folder) / "float.onnx"
        path.write_bytes(network)
        calibrator = calibrate.create_calibrator(
            path,
            sorted({node.op_type for node in model.graph.node if node.output[0] in watched.values()}),
            augmented_model_path=str(Path(folder) / "watched.onnx"),
            calibrate_method=calibrate.CalibrationMethod.Percentile,
            extra_options={"percentile": MINMAX},
        )
        calibrator.collect_data(_Reader({input_name: state} for state in states))
        found = {}
        for percentile in percentiles:
            calibrator.collector.percentile = percentile
            found[percentile] = calibrator.compute_data().data
    return {
        percentile: {layer: _limits(data[tensor]) for layer, tensor in watched.items()}
        for percentile, data in found.items()
    }


def _limits(tensor: Any) -> Range:
    low, high = (float(np.ravel(limit)[0]) for limit in tensor.range_value)
    return low, high


class _Reader:
    """What ONNX Runtime's calibrators read from."""

    def __init__(self, feeds: Iterable[dict[str, NDArray[np.float32]]]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self._feeds, None)
