"""TensorRT engines run, classic TensorRT and TensorRT-RTX alike; `tensorrt.py` and `tensorrt_rtx.py` name the two.

The engine is found in the local cache or built (`engine_build`). Every input shape has an execution context of its own,
whose tensor addresses and memory are set once; an evaluation is then one ``execute_async_v3`` on our stream.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError
from . import cuda_device, engine_build
from .cuda_device import Device, Memory
from .engine_build import FLAVOURS, Profile
from .engine_cache import cache_folder, read_engine
from .engine_progress import Report, error_log
from .protocol import Array, Precision

# The engine's network by arithmetic; TensorRT wants symmetric signed INT8
NETWORKS: Final[Mapping[str, str]] = {"fp32": "fp32", "fp16": "fp16", "int8": "int8_symmetric"}
PROFILE: Final = Profile(smallest=(32, 32), usual=(512, 512), largest=(4096, 4096))

Shape = tuple[int, int, int]


def unavailable(flavour: str, device: str) -> str | None:
    """Why engines of this flavour cannot run here, or None."""
    if device != "cuda":
        return f"TensorRT runs on NVIDIA GPUs only, not on {device!r}"
    try:
        engine_build.library(flavour)
    except BackendError as error:
        return str(error)
    return cuda_device.unavailable()


def open_session(
    network: bytes, *, flavour: str, precision: Precision, progress: Report | None = None, device: Device | None = None
) -> TensorRtSession:
    """An engine of a network, from the cache or built now, and loaded.

    Parameters
    ----------
    network : the bundle's network that `NETWORKS` names for ``precision``
    device : to run on; None opens the first GPU

    Raises
    ------
    BackendError : this flavour cannot run here, or refuses the network; the message names the cause
    """
    if precision not in NETWORKS:
        raise BackendError(f"TensorRT runs {', '.join(NETWORKS)}, not {precision}; choose one of them")
    cause = unavailable(flavour, "cuda") if device is None else None
    if cause:
        raise BackendError(cause)
    opened = device or cuda_device.open_device()
    try:
        made = engine_build.cached_engine(
            network, hashlib.sha256(network).hexdigest(), precision=precision, flavour=flavour, profile=PROFILE,
            targets=(opened.arch,), progress=progress,
        )  # fmt: skip
        engine = read_engine(made.key, cache_folder())
        if engine is None:
            raise BackendError(f"{made.path} cannot be read back; delete it and load the bundle again")
        return TensorRtSession(engine, opened, flavour=flavour, precision=str(precision))
    except BaseException:
        opened.close()
        raise


def is_built(network: bytes, *, flavour: str, precision: Precision) -> bool:
    """Whether the engine of a network for the GPU at hand is in the cache."""
    gpu = engine_build.find_gpu()
    if gpu is None:
        return False
    key = engine_build.engine_key(
        hashlib.sha256(network).hexdigest(), precision=precision, flavour=flavour, profile=PROFILE,
        targets=(gpu.capability,),
    )  # fmt: skip
    return read_engine(key, cache_folder()) is not None


class TensorRtNetwork:
    """An engine's execution contexts by shape, on memory of the caller's; a `protocol.DeviceNetwork`."""

    largest_side_px = PROFILE.largest[0]

    def __init__(self, engine: bytes, device: Device, flavour: str) -> None:
        self.device = device
        self._trt: Any = engine_build.library(flavour)
        self._log = error_log(self._trt)
        self._runtime = self._trt.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(engine)
        if self._engine is None:
            raise self._error("cannot load the engine")
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        inputs = [n for n in names if self._engine.get_tensor_mode(n) == self._trt.TensorIOMode.INPUT]
        if len(names) != 2 or len(inputs) != 1:
            raise BackendError(f"the engine has the tensors {names}; expected one input and one output")
        self._input, (self._output,) = inputs[0], [n for n in names if n not in inputs]
        self._contexts: dict[Shape, Any] = {}
        self._addresses: dict[Shape, tuple[int, int]] = {}
        self._workspaces: list[Memory] = []

    @property
    def memory_bytes(self) -> int:
        return sum(memory.size for memory in self._workspaces)

    def prepare(self, shapes: Sequence[Shape], input_address: int, output_address: int) -> bool:
        made = {shape: self._context(shape) for shape in shapes if shape not in self._contexts}
        if made:  # they run one after another: the largest one's memory serves all
            size = max(int(context.update_device_memory_size_for_shapes()) for context in made.values())
            workspace = self.device.allocate(max(size, 256))
            self._workspaces.append(workspace)
            for context in made.values():
                context.set_device_memory(workspace.address, workspace.size)
            self._contexts |= made
        for shape in shapes:
            self.enqueue(self.device.stream, shape, input_address, output_address)
        self.device.synchronise()  # whatever is compiled or loaded at a shape's first run has been by now
        return all(self._is_capturable(self._contexts[shape]) for shape in shapes)

    def enqueue(self, stream: int, shape: Shape, input_address: int, output_address: int) -> None:
        context = self._contexts[shape]
        if self._addresses.get(shape) != (input_address, output_address):
            for name, address in ((self._input, input_address), (self._output, output_address)):
                if not context.set_tensor_address(name, address):
                    raise self._error(f"refuses the address of {name!r}")
            self._addresses[shape] = input_address, output_address
        if not context.execute_async_v3(stream):
            raise self._error(f"failed on an input of shape {shape}")

    def release(self) -> None:
        self._contexts.clear()
        self._addresses.clear()
        for memory in self._workspaces:
            with contextlib.suppress(BackendError):
                memory.close()
        self._workspaces.clear()

    def close(self) -> None:
        self.release()
        self._engine = self._runtime = None

    def _context(self, shape: Shape) -> Any:
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if hasattr(self._engine, "create_runtime_config"):
            config = self._engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            if hasattr(config, "dynamic_shapes_kernel_specialization_strategy"):  # TensorRT-RTX: now, not while live
                eager = self._trt.DynamicShapesKernelSpecializationStrategy.EAGER
                config.dynamic_shapes_kernel_specialization_strategy = eager
            context = self._engine.create_execution_context(config)
        else:
            context = self._engine.create_execution_context(strategy)
        if context is None:
            raise self._error("makes no execution context")
        if not context.set_input_shape(self._input, (1, *shape)):
            raise self._error(f"refuses an input of shape {shape}")
        return context

    def _is_capturable(self, context: Any) -> bool:
        asked = getattr(context, "is_stream_capturable", None)  # classic TensorRT has no such question
        return asked is None or bool(asked(self.device.stream))

    def _error(self, what: str) -> BackendError:
        told, self._log.errors = "; ".join(self._log.errors), []
        return BackendError(f"TensorRT {what}: {told or 'no reason given'}")


class TensorRtSession:
    """A `protocol.Session` whose network also stays on the device, as ``on_device``."""

    def __init__(self, engine: bytes, device: Device, *, flavour: str, precision: str) -> None:
        self.backend, self.device, self.precision = FLAVOURS[flavour], "cuda", precision
        self.on_device: Any = TensorRtNetwork(engine, device, flavour)
        self._evaluate = HostEvaluation(self.on_device)

    def run(self, inputs: dict[str, Array]) -> NDArray[np.float32]:
        return self._evaluate(next(iter(inputs.values())))

    def close(self) -> None:
        if self.on_device is not None:
            self._evaluate.close()
            self.on_device.close()
            self.on_device.device.close()
            self.on_device = None


class HostEvaluation:
    """A device's network evaluated on arrays of the host, for frames that the general path serves."""

    def __init__(self, network: Any, shape_of_output: Callable[[Shape], tuple[int, int]] | None = None) -> None:
        self._network, self._device = network, network.device
        self._shape_of_output = shape_of_output or (lambda shape: shape[1:])
        self._shape: Shape | None = None
        self._memory: list[Any] = []

    def __call__(self, planes: Array) -> NDArray[np.float32]:
        """(1, P, H, W) float32 to (1, 1, H, W) float32, valid until the next call."""
        shape = (int(planes.shape[1]), int(planes.shape[2]), int(planes.shape[3]))
        height, width = self._shape_of_output(shape)
        if shape != self._shape:
            self._allocate(shape, 4 * height * width)
        host_in, device_in, device_out, host_out = self._memory
        host_in.array.view(np.float32).reshape(planes.shape)[...] = planes
        self._device.upload(device_in, host_in)
        self._network.enqueue(self._device.stream, shape, device_in.address, device_out.address)
        self._device.download(host_out, device_out)
        self._device.synchronise()
        return np.asarray(host_out.array.view(np.float32).reshape(1, 1, height, width))

    def _allocate(self, shape: Shape, out_bytes: int) -> None:
        self.close()
        size = 4 * int(np.prod(shape))
        pinned, allocate = self._device.allocate_pinned, self._device.allocate
        for make, count in ((pinned, size), (allocate, size), (allocate, out_bytes), (pinned, out_bytes)):
            self._memory.append(make(count))
        self._network.prepare([shape], self._memory[1].address, self._memory[2].address)
        self._shape = shape

    def close(self) -> None:
        for memory in self._memory:
            with contextlib.suppress(BackendError):
                memory.close()
        self._memory, self._shape = [], None
