"""TensorRT engines made from ONNX networks, classic TensorRT 10/11 and TensorRT-RTX through one API.

Networks are strongly typed: precision is what the graph says, never a builder flag. TensorRT-RTX builds without a GPU,
for GPUs that need not be here; classic TensorRT builds on the GPU that will run the engine. Engines go to the local
cache (`engine_cache`) and nowhere else.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from ..errors import BackendError
from .engine_cache import EngineKey, cache_folder, keep, path_of, read_engine, write_engine
from .engine_progress import Report, error_log, monitor

FLAVOURS: Final = {"rtx": "tensorrt_rtx", "classic": "tensorrt"}
INSTALL: Final = {
    "rtx": "python -m pip install tensorrt-rtx-cu13",
    "classic": "python -m pip install tensorrt (its libraries come from NVIDIA's own index)",
}
TARGETS: Final = ("sm_80", "sm_86", "sm_89", "sm_120")  # A100, RTX 30, RTX 40 and RTX 50 generations


class NetworkRefusedError(BackendError):
    """TensorRT's parser cannot take a network."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """(H, W) of frames, in pixels: the smallest, the one that is tuned for, and the largest."""

    smallest: tuple[int, int] = (64, 64)
    usual: tuple[int, int] = (512, 512)
    largest: tuple[int, int] = (2048, 2048)

    def check(self, multiple: int) -> None:
        """Raises BackendError where a side is no multiple of the network's grid, or the order is wrong."""
        for axis, name in enumerate(("height", "width")):
            low, usual, high = (shape[axis] for shape in (self.smallest, self.usual, self.largest))
            if not 0 < low <= usual <= high or any(side % multiple for side in (low, usual, high)):
                raise BackendError(
                    f"the profile's {name} is {low} to {usual} to {high} px; expected rising multiples of {multiple}"
                )


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """The GPU that the driver shows first."""

    name: str
    capability: str
    driver: str


@dataclass(frozen=True, kw_only=True)
class Engine:
    """An engine in the cache; ``seconds`` is 0 when it was there already."""

    path: Path
    key: EngineKey
    cached: bool
    seconds: float


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


def compile_engine(
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
    BackendError : the library is absent, or fails; NetworkRefusedError : a network that it cannot take
    """
    cause = unavailable(flavour)
    if cause:
        raise BackendError(cause)
    trt: Any = library(flavour)
    log = error_log(trt)
    builder = trt.Builder(log)
    flags = trt.NetworkDefinitionCreationFlag.__members__
    definition = builder.create_network(1 << int(flags["STRONGLY_TYPED"]) if "STRONGLY_TYPED" in flags else 0)
    parser = trt.OnnxParser(definition, log)
    if not parser.parse(network):
        found = [parser.get_error(index) for index in range(parser.num_errors)]
        reasons = "; ".join([*(f"{error.node_operator()} {error.desc()}" for error in found), *log.errors])
        raise NetworkRefusedError(f"{FLAVOURS[flavour]} refuses the network: {reasons}; export it again")
    config = builder.create_builder_config()
    _add_profile(builder, config, definition.get_input(0), profile)
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):  # TensorRT-RTX cannot be captured in a graph without it
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if flavour == "rtx":
        _set_targets(trt, config, targets)
    elif timing_cache is not None:
        known = timing_cache.read_bytes() if timing_cache.exists() else b""
        config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)
    if progress is not None and hasattr(trt, "IProgressMonitor"):
        config.progress_monitor = monitor(trt, progress)
    engine = builder.build_serialized_network(definition, config)
    if engine is None:
        raise BackendError(
            f"{FLAVOURS[flavour]} could not build the engine: {'; '.join(log.errors) or 'no reason given'}"
        )
    if flavour == "classic" and timing_cache is not None:
        keep(timing_cache, bytes(config.get_timing_cache().serialize()))
    return bytes(engine)


def cached_engine(
    network: bytes,
    source_sha256: str,
    *,
    precision: str,
    flavour: str,
    profile: Profile,
    targets: Sequence[str] = TARGETS,
    folder: Path | None = None,
    progress: Report | None = None,
) -> Engine:
    """The engine of a network, from the cache or built now.

    Parameters
    ----------
    source_sha256 : of what the network came from; another content must have another hash
    folder : of the cache; None takes ``$PHOTONSTEP_CACHE`` or ``~/.cache/photonstep``

    Raises
    ------
    BackendError : this flavour cannot build here; the message names the cause
    """
    cause = unavailable(flavour)
    if cause:
        raise BackendError(cause)
    folder = folder or cache_folder()
    key = engine_key(source_sha256, precision=precision, flavour=flavour, profile=profile, targets=targets)
    if read_engine(key, folder) is not None:
        return Engine(path=path_of(key, folder), key=key, cached=True, seconds=0.0)
    started = time.monotonic()
    told = hashlib.sha256(f"{key.library} {key.gpu} {key.driver}".encode()).hexdigest()[:16]
    engine = compile_engine(
        network, flavour=flavour, profile=profile, targets=targets, progress=progress,
        timing_cache=folder / f"timing-{told}.cache",
    )  # fmt: skip
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
        profile=f"{(profile.smallest, profile.usual, profile.largest)}, memory from the caller",
        precision=precision,
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
