"""OpenVINO: the default on CPUs. It reads the bundle's ONNX as it is; bfloat16 and INT8 where the CPU has them."""

from __future__ import annotations

import importlib.metadata
import threading
from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError
from .protocol import Array, Precision

SHAPES_KEPT = 4  # compiled networks for the last few frame shapes; each costs some MB and a fraction of a second

name = "openvino"
networks = {"fp32": "fp32", "bf16": "fp32", "int8": "int8"}

_made: list[Any] = []
_making = threading.Lock()


def core() -> Any:
    """The process's one ``openvino.Core``, made when it is first asked for and kept.

    Each Core gives the thread that makes it a stack for signal handlers and takes it away when the Core goes. Of two
    Cores that go in the order in which they came, the second puts the first one's stack back, which is gone by then:
    the next signal, such as Ctrl-C, kills the process. Source: openvinotoolkit/openvino pull request 11894.
    """
    with _making:
        if not _made:
            import openvino

            _made.append(openvino.Core())
        return _made[0]


def version() -> str | None:
    try:
        return importlib.metadata.version("openvino")
    except importlib.metadata.PackageNotFoundError:
        return None


def unavailable(device: str) -> str | None:
    if device != "cpu":
        return f"photonstep runs OpenVINO on the CPU only, not on {device!r}"
    try:
        import openvino  # noqa: F401
    except ImportError as error:
        return f"openvino cannot be imported ({error}); install it with: python -m pip install openvino"
    return None


def precisions(device: str) -> tuple[Precision, ...]:
    if unavailable(device):
        return ()
    able = _capabilities()
    found: list[Precision] = ["fp32"]
    if "BF16" in able:
        found.append("bf16")
    if "INT8" in able:
        found.append("int8")
    return tuple(found)


def open(network: bytes, *, device: str, precision: Precision, threads: int | None) -> OpenVinoSession:  # noqa: A001
    cause = unavailable(device)
    if cause:
        raise BackendError(cause)
    if precision not in precisions(device):
        raise BackendError(f"this CPU has no fast {precision} arithmetic; choose precision='fp32' or 'auto'")
    return OpenVinoSession(network, precision=precision, threads=threads)


def _capabilities() -> list[str]:
    return list(core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


class OpenVinoSession:
    """One network, compiled per frame shape when the shape first comes."""

    def __init__(self, network: bytes, *, precision: Precision, threads: int | None) -> None:
        self.backend, self.device, self.precision = name, "cpu", str(precision)
        self._settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": self._float_arithmetic(),
            "ENABLE_CPU_PINNING": False,  # a pinned thread waits while its core is busy and another one is idle
            **({"INFERENCE_NUM_THREADS": threads} if threads else {}),
        }
        try:
            self._model = core().read_model(network, b"")
        except RuntimeError as error:
            raise BackendError(f"OpenVINO refuses the network: {error}") from error
        self._requests: OrderedDict[tuple[tuple[int, ...], ...], Any] = OrderedDict()

    def run(self, inputs: dict[str, Array]) -> NDArray[np.float32]:
        key = tuple(a.shape for a in inputs.values())
        request = self._requests.get(key) or self._compile(inputs, key)
        self._requests.move_to_end(key)
        try:
            results = request.infer(inputs, share_inputs=True, share_outputs=True)
        except RuntimeError as error:
            raise BackendError(f"OpenVINO failed on inputs of shape {key}: {error}") from error
        return np.asarray(results[0], dtype=np.float32)

    def close(self) -> None:
        self._requests.clear()

    def _float_arithmetic(self) -> str:
        """Of the layers in float: an INT8 network's first, last and residual stream are as good in bfloat16."""
        has_bf16 = "BF16" in _capabilities()
        return {"fp32": "f32", "bf16": "bf16", "int8": "bf16" if has_bf16 else "f32"}[self.precision]

    def _compile(self, inputs: dict[str, Array], key: tuple[tuple[int, ...], ...]) -> Any:
        try:
            model = self._model.clone()
            model.reshape({n: list(a.shape) for n, a in inputs.items()})
            request = core().compile_model(model, "CPU", self._settings).create_infer_request()
        except RuntimeError as error:
            raise BackendError(f"OpenVINO cannot compile the network for shapes {key}: {error}") from error
        self._requests[key] = request
        while len(self._requests) > SHAPES_KEPT:
            self._requests.popitem(last=False)
        return request
