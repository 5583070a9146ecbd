"""A torch denoiser as an ONNX graph with dynamic height and width, cleaned of everything that is not the network."""

from __future__ import annotations

import io
import logging
import warnings
from typing import Any

import onnx
import torch

from ..models.network import Denoiser
from ..models.stem import with_strided_stem

OPSET = 20
INPUT_NAME, OUTPUT_NAME = "planes", "residual"


def to_onnx(network: Denoiser) -> bytes:
    """Export one evaluation of the network.

    Parameters
    ----------
    network : any device; exported in evaluation mode, float32

    Returns
    -------
    ONNX bytes, checked; input ``planes`` (1, planes, H, W) and output ``residual`` (1, 1, H, W), H and W multiples of
    ``network.config.multiple``
    """
    multiple = network.config.multiple
    example = torch.zeros(1, network.config.planes, 4 * multiple, 6 * multiple)
    shape = {2: multiple * torch.export.Dim("h", min=1), 3: multiple * torch.export.Dim("w", min=1)}
    return graph_of(
        with_strided_stem(network).eval().to("cpu", torch.float32, memory_format=torch.contiguous_format),
        (example,),
        dynamic_shapes=(shape,),
        inputs=(INPUT_NAME,),
        output=OUTPUT_NAME,
    )


def graph_of(
    module: torch.nn.Module | torch.export.ExportedProgram,
    example: tuple[torch.Tensor, ...],
    *,
    dynamic_shapes: Any,
    inputs: tuple[str, ...],
    output: str,
) -> bytes:
    """Export a module, or a program that torch.export captured, as a checked ONNX graph without notes of this machine.

    Parameters
    ----------
    example : one tensor per input; empty for a captured program, like dynamic_shapes
    dynamic_shapes : as `torch.export.export` takes them
    inputs, output : names in the graph
    """
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own internals
        program = torch.onnx.export(
            module,
            example,
            input_names=list(inputs),
            output_names=[output],
            dynamic_shapes=dynamic_shapes,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    buffer = io.BytesIO()
    if program is None:
        raise RuntimeError("torch.onnx.export returned nothing; expected a program: check the torch version")
    program.save(buffer)
    model = onnx.load_model_from_string(buffer.getvalue())
    _strip(model)
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _strip(model: onnx.ModelProto) -> None:
    """Remove stack traces and other notes of the exporting machine: same weights, same bytes, wherever exported."""
    model.doc_string = ""
    del model.metadata_props[:]
    model.producer_name, model.producer_version = "photonstep", ""
    for item in (model.graph, *model.graph.node, *model.graph.initializer, *model.graph.value_info):
        item.doc_string = ""
        if hasattr(item, "metadata_props"):
            del item.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output):
        value.doc_string = ""
        del value.metadata_props[:]
    used = {node.domain for node in model.graph.node}
    kept = [entry for entry in model.opset_import if entry.domain in used | {""}]
    del model.opset_import[:]
    model.opset_import.extend(kept)
