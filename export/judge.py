"""What a network of lower precision costs against its float32, in every noise bin, and how fast it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.backends import onnxruntime, openvino
from ..runtime.errors import TrainingError
from .onnx import INPUT_NAME
from .states import SIGMA_BINS, State, bin_name, bin_of

Evaluate = Callable[[NDArray[np.float32]], NDArray[np.float32]]
TIMED_PX, TIMED_ROUNDS = 512, 12


def evaluator(network: bytes, precision: str) -> Evaluate:
    """Run a network as it will run: INT8 in OpenVINO as on the user's CPU, all else in ONNX Runtime."""
    if precision == "int8":
        session: Any = openvino.open(network, device="cpu", precision="int8", threads=None)
    else:
        session = onnxruntime.OnnxRuntimeSession(network, precision="fp32", threads=None)
    return lambda planes: session.run({INPUT_NAME: planes}).copy()


def outputs(evaluate: Evaluate, states: Sequence[State]) -> list[NDArray[np.float32]]:
    return [evaluate(state.planes) for state in states]


def by_bin(
    exact: Sequence[NDArray[np.float32]],
    low: Sequence[NDArray[np.float32]],
    states: Sequence[State],
    sigma_data: float,
) -> list[dict[str, Any]]:
    """Compare two networks' outputs on states whose truth is known.

    Parameters
    ----------
    exact, low : (1, 1, H, W) residuals of the float32 network and of the other one, one a state

    Returns
    -------
    one row a noise bin: ``sigma``, ``states``, ``loss_db`` (PSNR that the other network loses) and ``error_in_noise``
    (rms difference of the restored pixels, in units of the noise)
    """
    rows = []
    for index in range(len(SIGMA_BINS) - 1):
        mine = [i for i, state in enumerate(states) if bin_of(state.level) == index]
        if not mine:
            continue
        errors = np.array([_errors(exact[i], low[i], states[i], sigma_data) for i in mine]).mean(0)
        rows.append(
            {
                "sigma": bin_name(index),
                "states": len(mine),
                "loss_db": round(float(10 * np.log10(errors[1] / errors[0])), 4),
                "error_in_noise": round(float(np.sqrt(errors[2])), 5),
            }
        )
    return rows


def worst_loss_db(rows: Sequence[dict[str, Any]]) -> float:
    return max(float(row["loss_db"]) for row in rows)


def speed(networks: dict[str, bytes], planes: int, threads: int | None) -> dict[str, float]:
    """Milliseconds of the fastest evaluation at 512x512 in OpenVINO, by precision; they take turns."""
    shape = (1, planes, TIMED_PX, TIMED_PX)
    inputs: dict[str, Any] = {INPUT_NAME: np.random.default_rng(0).normal(0, 0.5, shape).astype(np.float32)}
    sessions = {
        precision: openvino.open(networks["int8" if precision == "int8" else "fp32"], device="cpu",
                                 precision=precision, threads=threads)
        for precision in openvino.precisions("cpu")
        if precision != "int8" or "int8" in networks
    }  # fmt: skip
    best = dict.fromkeys(sessions, float("inf"))
    for _ in range(TIMED_ROUNDS):
        for precision, session in sessions.items():
            started = time.perf_counter()
            session.run(inputs)
            best[precision] = min(best[precision], (time.perf_counter() - started) * 1e3)
    return {precision: round(ms, 3) for precision, ms in best.items()}


def _errors(
    exact: NDArray[np.float32], low: NDArray[np.float32], state: State, sigma_data: float
) -> tuple[float, float, float]:
    """Mean squares in units of the noise: float32 against the truth, the other one likewise, one against the other."""
    a, b = state.restored(exact, sigma_data), state.restored(low, sigma_data)
    if state.x0 is None:
        raise TrainingError("a state without a known truth cannot judge; expected simulated states")
    first, second, apart = (float(np.mean((d / state.sigma) ** 2)) for d in (a - state.x0, b - state.x0, a - b))
    return first, second, apart
