"""ONNX Runtime on the CPU: the portable second backend (extra ``ort``)."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError
from .protocol import Array, Precision

DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")  # they share one import name

name = "onnxruntime"


def version() -> str | None:
    for distribution in DISTRIBUTIONS:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def unavailable(device: str) -> str | None:
    if device != "cpu":
        return f"photonstep runs ONNX Runtime on the CPU only so far, not on {device!r}"
    try:
        import onnxruntime  # noqa: F401
    except ImportError as error:
        return f"onnxruntime cannot be imported ({error}); install it with: python -m pip install 'photonstep[ort]'"
    return None


def precisions(device: str) -> tuple[Precision, ...]:
    return () if unavailable(device) else ("fp32", "int8")


def open(network: bytes, *, device: str, precision: Precision, threads: int | None) -> OnnxRuntimeSession:  # noqa: A001
    cause = unavailable(device)
    if cause:
        raise BackendError(cause)
    if precision not in precisions(device):
        raise BackendError(
            f"ONNX Runtime's CPU kernels run fp32 and int8 networks, not {precision}; choose one of them"
        )
    return OnnxRuntimeSession(network, precision=precision, threads=threads)


class OnnxRuntimeSession:
    """One network in an ONNX Runtime session; frame shapes are dynamic."""

    def __init__(self, network: bytes, *, precision: Precision, threads: int | None) -> None:
        import onnxruntime as ort

        self.backend, self.device, self.precision = name, "cpu", str(precision)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if threads:
            options.intra_op_num_threads = threads
        try:
            self._session: Any = ort.InferenceSession(network, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the library raises a dozen types without a common base
            raise BackendError(f"ONNX Runtime refuses the network: {error}") from error

    def run(self, inputs: dict[str, Array]) -> NDArray[np.float32]:
        try:
            return np.asarray(self._session.run(None, inputs)[0], dtype=np.float32)
        except Exception as error:
            shapes = {k: v.shape for k, v in inputs.items()}
            raise BackendError(f"ONNX Runtime failed on inputs of shape {shapes}: {error}") from error

    def close(self) -> None:
        self._session = None
