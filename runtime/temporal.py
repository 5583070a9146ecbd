"""Temporal fusion: the measured frames of a sequence as one frame with less noise, wherever nothing moved.

Measurements are fused, never outputs, and with no look-ahead: a frame's result depends on it and on earlier ones. What
is known about the noise stays true: every pixel comes with the noise level that is left, and sampling starts there.
`kernels.reference.temporal` has the maths.
"""

from __future__ import annotations

import numbers
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels import ops
from .camera import Camera
from .errors import PlanError, ShapeError
from .light import UNCHANGED, light_change

Float32 = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class FusionSettings:
    """How much of the past is kept, and what counts as a change.

    Parameters
    ----------
    n_max : frames that a pixel's mean holds at most, 1 to 64; the noise falls to ``1 / sqrt(n_max)`` of one frame's
    point_limit : standard deviations from which a single pixel's difference counts as a change. High, because noise
        at a few photoelectrons has longer tails than a normal distribution
    small_limit, large_limit : the same for means over 3 x 3 and 7 x 7 px
    motion_limit : the same for a shift of the picture, least squares over 7 x 7 px
    spread_limit : the same for means over 3 x 3 px that start their neighbours within 2 px anew too
    emphasis : how much more than its square a difference that counts is believed; higher means fewer ghosts and more
        noise where noise looked like a change
    follow_light : bring the mean to the light of the new frame first (flicker, bleaching)

    Raises
    ------
    PlanError : a number out of range
    """

    n_max: float = 4
    point_limit: float = 6.0
    small_limit: float = 3.2
    large_limit: float = 4.0
    motion_limit: float = 1.7
    spread_limit: float = 4.5
    emphasis: float = 16.0
    follow_light: bool = True

    def __post_init__(self) -> None:
        _check_number("n_max", self.n_max, 1, 64)
        for name in ("point_limit", "small_limit", "large_limit", "motion_limit", "spread_limit"):
            _check_number(name, getattr(self, name), 0.1, 100)
        _check_number("emphasis", self.emphasis, 0, 1000)
        if not isinstance(self.follow_light, bool):
            raise PlanError(f"follow_light is {self.follow_light!r}; expected True or False")

    @property
    def limits(self) -> ops.Limits:
        return ops.Limits(
            point=float(self.point_limit), small=float(self.small_limit), large=float(self.large_limit),
            motion=float(self.motion_limit), spread=float(self.spread_limit),
        )  # fmt: skip


class TemporalFusion:
    """The memory of one sequence: a mean and its variance per pixel. One fusion serves one camera, one thread.

    Parameters
    ----------
    settings : None takes the defaults
    """

    def __init__(self, settings: FusionSettings | None = None) -> None:
        self.settings = FusionSettings() if settings is None else settings
        self._mean: Float32 | None = None
        self._variance: Float32 | None = None
        self._spare: tuple[Float32, Float32, Float32] | None = None  # mean, variance and noise of the next frame
        self._empty: NDArray[np.bool_] | None = None  # where the last frame held no count

    def reset(self) -> None:
        """Forget the past: call it when the stage, the focus, the exposure or the channel changed."""
        self._mean = self._variance = None

    def update(
        self, z: Float32, camera: Camera, missing: NDArray[np.bool_] | None = None
    ) -> tuple[Float32, float | Float32]:
        """Take in one frame and give the fused one.

        Parameters
        ----------
        z : (H, W) float32, a stabilised frame (`Camera.stabilise`); a new shape starts anew
        camera : how far neighbouring pixels share their noise
        missing : (H, W) pixels that were not measured and hold any number in ``z``; None for none. They are shown as
            the mean so far, and start anew with their next measurement

        Returns
        -------
        (fused, noise) : (H, W) float32 stabilised, and its noise in units of one frame's, (H, W) float32, or 1.0 where
            nothing is fused yet. Both are read-only and hold until the next update

        Raises
        ------
        ShapeError : not (H, W) float32, or not finite
        """
        _check_frame(z)
        if self._mean is None or self._variance is None or self._spare is None or self._mean.shape != z.shape:
            self._empty = missing
            return self._begin(z), 1.0
        empty, self._empty = self._empty, missing
        if missing is not None:
            z = np.where(missing, self._mean, z)
        if empty is not None:
            self._mean[empty] = z[empty]
        s, correlation = self.settings, camera.noise_correlation
        light = light_change(z, self._mean, self._variance, correlation) if s.follow_light else UNCHANGED
        mean, variance, noise = self._spare
        ops.fuse(
            z, self._mean, self._variance, n_max=float(s.n_max), limits=s.limits, emphasis=float(s.emphasis),
            noise_correlation=correlation, light=light, out_mean=mean, out_variance=variance,
        )  # fmt: skip
        for unmeasured in (empty, missing):  # one measurement, or none: the mean that is shown has not gained by it
            if unmeasured is not None:
                mean[unmeasured], variance[unmeasured] = z[unmeasured], 1.0
        self._spare, self._mean, self._variance = (self._mean, self._variance, noise), mean, variance
        ops.fused_noise(variance, out=noise)
        return _read_only(mean), _read_only(noise)

    def _begin(self, z: Float32) -> Float32:
        if self._spare is None or self._spare[0].shape != z.shape:
            self._spare = np.empty_like(z), np.empty_like(z), np.empty_like(z)
        self._mean, self._variance = np.array(z, order="C"), np.ones_like(z, order="C")
        return _read_only(self._mean)


def _check_frame(z: Float32) -> None:
    if not isinstance(z, np.ndarray) or z.dtype != np.float32 or z.ndim != 2 or not z.size:
        got = f"{z.dtype} of shape {z.shape}" if isinstance(z, np.ndarray) else type(z).__name__
        raise ShapeError(f"z is {got}; expected a stabilised frame, (H, W) float32, see Camera.stabilise")
    if not np.isfinite(z).all():
        raise ShapeError("z holds NaN or infinite values, which would stay in the mean; expected numbers: bridge them")


def _read_only(array: Float32) -> Float32:
    view = array.view()
    view.flags.writeable = False
    return view


def _check_number(name: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not low <= float(value) <= high:
        raise PlanError(f"{name} is {value!r}; expected a number from {low} to {high}")
