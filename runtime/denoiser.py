"""A network as a function ``(x, sigma) -> x0_hat``: its inputs built, its output read, as the bundle says."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .backends.protocol import Array, Session
from .manifest import Manifest
from .prediction import Parameterisation, edm_coefficients
from .samplers import Denoise
from .schedule import FloatArray


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
        self._manifest = manifest
        self._session = session
        self._parameterisation = parameterisation(manifest)
        self.network_ms = 0.0

    def at(self, noise_correlation: tuple[float, float]) -> Denoise:
        """The denoiser of frames whose noise has this lag-1 correlation along (y, x)."""

        def denoise(x: FloatArray, sigma: float | FloatArray) -> FloatArray:
            inputs, _ = self.network_inputs(self._manifest, x, sigma, noise_correlation, self._parameterisation)
            started = time.perf_counter()
            output = self._session.run(inputs)
            self.network_ms += (time.perf_counter() - started) * 1e3
            return self._parameterisation.x0(output[0, 0], np.asarray(x, np.float32), sigma)

        return denoise

    @staticmethod
    def network_inputs(
        manifest: Manifest,
        x: NDArray[Any],
        sigma: float | FloatArray,
        noise_correlation: tuple[float, float],
        speaks: Parameterisation | None = None,
    ) -> tuple[dict[str, Array], float]:
        """Inputs by name, and how much one unit of output error weighs in units of the noise.

        One input name means one tensor of planes (image, noise level, correlation along y and x); two mean image and
        noise level apart, as networks made elsewhere want it.
        """
        model = manifest.model
        speaks = speaks or parameterisation(manifest)
        x_in, condition = speaks.network_input(np.asarray(x, np.float32), sigma)
        level = float(np.mean(sigma))
        weight = float(edm_coefficients(level, model.sigma_data).c_out) / level if model.prediction == "edm_f" else 1.0
        if len(model.input_names) > 1:
            named = dict(zip(model.input_names, (x_in[None, None], np.asarray(condition)), strict=True))
            return named, weight
        count = 2 + 2 * model.noise_correlation_input
        planes = np.empty((1, count, *x.shape), np.float32)
        planes[0, 0], planes[0, 1] = x_in, condition
        if model.noise_correlation_input:
            planes[0, 2], planes[0, 3] = noise_correlation
        return {model.input_names[0]: planes}, weight
