"""Pick a backend and a precision: by name when the caller names them, otherwise by a timed run of a real session."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError
from . import cuda_device, engine_build, onnxruntime, openvino, tensorrt, tensorrt_rtx
from .protocol import Array, Session
from .while_building import SessionWhileBuilding

BACKENDS: Final[Mapping[str, ModuleType]] = {m.name: m for m in (openvino, onnxruntime)}  # on the CPU, best first
GPU_BACKENDS: Final[Mapping[str, ModuleType]] = {m.name: m for m in (tensorrt_rtx, tensorrt, onnxruntime)}
ALL_BACKENDS: Final[Mapping[str, ModuleType]] = {**BACKENDS, **GPU_BACKENDS}
DEVICES: Final = ("auto", "cpu", "cuda")
PRECISIONS: Final = ("auto", "fp32", "bf16", "fp16", "int8")
# rms difference from fp32, in units of the frame's noise
PARITY_BUDGET: Final = 0.05  # of arithmetic on the same weights: far below what the eye or PSNR sees
# INT8 weights were judged by their loss in dB when the bundle was made; this catches a library or processor that
# computes them wrongly, such as one whose sums saturate
INT8_BUDGET: Final = 0.25
TIMED_RUNS: Final = 6

log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One session that was timed: milliseconds of its fastest evaluation and, below fp32, its distance from fp32."""

    backend: str
    precision: str
    best_ms: float
    error_in_noise: float


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The session to use, what else was tried, and why this one."""

    session: Session
    trials: tuple[Trial, ...]
    reason: str


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Inputs for a timed run, and how much of an output's error reaches the restored frame, in units of its noise."""

    inputs: dict[str, Array]
    error_scale: float


def budget(precision: str) -> float:
    """How far from fp32 a precision may lie, rms, in units of the frame's noise."""
    return INT8_BUDGET if precision == "int8" else PARITY_BUDGET


def open_session(
    networks: Mapping[str, bytes],
    probe: Probe,
    *,
    device: str,
    backend: str | None,
    precision: str,
    threads: int | None,
) -> Choice:
    """Open the session that the caller asked for, or the fastest that keeps parity.

    Parameters
    ----------
    networks : ONNX bytes by precision as in the bundle: "fp32" always, others where the bundle has them
    device : "cpu"; "cuda": a GPU or an error; "auto": a GPU where one can be used, otherwise the CPU
    backend : a key of `BACKENDS` or `GPU_BACKENDS`, or None for any
    precision : "auto", "fp32", "bf16" (CPU, made from the fp32 network), "fp16" (GPU) or "int8" (the bundle's own)
    threads : CPU threads, 1 or more; None leaves it to the library

    Raises
    ------
    BackendError : what was asked for cannot be used here; the message names the cause for every candidate
    """
    for what, value, choices in (
        ("device", device, DEVICES),
        ("precision", precision, PRECISIONS),
        ("backend", backend or "any", ("any", *ALL_BACKENDS)),
    ):
        if value not in choices:
            raise BackendError(f"{what} is {value!r}; choose one of {', '.join(choices)}")
    if threads is not None and not (isinstance(threads, int) and threads >= 1):
        raise BackendError(f"threads is {threads!r}; expected a whole number of 1 or more, or None")
    if device == "auto" and backend not in BACKENDS.keys() - GPU_BACKENDS.keys() and precision != "bf16":
        return _open_auto(networks, probe, backend, precision, threads)
    if device == "cuda":
        return _open_on_gpu(networks, probe, backend, precision, threads, must=True)
    return _open_on_cpu(networks, probe, backend, precision, threads)


def _open_auto(
    networks: Mapping[str, bytes], probe: Probe, backend: str | None, precision: str, threads: int | None
) -> Choice:
    """A GPU where one can be used; otherwise the CPU, with the cause."""
    cause = "there is no NVIDIA GPU or driver" if engine_build.find_gpu() is None else cuda_device.unavailable()
    if cause is None:
        try:
            return _open_on_gpu(networks, probe, backend, precision, threads, must=False)
        except BackendError as error:
            cause = str(error)
            log.warning("the GPU is not used: %s", cause)
    choice = _open_on_cpu(networks, probe, backend, precision, threads)
    return replace(choice, reason=f"{choice.reason}; on the CPU, since {cause}")


def _usable(table: Mapping[str, ModuleType], backend: str | None, device: str) -> list[ModuleType]:
    """The backends that can serve a device, best first."""
    modules = [ALL_BACKENDS[n] for n in ([backend] if backend else table)]
    causes = {m.name: m.unavailable(device) for m in modules}
    if all(causes.values()):
        raise BackendError(f"device {device!r} cannot be used: " + "; ".join(f"{n}: {c}" for n, c in causes.items()))
    return [m for m in modules if causes[m.name] is None]


def _open_on_cpu(
    networks: Mapping[str, bytes], probe: Probe, backend: str | None, precision: str, threads: int | None
) -> Choice:
    module = _usable(BACKENDS, backend, "cpu")[0]  # in the order of the table; `doctor` times them all
    if precision == "auto":
        return _by_trial(networks, probe, module, "cpu", threads)
    network = _network(networks, module, precision)
    session = module.open(network, device="cpu", precision=precision, threads=threads)
    return Choice(session=session, trials=(), reason=f"{module.name} {precision}: asked for")


def _open_on_gpu(
    networks: Mapping[str, bytes], probe: Probe, backend: str | None, precision: str, threads: int | None, *, must: bool
) -> Choice:
    """The first GPU backend that opens and agrees with the CPU; while an engine is built, the CPU answers.

    ``must``: once the building has failed, an evaluation is an error; otherwise the CPU goes on.
    """
    modules = _usable(GPU_BACKENDS, backend, "cuda")
    wanted = "fp16" if precision == "auto" and "fp16" in networks else "fp32" if precision == "auto" else precision
    network = _network(networks, modules[0], wanted)
    fallback = openvino.open(networks["fp32"], device="cpu", precision="fp32", threads=threads)
    exact = fallback.run(probe.inputs).copy()

    def opened() -> Session:
        causes = []
        for module in modules:
            try:
                return _agreeing(module, _network(networks, module, wanted), wanted, probe, exact)
            except BackendError as error:
                causes.append(f"{module.name}: {error}")
        raise BackendError("device 'cuda' cannot be used: " + "; ".join(causes))

    why = "asked for" if precision != "auto" else f"the bundle's network for GPUs; {modules[0].name} comes first"
    if hasattr(modules[0], "is_built") and not modules[0].is_built(network, wanted):
        reason = f"{modules[0].name} {wanted}: {why}; openvino fp32 answers while the engine is built"
        return Choice(session=SessionWhileBuilding(fallback, opened, must=must), trials=(), reason=reason)
    fallback.close()
    session = opened()
    return Choice(session=session, trials=(), reason=f"{session.backend} {session.precision}: {why}")


def _agreeing(module: ModuleType, network: bytes, precision: str, probe: Probe, exact: NDArray[np.float32]) -> Session:
    """A session on the GPU that computes what the CPU does, within the budget."""
    session: Session = module.open(network, device="cuda", precision=precision, threads=None)
    try:
        error = float(np.sqrt(np.mean((session.run(probe.inputs) - exact) ** 2))) * probe.error_scale
        if not error <= budget(precision):
            raise BackendError(
                f"{precision} lies {error:.3f} of the noise from fp32, {budget(precision)} is allowed; choose another "
                "precision"
            )
    except BaseException:
        session.close()
        raise
    return session


def _network(networks: Mapping[str, bytes], module: ModuleType, precision: str) -> bytes:
    """The bundle's network that a backend runs for arithmetic in ``precision``."""
    name = module.networks.get(precision, precision)
    if name not in networks and name in ("fp16", "int8", "int8_symmetric"):
        others = "fp32 or auto" if name == "fp16" else "fp32, bf16 or auto"
        raise BackendError(
            f"precision is {precision!r}, but the bundle holds {', '.join(networks)} and no {name} network; choose "
            f"{others}, or a bundle that was quantised"
        )
    return networks.get(name, networks["fp32"])


def _by_trial(
    networks: Mapping[str, bytes], probe: Probe, module: ModuleType, device: str, threads: int | None
) -> Choice:
    name = module.name
    precisions = [p for p in module.precisions(device) if module.networks[p] in networks]
    opened, refused = _opened(module, networks, precisions, device, threads, probe)
    precisions, sessions = list(opened), list(opened.values())
    outputs, times = _timed(sessions, probe.inputs)
    trials = [
        Trial(
            backend=name,
            precision=precision,
            best_ms=best_ms,
            error_in_noise=float(np.sqrt(np.mean((output - outputs[0]) ** 2))) * probe.error_scale,
        )
        for precision, output, best_ms in zip(precisions, outputs, times, strict=True)
    ]
    within = [i for i, t in enumerate(trials) if t.error_in_noise <= budget(t.precision)]
    if not within:
        raise BackendError(f"{name} gave values that are not finite on the bundle's test frame; choose another backend")
    best = min(within, key=lambda i: trials[i].best_ms)
    for index, session in enumerate(sessions):
        if index != best:
            session.close()
    chosen = trials[best]
    told = ", ".join(f"{t.precision} {t.best_ms:.1f} ms (error {t.error_in_noise:.3f} of the noise)" for t in trials)
    return Choice(
        session=sessions[best],
        trials=tuple(trials),
        reason=f"{name} {chosen.precision}: fastest within {budget(chosen.precision)} of the noise; timed: {told}"
        + "".join(f"; {precision} cannot run here: {cause}" for precision, cause in refused.items()),
    )


def _opened(
    module: ModuleType, networks: Mapping[str, bytes], precisions: Sequence[str], device: str, threads: int | None,
    probe: Probe,
) -> tuple[dict[str, Session], dict[str, str]]:  # fmt: skip
    """Sessions by precision that can be opened and run, and why others cannot; float32 must."""
    opened: dict[str, Session] = {}
    refused: dict[str, str] = {}
    for precision in precisions:
        try:
            session = module.open(
                _network(networks, module, precision), device=device, precision=precision, threads=threads
            )
            session.run(probe.inputs)
        except BackendError as error:
            if precision == "fp32":
                raise
            refused[precision] = str(error)
        else:
            opened[precision] = session
    return opened, refused


def _timed(sessions: list[Session], inputs: dict[str, Array]) -> tuple[list[NDArray[np.float32]], list[float]]:
    """Outputs, and milliseconds of the least disturbed run: they take turns, so that a busy machine does not decide."""
    outputs: list[NDArray[np.float32]] = [session.run(inputs).copy() for session in sessions]
    best = [float("inf")] * len(sessions)
    for _ in range(TIMED_RUNS):
        for index, session in enumerate(sessions):
            started = time.perf_counter()
            session.run(inputs)
            best[index] = min(best[index], (time.perf_counter() - started) * 1e3)
    return outputs, best
