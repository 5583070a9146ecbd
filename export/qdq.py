"""A float ONNX network with QuantizeLinear/DequantizeLinear pairs around its inner convolutions.

Two dialects of the same ranges. ``cpu``: unsigned activations with a zero point, signed weights (U8S8), int32 biases,
what x86 processors multiply fastest. ``tensorrt``: signed and symmetric throughout (S8S8), zero points 0, float biases.
Weights are symmetric per output channel. The first and the last convolution stay in float: the first sees the noise
that the network has to reproduce, the last writes it.

Activations are quantised right before a convolution and nowhere else: the residual stream stays in float, so that its
error does not grow with depth, and a backend can fuse convolution, ReLU and requantisation, or convolution and Add.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from ..runtime.errors import TrainingError

Dialect = Literal["cpu", "tensorrt"]
Range = tuple[float, float]
WEIGHT_LEVELS, UNSIGNED_LEVELS, SIGNED_LEVELS = 127, 255, 127


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The numbers that an activation can take: ``scale * (q - zero_point)`` for integers q from ``low`` to ``high``."""

    scale: float
    zero_point: int
    low: int
    high: int


def activation_grid(limits: Range, dialect: Dialect) -> Grid:
    """The grid of a range of values; zero is always exactly on it."""
    low, high = min(limits[0], 0.0), max(limits[1], 0.0)
    if dialect == "tensorrt":
        scale = float(np.float32(max(-low, high, 1e-6) / SIGNED_LEVELS))
        return Grid(scale=scale, zero_point=0, low=-128, high=127)
    scale = float(np.float32(max(high - low, 1e-6) / UNSIGNED_LEVELS))
    return Grid(scale=scale, zero_point=round(-low / scale), low=0, high=255)


def weight_scales(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """(C_out,) scales of a (C_out, C_in, kh, kw) weight: its largest magnitude per output channel becomes 127."""
    largest = np.abs(weight.reshape(weight.shape[0], -1)).max(1)
    return np.maximum(largest / WEIGHT_LEVELS, 1e-8).astype(np.float32)


def convolutions(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Convolution nodes by layer name (``stem``, ``down_blocks.0.0.conv1``, ...), in the order of the graph."""
    return {n.input[1].removesuffix(".weight"): n for n in model.graph.node if n.op_type == "Conv"}


def quantisable(model: onnx.ModelProto) -> list[str]:
    """Layers that may be quantised: all convolutions but the first and the last."""
    return list(convolutions(model))[1:-1]


def with_qdq(network: bytes, ranges: Mapping[str, Range], dialect: Dialect, *, in_float: Collection[str] = ()) -> bytes:
    """Quantise a network.

    Parameters
    ----------
    network : ONNX bytes as `export.onnx.to_onnx` writes them
    ranges : (low, high) of every quantised convolution's input, by layer name
    dialect : "cpu" or "tensorrt"
    in_float : layers that stay in float beside the first and the last

    Returns
    -------
    ONNX bytes with the same inputs and output

    Raises
    ------
    TrainingError : ``in_float`` names a layer that the network does not have
    """
    model = onnx.load_model_from_string(network)
    unknown = sorted(set(in_float) - set(convolutions(model)))
    if unknown:
        raise TrainingError(f"no layer {', '.join(unknown)}; the network has {', '.join(quantisable(model))}")
    layers = [layer for layer in quantisable(model) if layer not in in_float]
    writer = _Writer(model, dialect)
    for layer in layers:
        writer.quantise(layer, activation_grid(ranges[layer], dialect))
    writer.finish()
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


class _Writer:
    """Rewrites one model in place, a convolution at a time."""

    def __init__(self, model: onnx.ModelProto, dialect: Dialect) -> None:
        self._graph, self._dialect = model.graph, dialect
        self._convolutions = convolutions(model)
        self._tensors = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
        self._before: dict[str, list[onnx.NodeProto]] = {}
        self._added: list[onnx.TensorProto] = []
        self._replaced: set[str] = set()

    def quantise(self, layer: str, grid: Grid) -> None:
        node = self._convolutions[layer]
        scales = weight_scales(self._tensors[node.input[1]])
        nodes = [*self._activation(layer, node, grid), self._weight(layer, node, scales)]
        if self._dialect == "cpu":
            nodes.append(self._bias(layer, node, scales * np.float32(grid.scale)))
        self._before[node.output[0]] = nodes

    def finish(self) -> None:
        nodes = []
        for node in self._graph.node:
            nodes += [*self._before.get(node.output[0], []), node]
        kept = [i for i in self._graph.initializer if i.name not in self._replaced]
        del self._graph.node[:]
        del self._graph.initializer[:]
        self._graph.node.extend(nodes)
        self._graph.initializer.extend([*kept, *self._added])

    def _activation(self, layer: str, node: onnx.NodeProto, grid: Grid) -> list[onnx.NodeProto]:
        dtype = np.uint8 if grid.low == 0 else np.int8
        scale = self._store(f"{layer}.input_scale", np.array(grid.scale, np.float32))
        zero = self._store(f"{layer}.input_zero_point", np.array(grid.zero_point, dtype))
        source, quantised, back = node.input[0], f"{layer}.input_quantised", f"{layer}.input"
        node.input[0] = back
        return [
            helper.make_node("QuantizeLinear", [source, scale, zero], [quantised], name=f"{layer}.quantise"),
            helper.make_node("DequantizeLinear", [quantised, scale, zero], [back], name=f"{layer}.dequantise"),
        ]

    def _weight(self, layer: str, node: onnx.NodeProto, scales: NDArray[np.float32]) -> onnx.NodeProto:
        weight = self._tensors[node.input[1]]
        steps = np.clip(np.rint(weight / scales[:, None, None, None]), -WEIGHT_LEVELS, WEIGHT_LEVELS).astype(np.int8)
        return self._dequantised(node, 1, f"{layer}.weight", steps, scales, np.int8)

    def _bias(self, layer: str, node: onnx.NodeProto, scales: NDArray[np.float32]) -> onnx.NodeProto:
        limit = 2**31 - 1
        steps = np.clip(np.rint(self._tensors[node.input[2]].astype(np.float64) / scales), -limit, limit)
        return self._dequantised(node, 2, f"{layer}.bias", steps.astype(np.int32), scales, np.int32)

    def _dequantised(
        self, node: onnx.NodeProto, place: int, name: str, steps: NDArray, scales: NDArray[np.float32], dtype: type
    ) -> onnx.NodeProto:
        self._replaced.add(node.input[place])
        stored = self._store(f"{name}_quantised", steps)
        scale = self._store(f"{name}_scale", scales)
        zero = self._store(f"{name}_zero_point", np.zeros(scales.shape, dtype))
        node.input[place] = f"{name}_dequantised"
        return helper.make_node(
            "DequantizeLinear", [stored, scale, zero], [node.input[place]], name=f"{name}.dequantise", axis=0
        )

    def _store(self, name: str, values: NDArray) -> str:
        self._added.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name
