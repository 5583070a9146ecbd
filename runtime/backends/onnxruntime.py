"""ONNX Runtime: the portable second backend on the CPU (extra ``ort``), and on a GPU where its CUDA provider is."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError
from . import cuda_device
from .cuda_device import Device
from .protocol import Array, Precision

DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")  # they share one import name

CUDA_PROVIDER: Final = "CUDAExecutionProvider"

name = "onnxruntime"
networks: Mapping[str, str] = {"fp32": "fp32", "fp16": "fp16", "int8": "int8"}


def version() -> str | None:
    for distribution in DISTRIBUTIONS:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def unavailable(device: str) -> str | None:
    try:
        import onnxruntime as ort
    except ImportError as error:
        return f"onnxruntime cannot be imported ({error}); install it with: python -m pip install 'photonstep[ort]'"
    if device == "cpu":
        return None
    if CUDA_PROVIDER not in ort.get_available_providers():
        return (
            "this onnxruntime was built without its provider for device 'cuda'; install onnxruntime-gpu in place of "
            "onnxruntime"
        )
    return cuda_device.unavailable()


def precisions(device: str) -> tuple[Precision, ...]:
    if unavailable(device):
        return ()
    return ("fp32", "int8") if device == "cpu" else ("fp32", "fp16")


def open(  # noqa: A001
    network: bytes, *, device: str, precision: Precision, threads: int | None
) -> OnnxRuntimeSession | OnnxRuntimeCudaSession:
    cause = unavailable(device)
    if cause:
        raise BackendError(cause)
    if precision not in precisions(device):
        offered = " and ".join(precisions(device))
        where = "CPU" if device == "cpu" else "CUDA"
        raise BackendError(
            f"ONNX Runtime's {where} kernels run {offered} networks, not {precision}; choose one of them"
        )
    if device == "cpu":
        return OnnxRuntimeSession(network, precision=precision, threads=threads)
    return OnnxRuntimeCudaSession(network, precision=precision, device=cuda_device.open_device())


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


class OnnxRuntimeCudaSession:
    """One network on a GPU, on our own stream; tensors that are on the device already stay there (``on_device``)."""

    def __init__(self, network: bytes, *, precision: Precision, device: Device) -> None:
        self.backend, self.device, self.precision = name, "cuda", str(precision)
        try:
            self._session: Any = _on_gpu(network, device)
        except BaseException:
            device.close()
            raise
        self.on_device: OnnxRuntimeNetwork | None = OnnxRuntimeNetwork(self._session, device)

    def run(self, inputs: dict[str, Array]) -> NDArray[np.float32]:
        try:
            return np.asarray(self._session.run(None, inputs)[0], dtype=np.float32)
        except Exception as error:
            shapes = {k: v.shape for k, v in inputs.items()}
            raise BackendError(f"ONNX Runtime failed on the GPU on inputs of shape {shapes}: {error}") from error

    def close(self) -> None:
        if self.on_device is not None:
            self.on_device.release()
            device, self.on_device, self._session = self.on_device.device, None, None
            device.close()


def _on_gpu(network: bytes, device: Device) -> Any:
    """A session that really is on the GPU, whole: the library would otherwise go to the CPU without a word."""
    import onnxruntime as ort

    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # CUDA's and cuDNN's libraries from their Python packages
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    provider = {
        "device_id": "0", "user_compute_stream": str(device.stream), "cudnn_conv_algo_search": "EXHAUSTIVE",
        "use_tf32": "0",
    }  # fmt: skip
    try:
        session = ort.InferenceSession(network, options, providers=[(CUDA_PROVIDER, provider)], enable_fallback=0)
    except Exception as error:  # the library raises a dozen types without a common base
        raise BackendError(f"ONNX Runtime refuses the network on the GPU: {error}") from error
    got = session.get_providers()
    if not got or got[0] != CUDA_PROVIDER:
        raise BackendError(
            f"ONNX Runtime gave {', '.join(got) or 'no provider'} where {CUDA_PROVIDER} was asked for; its CUDA or "
            "cuDNN libraries are missing or of another version: see python -c 'import onnxruntime; "
            "onnxruntime.print_debug_info()'"
        )
    return session


class OnnxRuntimeNetwork:
    """The session's network with its tensors bound to device memory; a `protocol.DeviceNetwork`."""

    largest_side_px = 8192

    def __init__(self, session: Any, device: Device) -> None:
        import onnxruntime as ort

        self.device, self._session = device, session
        self._input, self._output = session.get_inputs()[0].name, session.get_outputs()[0].name
        self._bindings: dict[tuple[tuple[int, int, int], int, int], Any] = {}
        self._options = ort.RunOptions()
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    @property
    def memory_bytes(self) -> int:
        return 0  # its arena does not tell

    def prepare(self, shapes: Sequence[tuple[int, int, int]], input_address: int, output_address: int) -> bool:
        for shape in shapes:
            for _ in range(2):  # the first run of a shape picks algorithms and grows the arena
                self.enqueue(self.device.stream, shape, input_address, output_address)
        self.device.synchronise()
        return True

    def enqueue(self, stream: int, shape: tuple[int, int, int], input_address: int, output_address: int) -> None:
        key = shape, input_address, output_address
        try:
            if key not in self._bindings:
                self._bindings[key] = self._bound(*key)
            self._session.run_with_iobinding(self._bindings[key], self._options)
        except Exception as error:
            if "memory" in str(error).lower() and "alloc" in str(error).lower():
                raise cuda_device.DeviceMemoryError(f"ONNX Runtime, input of shape {shape}: {error}") from error
            raise BackendError(f"ONNX Runtime failed on the GPU on an input of shape {shape}: {error}") from error

    def _bound(self, shape: tuple[int, int, int], input_address: int, output_address: int) -> Any:
        binding = self._session.io_binding()
        binding.bind_input(self._input, "cuda", 0, np.float32, (1, *shape), input_address)
        binding.bind_output(self._output, "cuda", 0, np.float32, (1, 1, *shape[1:]), output_address)
        return binding

    def release(self) -> None:
        self._bindings.clear()
