"""A network as a function ``(x, sigma) -> x0_hat``: its inputs built, its output read, as the bundle says."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .backends.protocol import Array, Session
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
        integer_timestep=model.integer_timestep,
    )


class Denoiser:
    """Evaluates the network and counts the milliseconds spent inside it."""

    def __init__(self, manifest: Manifest, session: Session) -> None:
        self._session = session
        self._inputs = NetworkInputs(manifest)
        self._parameterisation = parameterisation(manifest)
        self.network_ms = 0.0

    def at(self, noise_correlation: tuple[float, float], detail: float = 0.0) -> Denoise:
        """The denoiser of frames whose noise has this lag-1 correlation along (y, x), at a place of the detail knob."""

        def denoise(x: FloatArray, sigma: float | FloatArray) -> FloatArray:
            inputs = self._inputs(x, sigma, noise_correlation, detail)
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
        self, x: FloatArray, sigma: float | FloatArray, noise_correlation: tuple[float, float], detail: float = 0.0
    ) -> dict[str, Array]:
        """The inputs by name for a state ``x``, (H, W) float32; valid until the next call.

        One input name means one tensor of planes (image, noise level, correlation along y and x, detail); two mean
        image and noise level apart, as networks made elsewhere want it.
        """
        speaks, names = self._parameterisation, self._model.input_names
        if len(names) > 1:
            x_in, condition = speaks.network_input(np.asarray(x, np.float32), sigma)
            return dict(zip(names, (x_in[None, None], condition), strict=True))
        planes = self._buffer(x.shape)
        told = (*noise_correlation,) * self._model.noise_correlation_input + (detail,) * self._model.detail_input
        if speaks.scaling == "edm" and np.ndim(sigma) == 0:
            level = float(sigma)
            np.multiply(x, np.float32(edm_coefficients(level, self._model.sigma_data).c_in), out=planes[0, 0])
            constants = (float(c_noise(level, speaks.sigma_min)), *told)
            if self._constants.get(x.shape) != constants:
                planes[0, 1:] = np.reshape(np.array(constants, np.float32), (-1, 1, 1))
                self._constants[x.shape] = constants
            return {names[0]: planes}
        self._constants.pop(x.shape, None)
        planes[0, 0], planes[0, 1] = speaks.network_input(np.asarray(x, np.float32), sigma)
        planes[0, 2:] = np.reshape(np.array(told, np.float32), (-1, 1, 1))
        return {names[0]: planes}

    def _buffer(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        if shape not in self._planes:
            count = 2 + 2 * self._model.noise_correlation_input + self._model.detail_input
            self._planes[shape] = np.empty((1, count, *shape), np.float32)
            while len(self._planes) > SHAPES_KEPT:
                self._constants.pop(self._planes.popitem(last=False)[0], None)
        self._planes.move_to_end(shape)
        return self._planes[shape]


def output_weight(manifest: Manifest, sigma: float) -> float:
    """How much one unit of a network's output error weighs in the restored frame, in units of the frame's noise."""
    if manifest.model.prediction != "edm_f":
        return 1.0
    return float(edm_coefficients(sigma, manifest.model.sigma_data).c_out) / sigma
