"""TensorRT engines of a bundle's networks, for classic TensorRT 10/11 and for TensorRT-RTX; one API serves both.

    python -m photonstep.export.tensorrt base --precision fp16 --max 2048 2048

Networks are strongly typed: precision is what the ONNX graph says, never a builder flag. ``fp16`` is the bundle's own
network or made from its fp32; ``int8_symmetric`` must be in the bundle. TensorRT-RTX builds ahead of time, for GPUs
that need not be here; classic TensorRT builds on the GPU that will run the engine. Engines go to the local cache
(`export.engine_cache`) and nowhere else.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import onnx

from ..runtime.bundle import Bundle
from ..runtime.errors import BackendError, TrainingError
from ..runtime.restore import find_bundle
from .engine_cache import EngineKey, cache_folder, path_of, read_engine, write_engine, write_whole
from .half import to_half

FLAVOURS: Final = {"rtx": "tensorrt_rtx", "classic": "tensorrt"}
INSTALL: Final = {
    "rtx": "python -m pip install tensorrt-rtx-cu13",
    "classic": "python -m pip install tensorrt (its libraries come from NVIDIA's own index)",
}
PRECISIONS: Final = ("fp16", "int8_symmetric")
TARGETS: Final = ("sm_80", "sm_86", "sm_89", "sm_120")  # A100, RTX 30, RTX 40 and RTX 50 generations


@dataclass(frozen=True, kw_only=True)
class Profile:
    """(H, W) of frames, in pixels: the smallest, the one that is tuned for, and the largest."""

    smallest: tuple[int, int] = (64, 64)
    usual: tuple[int, int] = (512, 512)
    largest: tuple[int, int] = (2048, 2048)

    def check(self, multiple: int) -> None:
        """Raises TrainingError where a side is no multiple of the network's grid, or the order is wrong."""
        for axis, name in enumerate(("height", "width")):
            low, usual, high = (shape[axis] for shape in (self.smallest, self.usual, self.largest))
            if not 0 < low <= usual <= high or any(side % multiple for side in (low, usual, high)):
                raise TrainingError(
                    f"the profile's {name} is {low} to {usual} to {high} px; expected rising multiples of {multiple}"
                )


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """The GPU that the driver shows first."""

    name: str
    capability: str
    driver: str


@dataclass(frozen=True, kw_only=True)
class BuildProgress:
    """How far a build is: ``done`` from 0 to 1, and the seconds that the rest may take (None before the first step)."""

    phase: str
    done: float
    elapsed_s: float
    remaining_s: float | None


@dataclass(frozen=True, kw_only=True)
class Engine:
    """An engine in the cache; ``seconds`` is 0 when it was there already."""

    path: Path
    key: EngineKey
    cached: bool
    seconds: float


Report = Callable[[BuildProgress], None]


def library(flavour: str) -> ModuleType:
    """The Python module of a TensorRT flavour.

    Raises
    ------
    BackendError : an unknown flavour, or one that is not installed; the message names the remedy
    """
    if flavour not in FLAVOURS:
        raise BackendError(f"TensorRT flavour is {flavour!r}; choose one of {', '.join(FLAVOURS)}")
    try:
        return importlib.import_module(FLAVOURS[flavour])
    except (ImportError, OSError) as error:  # OSError: the bindings are there, the library is not
        raise BackendError(
            f"{FLAVOURS[flavour]} cannot be imported ({error}); install it with: {INSTALL[flavour]}"
        ) from error


def find_gpu() -> Gpu | None:
    """Ask the driver, without any other library: constructing a classic TensorRT object without one can crash."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count, version, device = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return None
    cuda.cuDriverGetVersion(ctypes.byref(version))
    cuda.cuDeviceGet(ctypes.byref(device), 0)
    name = ctypes.create_string_buffer(256)
    cuda.cuDeviceGetName(name, len(name), device)
    major, minor = ctypes.c_int(), ctypes.c_int()
    cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
    return Gpu(name=name.value.decode(), capability=f"sm_{major.value}{minor.value}", driver=str(version.value))


def unavailable(flavour: str) -> str | None:
    """Why engines of this flavour cannot be built here, or None."""
    try:
        library(flavour)
    except BackendError as error:
        return str(error)
    if flavour == "classic" and find_gpu() is None:
        return "classic TensorRT builds on the GPU that will run the engine, and this machine has no NVIDIA driver"
    return None


def check_network(network: bytes) -> None:
    """Refuse what TensorRT cannot take, before it says so in its own words.

    Raises
    ------
    TrainingError : uint16 or unsigned 8-bit tensors, or quantised biases; the message says which artefact to use
    """
    graph = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(network)).graph
    typed = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)}
    typed |= {i.name: i.data_type for i in graph.initializer}
    for name, kind in typed.items():
        if kind == onnx.TensorProto.UINT16:
            raise TrainingError(
                f"tensor {name!r} is uint16, which TensorRT has not; expected float32 planes: use a step network, the "
                "camera's part is photonstep's own"
            )
        if kind == onnx.TensorProto.UINT8:
            raise TrainingError(
                f"tensor {name!r} is uint8: this is the INT8 network for CPUs; expected symmetric signed INT8: use "
                "int8_symmetric"
            )
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and typed.get(node.input[0]) == onnx.TensorProto.INT32:
            raise TrainingError(f"{node.name!r} is a quantised bias, which TensorRT refuses; use int8_symmetric")


def compile_network(
    network: bytes,
    *,
    flavour: str,
    profile: Profile,
    targets: Sequence[str] = TARGETS,
    progress: Report | None = None,
    timing_cache: Path | None = None,
) -> bytes:
    """Parse and build one strongly typed network.

    Parameters
    ----------
    network : ONNX bytes with one input (1, P, H, W)
    targets : compute capabilities that a TensorRT-RTX engine shall hold; classic TensorRT builds for the GPU at hand
    timing_cache : file of measured kernels that classic TensorRT reads and adds to

    Returns
    -------
    the serialised engine

    Raises
    ------
    BackendError : the library is absent, or fails; TrainingError : a network that it cannot take
    """
    check_network(network)
    cause = unavailable(flavour)
    if cause:
        raise BackendError(cause)
    trt: Any = library(flavour)
    log = _log(trt)
    builder = trt.Builder(log)
    flags = trt.NetworkDefinitionCreationFlag.__members__
    definition = builder.create_network(1 << int(flags["STRONGLY_TYPED"]) if "STRONGLY_TYPED" in flags else 0)
    parser = trt.OnnxParser(definition, log)
    if not parser.parse(network):
        found = [parser.get_error(index) for index in range(parser.num_errors)]
        reasons = "; ".join([*(f"{error.node_operator()} {error.desc()}" for error in found), *log.errors])
        raise TrainingError(f"{FLAVOURS[flavour]} refuses the network: {reasons}; export it again")
    config = builder.create_builder_config()
    _add_profile(builder, config, definition.get_input(0), profile)
    if flavour == "rtx":
        _set_targets(trt, config, targets)
    elif timing_cache is not None:
        known = timing_cache.read_bytes() if timing_cache.exists() else b""
        config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)
    if progress is not None and hasattr(trt, "IProgressMonitor"):
        config.progress_monitor = _monitor(trt, progress)
    engine = builder.build_serialized_network(definition, config)
    if engine is None:
        raise BackendError(
            f"{FLAVOURS[flavour]} could not build the engine: {'; '.join(log.errors) or 'no reason given'}"
        )
    if flavour == "classic" and timing_cache is not None:
        write_whole(timing_cache, bytes(config.get_timing_cache().serialize()))
    return bytes(engine)


def build(
    bundle: str | Path | Bundle,
    *,
    precision: str = "fp16",
    flavour: str = "rtx",
    profile: Profile | None = None,
    targets: Sequence[str] = TARGETS,
    cache: Path | None = None,
    progress: Report | None = None,
) -> Engine:
    """An engine of a bundle's network, from the cache or built now.

    Parameters
    ----------
    bundle : shipped name, path, or a loaded `Bundle`
    precision : "fp16" or "int8_symmetric"
    flavour : "rtx" or "classic"
    profile : shapes that the engine takes; multiples of the network's grid
    cache : folder; None takes ``$PHOTONSTEP_CACHE`` or ``~/.cache/photonstep``

    Raises
    ------
    BackendError : this flavour cannot build here; the message names the cause
    TrainingError : the bundle has no such network, or an impossible profile
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.load(find_bundle(bundle))
    shapes, folder = profile or Profile(), cache or cache_folder()
    shapes.check(opened.manifest.model.multiple)
    network = _network(opened, precision)
    cause = unavailable(flavour)
    if cause:
        raise BackendError(cause)
    key = engine_key(opened.sha256, precision=precision, flavour=flavour, profile=shapes, targets=targets)
    if read_engine(key, folder) is not None:
        return Engine(path=path_of(key, folder), key=key, cached=True, seconds=0.0)
    started = time.monotonic()
    timing = (
        folder / f"timing-{hashlib.sha256(f'{key.library} {key.gpu} {key.driver}'.encode()).hexdigest()[:16]}.cache"
    )
    engine = compile_network(
        network, flavour=flavour, profile=shapes, targets=targets, progress=progress, timing_cache=timing
    )
    path = write_engine(key, engine, folder)
    return Engine(path=path, key=key, cached=False, seconds=time.monotonic() - started)


def engine_key(
    source_sha256: str, *, precision: str, flavour: str, profile: Profile, targets: Sequence[str]
) -> EngineKey:
    """Everything that decides an engine built here and now."""
    gpu = find_gpu()
    here = "none" if gpu is None else f"{gpu.name} {gpu.capability}"
    return EngineKey(
        source_sha256=source_sha256,
        gpu=" ".join(targets) if flavour == "rtx" else here,
        driver="none" if gpu is None or flavour == "rtx" else gpu.driver,
        library=f"{FLAVOURS[flavour]} {library(flavour).__version__}",
        profile=str((profile.smallest, profile.usual, profile.largest)),
        precision=precision,
    )


def _network(bundle: Bundle, precision: str) -> bytes:
    if precision not in PRECISIONS:
        raise TrainingError(f"precision is {precision!r}; TensorRT takes one of {', '.join(PRECISIONS)}")
    if precision in bundle.networks:
        return bundle.network(precision)  # type: ignore[arg-type]
    if precision == "fp16":
        return to_half(bundle.network("fp32"))
    raise TrainingError(
        f"{bundle.path.name} holds {', '.join(bundle.networks)} and no {precision}; quantise the run and export again"
    )


def _add_profile(builder: Any, config: Any, tensor: Any, profile: Profile) -> None:
    planes = tensor.shape[1]
    shapes = [(1, planes, *shape) for shape in (profile.smallest, profile.usual, profile.largest)]
    optimisation = builder.create_optimization_profile()
    optimisation.set_shape(tensor.name, *shapes)
    config.add_optimization_profile(optimisation)


def _set_targets(trt: Any, config: Any, targets: Sequence[str]) -> None:
    known = {f"sm_{name.removeprefix('SM')}": value for name, value in trt.ComputeCapability.__members__.items()}
    unknown = [target for target in targets if target not in known]
    if unknown or not targets:
        raise BackendError(f"targets are {list(targets)}; this TensorRT-RTX knows {', '.join(sorted(known))}")
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        config.set_compute_capability(known[target], index)


def _log(trt: Any) -> Any:
    """Keeps errors for our messages instead of printing them."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

    return Log()


def _monitor(trt: Any, report: Report) -> Any:
    """TensorRT's phases, which nest, as one fraction with an estimate of the time left."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._open: list[tuple[str, int, int]] = []  # phase, steps, steps done; outermost first
            self._started, self._done = time.monotonic(), 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._open.append((phase_name, num_steps, 0))

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._open = [(n, steps, step + 1 if n == phase_name else done) for n, steps, done in self._open]
            self._tell(phase_name)
            return True

        def phase_finish(self, phase_name: str) -> None:
            self._open = [entry for entry in self._open if entry[0] != phase_name]
            if not self._open:
                self._done = 1.0
                self._tell(phase_name)

        def _tell(self, phase: str) -> None:
            done, share = 0.0, 1.0
            for _, steps, finished in self._open:
                done += share * min(finished / max(steps, 1), 1.0)
                share /= max(steps, 1)
            self._done = max(self._done, min(done, 1.0))  # never backwards
            elapsed = time.monotonic() - self._started
            left = elapsed * (1 - self._done) / self._done if self._done > 0 else None
            report(BuildProgress(phase=phase, done=self._done, elapsed_s=elapsed, remaining_s=left))

    return Monitor()


def main() -> None:
    parser = argparse.ArgumentParser(description="build a TensorRT engine of a bundle into the local cache")
    parser.add_argument("bundle", help="shipped name or path")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp16")
    parser.add_argument("--flavour", choices=sorted(FLAVOURS), default="rtx")
    for name, default in (("min", Profile.smallest), ("opt", Profile.usual), ("max", Profile.largest)):
        parser.add_argument(f"--{name}", type=int, nargs=2, metavar=("H", "W"), default=default)
    arguments = parser.parse_args()
    profile = Profile(smallest=tuple(arguments.min), usual=tuple(arguments.opt), largest=tuple(arguments.max))

    def show(progress: BuildProgress) -> None:
        left = "" if progress.remaining_s is None else f", about {progress.remaining_s:.0f} s left"
        print(f"\r{100 * progress.done:3.0f} %  {progress.phase:.40}{left}\033[K", end="", flush=True)

    made = build(
        arguments.bundle, precision=arguments.precision, flavour=arguments.flavour, profile=profile, progress=show
    )
    print(f"\r\033[K{'found' if made.cached else f'built in {made.seconds:.1f} s'}: {made.path}")


if __name__ == "__main__":
    main()
