"""Writes ONNX nodes as calls: ``y = g("Add", x, np.float32(1))`` adds a node and returns its output's name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

Operand = str | np.generic | np.ndarray[Any, Any] | Sequence[int]


class GraphBuilder:
    """Nodes and initialisers of a graph that grows around a network.

    An operand is a name, a NumPy scalar or array (a constant of its type) or a list of whole numbers (an int64
    constant). Equal constants are stored once.

    Parameters
    ----------
    network : one input, one output; `evaluate` puts it into the graph, every time with the same weights
    """

    def __init__(self, network: GraphProto) -> None:
        self.nodes: list[NodeProto] = []
        self.initialisers: list[TensorProto] = list(network.initializer)
        self._network = network
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._evaluations = 0

    def __call__(self, operator: str, *operands: Operand, output: str | None = None, **attributes: Any) -> str:
        """Add a node with one output; return its name."""
        [name] = self._add(operator, operands, [output or self._name(operator)], attributes)
        return name

    def two_outputs(self, operator: str, *operands: Operand, **attributes: Any) -> tuple[str, str]:
        """Add a node with two outputs; return their names."""
        name = self._name(operator)
        first, second = self._add(operator, operands, [name, f"{name}_2"], attributes)
        return first, second

    def evaluate(self, planes: str) -> str:
        """Add one evaluation of the network, whose weights every evaluation shares; return its output's name."""
        self._evaluations += 1
        prefix = f"step_{self._evaluations}/"
        shared = {tensor.name for tensor in self._network.initializer}
        names = {self._network.input[0].name: planes, "": ""} | {name: name for name in shared}
        for node in self._network.node:
            copied = NodeProto()
            copied.CopyFrom(node)
            copied.name = prefix + node.name
            del copied.input[:], copied.output[:]
            copied.input.extend(names[name] for name in node.input)
            names |= {name: prefix + name for name in node.output if name}
            copied.output.extend(names[name] for name in node.output)
            self.nodes.append(copied)
        return names[self._network.output[0].name]

    def _add(
        self, operator: str, operands: Sequence[Operand], outputs: list[str], attributes: dict[str, Any]
    ) -> list[str]:
        inputs = [o if isinstance(o, str) else self._constant(np.asarray(o)) for o in operands]
        self.nodes.append(helper.make_node(operator, inputs, outputs, name=outputs[0], **attributes))
        return outputs

    def _name(self, operator: str) -> str:
        return f"frame/{operator.lower()}_{len(self.nodes)}"

    def _constant(self, value: np.ndarray[Any, Any]) -> str:
        key = (value.dtype.name, value.shape, value.tobytes())
        if key not in self._constants:
            self._constants[key] = f"frame/constant_{len(self._constants)}"
            self.initialisers.append(numpy_helper.from_array(value, self._constants[key]))
        return self._constants[key]


def finished(
    g: GraphBuilder, name: str, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto], like: ModelProto
) -> bytes:
    """The graph as a checked model: operator set of ``like``, its oldest format version; same graph, same bytes."""
    oldest = helper.find_min_ir_version_for(list(like.opset_import))
    model = ModelProto(ir_version=oldest, producer_name=like.producer_name)
    model.opset_import.extend(like.opset_import)
    model.graph.CopyFrom(helper.make_graph(g.nodes, name, inputs, outputs, g.initialisers))
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString(deterministic=True)
    return content
