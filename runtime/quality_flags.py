"""Reasons to distrust a restored frame, from the frame, its residual and what the model was made for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..kernels import ops
from .camera import Camera
from .errors import BackendError
from .manifest import OperatingRange

SATURATED_SHARE: Final = 1e-3
FLOOR_PHOTONS: Final = 2.0
FLOOR_READOUT_E: Final = 0.5
RESIDUAL_VARIANCE: Final = (0.6, 1.6)  # of the stabilised residual; 1 where the camera numbers hold
STABLE_VARIANCE_E2: Final = 3.0  # shot plus readout variance, e-^2, above which stabilised noise has unit variance
CUT_OFF_SHARE: Final = 0.3
LEAST_VARIANCE: Final = 0.05  # below it there is no residual to speak of, and no correlation in it
CORRELATION_MISMATCH: Final = 0.25
EXAMINED_ROWS: Final = 4  # one band of rows in four is enough for the residual's statistics

FLAGS: Final = {
    "saturated": "more than 0.1 % of the pixels are full: their true brightness is unknown",
    "non_finite": "NaN or infinite pixels were bridged for the network and passed through",
    "below_photon_floor": "under 2 photoelectrons per pixel with little readout noise: bin or fuse frames",
    "noise_mismatch": "the residual is not as strong as the camera numbers say: check gain, offset and readout noise",
    "correlated_noise": "neighbouring pixels share noise in a way that the camera numbers or the model do not cover",
    "out_of_range": "the noise level lies outside the range that the model was trained on",
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was noticed about one plane."""

    sigma: float
    network_ms: float
    flags: tuple[str, ...]
    report: dict[str, float]


def examine(
    residual: ops.ResidualStatistics,
    camera: Camera,
    *,
    photons_e: float,
    sigma: float,
    full: NDArray[np.bool_] | None,
    missing: NDArray[np.bool_] | None,
    limits: OperatingRange,
    network_ms: float,
    report: bool,
) -> Finding:
    """Judge one restored plane.

    Parameters
    ----------
    residual : of the stabilised frame less its restoration, in units of its noise
    photons_e : mean light of the restoration, photoelectrons per pixel
    sigma : noise level of the frame in model units
    full, missing : (H, W) pixels that were saturated or held no count; None for none
    report : also tell the numbers

    Raises
    ------
    BackendError : the restoration is not finite
    """
    variance, cut_off = residual.variance, residual.cut_off
    if not np.isfinite(variance):
        raise BackendError(
            "the network gave values that are not finite; try precision='fp32' or another backend: photonstep doctor"
        )
    correlation = (residual.along_y / max(variance, 1e-6), residual.along_x / max(variance, 1e-6))
    readout_e = camera.median_readout_noise_e
    # with little light the transform cannot stabilise, and the residual is weak for a good reason
    weakest = RESIDUAL_VARIANCE[0] if photons_e + readout_e**2 >= STABLE_VARIANCE_E2 else 0.0
    told = {
        "saturated": full is not None and np.count_nonzero(full) > SATURATED_SHARE * full.size,
        "non_finite": missing is not None,
        "below_photon_floor": photons_e < FLOOR_PHOTONS and readout_e < FLOOR_READOUT_E,
        "noise_mismatch": not weakest <= variance <= RESIDUAL_VARIANCE[1] or cut_off > CUT_OFF_SHARE,
        "correlated_noise": max(camera.noise_correlation) > limits.max_noise_correlation
        or (
            variance > LEAST_VARIANCE
            and cut_off <= CUT_OFF_SHARE  # z of 0: so far below the offset that the transform cannot tell
            and any(c - k > CORRELATION_MISMATCH for c, k in zip(correlation, camera.noise_correlation, strict=True))
        ),
        "out_of_range": not limits.sigma_min <= sigma <= limits.sigma_max,
    }
    numbers = {
        "residual_variance": variance,
        "residual_correlation_y": correlation[0],
        "residual_correlation_x": correlation[1],
    }
    flags = tuple(name for name, on in told.items() if on)
    return Finding(sigma=sigma, network_ms=network_ms, flags=flags, report=numbers if report else {})


def full_pixels(frame: NDArray[Any], camera: Camera) -> NDArray[np.bool_] | None:
    """Where the camera was saturated, (H, W), or None where no pixel was."""
    limit = camera.saturation_adu
    if limit is None:
        if frame.dtype.kind == "f":
            return None
        limit = float(np.iinfo(frame.dtype).max)
    if frame.dtype.kind == "u":
        limit = int(np.ceil(limit))
        if limit > np.iinfo(frame.dtype).max:
            return None
    if not ops.count_at_least(frame, limit):
        return None
    full: NDArray[np.bool_] = frame >= limit
    return full


def merge(flags: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Flags of a stack: those of any plane, in the order of `FLAGS`."""
    return tuple(name for name in FLAGS if any(name in f for f in flags))


def mean_report(reports: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean over planes of every reported number."""
    return {key: float(np.mean([r[key] for r in reports])) for key in reports[0]} if reports and reports[0] else {}
