"""TensorRT engines of a bundle's networks, for classic TensorRT 10/11 and for TensorRT-RTX; one API serves both.

    python -m photonstep.export.tensorrt base --precision fp16 --max 2048 2048

``fp16`` is the bundle's own network or made from its fp32; ``int8_symmetric`` must be in the bundle. The building is
`runtime.backends.engine_build`, which a restorer uses too; here networks are checked before, and made where missing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import onnx

from ..runtime.backends import engine_build
from ..runtime.backends.engine_build import (
    FLAVOURS,
    INSTALL,
    TARGETS,
    Engine,
    Gpu,
    NetworkRefusedError,
    Profile,
    engine_key,
    find_gpu,
    library,
    unavailable,
)  # fmt: skip
from ..runtime.backends.engine_progress import BuildProgress, Report
from ..runtime.bundle import Bundle
from ..runtime.errors import BackendError, TrainingError
from ..runtime.restore import find_bundle
from .half import to_half

__all__ = [
    "FLAVOURS", "INSTALL", "PRECISIONS", "TARGETS", "BuildProgress", "Engine", "Gpu", "Profile", "Report", "build",
    "check_network", "compile_network", "engine_key", "find_gpu", "library", "unavailable",
]  # fmt: skip
PRECISIONS: Final = ("fp16", "int8_symmetric")


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
    """Check, parse and build one strongly typed network; see `engine_build.compile_engine`.

    Raises
    ------
    BackendError : the library is absent, or fails; TrainingError : a network that it cannot take
    """
    check_network(network)
    try:
        return engine_build.compile_engine(
            network, flavour=flavour, profile=profile, targets=targets, progress=progress, timing_cache=timing_cache
        )
    except NetworkRefusedError as error:
        raise TrainingError(str(error)) from error


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
    shapes = profile or Profile()
    try:
        shapes.check(opened.manifest.model.multiple)
    except BackendError as error:
        raise TrainingError(str(error)) from error
    network = _network(opened, precision)
    cause = unavailable(flavour)
    if cause:
        raise BackendError(cause)
    check_network(network)
    try:
        return engine_build.cached_engine(
            network, opened.sha256, precision=precision, flavour=flavour, profile=shapes, targets=targets,
            folder=cache, progress=progress,
        )  # fmt: skip
    except NetworkRefusedError as error:
        raise TrainingError(str(error)) from error


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
