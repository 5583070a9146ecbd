"""A network as a function ``(x, sigma) -> x0_hat``: its inputs built, its output read, as the bundle says."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .backends.protocol import Array, Session
from .errors import PlanError
from .manifest import Manifest
from .prediction import Parameterisation, c_noise, edm_coefficients
from .samplers import Denoise
from .schedule import FloatArray

SHAPES_KEPT: Final = 4


def parameterisation(manifest: Manifest) -> Parameterisation:
    """How the bundle's network is fed and read."""
    model = manifest.model
    return Parameterisation(
        prediction=model.prediction,
        conditioning=model.conditioning,
        input_scaling=model.input_scaling,
        sigma_data=model.sigma_data,
        sigma_min=manifest.operating_range.sigma_min,
        alphas_cumprod=model.alphas_cumprod,
        sigmas=model.sigmas,
        integer_timestep=model.integer_timestep,
        clip_x0=model.clip_x0,
    )


class Denoiser:
    """Evaluates the network and counts the milliseconds spent inside it."""

    def __init__(self, manifest: Manifest, session: Session) -> None:
        self._session = session
        self._inputs = NetworkInputs(manifest)
        self._parameterisation = parameterisation(manifest)
        self.network_ms = 0.0

    def at(
        self,
        noise_correlation: tuple[float, float],
        detail: float = 0.0,
        measurement: NDArray[np.float32] | None = None,
    ) -> Denoise:
        """The denoiser of frames whose noise has this lag-1 correlation along (y, x), at a place of the detail knob.

        ``measurement`` is the frame (H, W) in model units; conditional networks look at it, others leave it.
        """

        def denoise(x: FloatArray, sigma: float | FloatArray) -> FloatArray:
            inputs = self._inputs(x, sigma, noise_correlation, detail, measurement)
            started = time.perf_counter()
            output = self._session.run(inputs)
            self.network_ms += (time.perf_counter() - started) * 1e3
            return self._parameterisation.x0(output[0, 0], np.asarray(x, np.float32), sigma)

        return denoise


class NetworkInputs:
    """Builds the network's input tensors; they are allocated once per shape and filled again every time."""

    def __init__(self, manifest: Manifest) -> None:
        self._model = manifest.model
        self._parameterisation = parameterisation(manifest)
        self._planes: OrderedDict[tuple[int, ...], NDArray[np.float32]] = OrderedDict()
        # what the planes of one value hold now, by shape: a stack's noise level rarely changes from frame to frame
        self._constants: dict[tuple[int, ...], tuple[float, ...]] = {}

    def __call__(
        self,
        x: FloatArray,
        sigma: float | FloatArray,
        noise_correlation: tuple[float, float],
        detail: float = 0.0,
        measurement: NDArray[np.float32] | None = None,
    ) -> dict[str, Array]:
        """The inputs by name for a state ``x``, (H, W) float32; valid until the next call.

        One input name means one tensor of planes (image, noise level, correlation along y and x, detail, measurement);
        more mean image, noise level and measurement apart, as networks made elsewhere want it.

        Raises
        ------
        PlanError : the network looks at a measurement, and none was given
        """
        speaks, names = self._parameterisation, self._model.input_names
        seen = self._seen(x, measurement)
        if len(names) > 1:
            x_in, condition = speaks.network_input(np.asarray(x, np.float32), sigma)
            tensors = (
                x_in[None, None],
                condition[None, None] if condition.ndim else condition,
                *(frame[None, None] for frame in seen),
            )
            return dict(zip(names, tensors, strict=True))
        planes = self._buffer(x.shape)
        told = (*noise_correlation,) * self._model.noise_correlation_input + (detail,) * self._model.detail_input
        if seen:
            planes[0, -1] = seen[0]
        if speaks.scaling == "edm" and np.ndim(sigma) == 0:
            level = float(sigma)
            np.multiply(x, np.float32(edm_coefficients(level, self._model.sigma_data).c_in), out=planes[0, 0])
            constants = (float(c_noise(level, speaks.sigma_min)), *told)
            if self._constants.get(x.shape) != constants:
                planes[0, 1 : 1 + len(constants)] = np.reshape(np.array(constants, np.float32), (-1, 1, 1))
                self._constants[x.shape] = constants
            return {names[0]: planes}
        self._constants.pop(x.shape, None)
        planes[0, 0], planes[0, 1] = speaks.network_input(np.asarray(x, np.float32), sigma)
        planes[0, 2 : 2 + len(told)] = np.reshape(np.array(told, np.float32), (-1, 1, 1))
        return {names[0]: planes}

    def _seen(self, x: FloatArray, measurement: NDArray[np.float32] | None) -> tuple[NDArray[np.float32], ...]:
        if not self._model.measurement_input:
            return ()
        if measurement is None or measurement.shape != x.shape:
            raise PlanError(
                f"the network looks at the measurement, which is {None if measurement is None else measurement.shape}; "
                f"expected the frame in model units, {x.shape}"
            )
        return (measurement,)

    def _buffer(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        if shape not in self._planes:
            model = self._model
            count = 2 + 2 * model.noise_correlation_input + model.detail_input + model.measurement_input
            self._planes[shape] = np.empty((1, count, *shape), np.float32)
            while len(self._planes) > SHAPES_KEPT:
                self._constants.pop(self._planes.popitem(last=False)[0], None)
        self._planes.move_to_end(shape)
        return self._planes[shape]


def output_weight(manifest: Manifest, sigma: float, noise: float | None = None) -> float:
    """How much one unit of a network's output error at a level weighs in x0_hat, in units of the frame's noise.

    Parameters
    ----------
    sigma : level that the network is asked at, model units
    noise : level of the frame's noise; None is the same (sampling starts at the measured frame)
    """
    model = manifest.model
    in_x0 = {
        "eps": sigma,
        "x0": 1.0,
        "v": sigma / (1 + sigma**2) ** 0.5,
        "edm_f": float(edm_coefficients(sigma, model.sigma_data).c_out),
        "score": sigma**2,
    }[model.prediction]
    return float(in_x0 / (sigma if noise is None else noise))
