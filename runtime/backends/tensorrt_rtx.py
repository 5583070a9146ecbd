"""TensorRT-RTX, for RTX cards beside microscopes: engines are built in a second (extra ``tensorrt-rtx``)."""

from __future__ import annotations

from ..errors import BackendError
from . import engine_build, tensorrt_engine
from .protocol import Precision
from .tensorrt_engine import NETWORKS, TensorRtSession

name = "tensorrt_rtx"
networks = NETWORKS
FLAVOUR = "rtx"


def version() -> str | None:
    try:
        return str(engine_build.library(FLAVOUR).__version__)
    except BackendError:
        return None


def unavailable(device: str) -> str | None:
    return tensorrt_engine.unavailable(FLAVOUR, device)


def precisions(device: str) -> tuple[Precision, ...]:
    return () if unavailable(device) else ("fp32", "fp16", "int8")


def is_built(network: bytes, precision: Precision) -> bool:
    """Whether the engine for the GPU at hand is in the local cache."""
    return tensorrt_engine.is_built(network, flavour=FLAVOUR, precision=precision)


def open(network: bytes, *, device: str, precision: Precision, threads: int | None) -> TensorRtSession:  # noqa: A001
    cause = unavailable(device)
    if cause:
        raise BackendError(cause)
    return tensorrt_engine.open_session(network, flavour=FLAVOUR, precision=precision)
