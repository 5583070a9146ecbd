"""A float ONNX network in strongly typed fp16: half precision inside, float32 planes in and residual out.

TensorRT 10 and 11 take precision from the graph's types alone; a Cast at either end keeps the outside in float32.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def to_half(network: bytes) -> bytes:
    """Convert a network.

    Parameters
    ----------
    network : ONNX bytes as `export.onnx.to_onnx` writes them, float32

    Returns
    -------
    ONNX bytes with the same inputs and output
    """
    model = onnx.load_model_from_string(network)
    graph = model.graph
    scales = {node.input[2] for node in graph.node if node.op_type == "Resize"}  # float32 by the operator's definition
    for index, tensor in enumerate(graph.initializer):
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in scales:
            half = numpy_helper.to_array(tensor).astype(np.float16)
            graph.initializer[index].CopyFrom(numpy_helper.from_array(half, tensor.name))
    inputs = {value.name: f"{value.name}_half" for value in graph.input}
    outputs = {value.name: f"{value.name}_half" for value in graph.output}
    for node in graph.node:
        node.input[:] = [inputs.get(name, name) if node.op_type != "Shape" else name for name in node.input]
        node.output[:] = [outputs.get(name, name) for name in node.output]
    into = [helper.make_node("Cast", [a], [b], name=f"{a}.to_half", to=TensorProto.FLOAT16) for a, b in inputs.items()]
    back = [helper.make_node("Cast", [b], [a], name=f"{a}.to_float", to=TensorProto.FLOAT) for a, b in outputs.items()]
    nodes = [*into, *graph.node, *back]
    del graph.node[:]
    del graph.value_info[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString(deterministic=True)
    return content
