"""A network as a function ``(x, sigma) -> x0_hat``: its inputs built, its output read, as the bundle says."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..kernels import ops
from .backends.protocol import Array, Session
from .errors import PlanError
from .manifest import Manifest
from .prediction import Parameterisation, c_noise, edm_coefficients, require_sigma_data
from .samplers import Denoise, FrameNoise, Table, sample
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


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a denoiser is told about a frame beside its state and level.

    Parameters
    ----------
    noise_correlation : lag-1 correlation of the noise along (y, x)
    detail : place of the detail knob, 0 to 1
    measurement : (H, W) float32, the frame in model units; conditional networks and anchored walks look at it
    """

    noise_correlation: tuple[float, float] = (0.0, 0.0)
    detail: float = 0.0
    measurement: NDArray[np.float32] | None = None


class Denoiser:
    """Evaluates the network and counts the milliseconds spent inside it."""

    def __init__(self, manifest: Manifest, session: Session) -> None:
        self._session = session
        self._inputs = NetworkInputs(manifest)
        self._parameterisation = parameterisation(manifest)
        self._sigma_min = manifest.operating_range.sigma_min
        self.network_ms = 0.0
        speaks = self._parameterisation
        self._is_fused = (
            speaks.prediction == "edm_f" and self._inputs.is_fused and speaks.clip_x0 is None
        )  # fmt: skip

    def at(self, scene: Scene) -> Denoise:
        """The denoiser of one frame as a function ``(x, sigma) -> x0_hat``."""

        def denoise(x: FloatArray, sigma: float | FloatArray) -> FloatArray:
            inputs = self._inputs(x, sigma, scene)
            output = self._evaluate(inputs)
            x0 = self._parameterisation.x0(output, np.asarray(x, np.float32), sigma)
            # the session writes its output again with the next evaluation, and rows weigh the x0_hat before
            return x0.copy() if np.may_share_memory(x0, output) else x0

        return denoise

    def walk(
        self,
        x: NDArray[np.float32],
        rows: Table,
        scene: Scene,
        *,
        sigma_map: float | NDArray[np.float32],
        noise: FrameNoise | None,
        out: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Walk a sampler's table from the state ``x``, (H, W) float32; see `samplers.sample`. ``x`` is not modified.

        ``out`` is an array like ``x``, C order, that the walk may use for its state; None makes one.

        Networks with EDM's preconditioning go through the fused kernel, all others through `samplers.sample`.
        """
        if not self._is_fused:
            last = sample(x, rows, self.at(scene), sigma_map=sigma_map, noise=noise, measurement=scene.measurement)
            return np.asarray(last, np.float32)
        levels = sigma_map if isinstance(sigma_map, np.ndarray) else None
        scale = 1.0 if levels is not None else float(sigma_map)
        state, before = np.empty_like(x) if out is None else out, None
        for index, row in enumerate(rows):
            output = self._evaluate(self._inputs(x, row.sigma * (scale if levels is None else levels), scene))
            is_seen = index + 1 < len(rows) and rows[index + 1].p != 0  # whether the next row weighs this x0_hat
            estimate = np.empty_like(x) if is_seen else None
            ops.sampler_row(
                x, output, a=row.a, b=row.b, n=row.n * scale, y=row.y, p=row.p,
                sigma=row.sigma * scale, sigma_next=row.sigma_next * scale,
                sigma_data=self._inputs.sigma_data, sigma_min=self._sigma_min, sigma_map=levels, x0_before=before,
                measurement=scene.measurement, noise=noise.row(index) if noise is not None and row.n else None,
                out=state, x0=estimate,
            )  # fmt: skip
            x, before = state, estimate
        return state

    def _evaluate(self, inputs: dict[str, Array]) -> NDArray[np.float32]:
        started = time.perf_counter()
        output = self._session.run(inputs)
        self.network_ms += (time.perf_counter() - started) * 1e3
        image: NDArray[np.float32] = output[0, 0]
        return image


class NetworkInputs:
    """Builds the network's input tensors; they are allocated once per shape and filled again every time."""

    def __init__(self, manifest: Manifest) -> None:
        self._model = manifest.model
        self._parameterisation = parameterisation(manifest)
        self._planes: OrderedDict[tuple[int, ...], NDArray[np.float32]] = OrderedDict()
        # what the planes of one value hold now, by shape: a stack's noise level rarely changes from frame to frame
        self._constants: dict[tuple[int, ...], tuple[float | None, ...]] = {}

    @property
    def is_fused(self) -> bool:
        """Whether the inputs are one tensor of planes with EDM's scaling and a plane for the level."""
        speaks = self._parameterisation
        return len(self._model.input_names) == 1 and speaks.scaling == "edm" and speaks.conditioning == "sigma_map"

    @property
    def sigma_data(self) -> float:
        """Standard deviation of clean data in model units."""
        return require_sigma_data(self._model.sigma_data)

    def __call__(self, x: FloatArray, sigma: float | FloatArray, scene: Scene) -> dict[str, Array]:
        """The inputs by name for a state ``x``, (H, W) float32; valid until the next call.

        One input name means one tensor of planes (image, noise level, correlation along y and x, detail, measurement);
        more mean image, noise level and measurement apart, as networks made elsewhere want it.

        Raises
        ------
        PlanError : the network looks at a measurement, and none was given
        """
        speaks, names = self._parameterisation, self._model.input_names
        seen = self._seen(x, scene.measurement)
        if len(names) > 1:
            x_in, condition = speaks.network_input(np.asarray(x, np.float32), sigma)
            tensors = (
                x_in[None, None],
                condition[None, None] if condition.ndim else condition,
                *(frame[None, None] for frame in seen),
            )
            return dict(zip(names, tensors, strict=True))
        planes = self._buffer(x.shape)
        told = (*scene.noise_correlation,) * self._model.noise_correlation_input
        told += (scene.detail,) * self._model.detail_input
        if seen:
            planes[0, -1] = seen[0]
        if self.is_fused:
            self._fill(planes, np.asarray(x, np.float32), sigma, told)
            return {names[0]: planes}
        planes[0, 0], planes[0, 1] = speaks.network_input(np.asarray(x, np.float32), sigma)
        planes[0, 2 : 2 + len(told)] = np.reshape(np.array(told, np.float32), (-1, 1, 1))
        return {names[0]: planes}

    def _fill(
        self, planes: NDArray[np.float32], x: NDArray[np.float32], sigma: float | FloatArray, told: tuple[float, ...]
    ) -> None:
        """Image and level in one pass; planes of one value only where it differs from what they hold."""
        sigma_min = self._parameterisation.sigma_min
        is_map = isinstance(sigma, np.ndarray) and sigma.ndim > 0
        ops.network_planes(
            x, sigma=1.0 if is_map else float(sigma), sigma_data=self.sigma_data, sigma_min=sigma_min,
            sigma_map=np.asarray(sigma, np.float32) if is_map else None,
            inputs=ops.NextInputs(plane=planes[0, 0], condition=planes[0, 1] if is_map else None),
        )  # fmt: skip
        constants = (None if is_map else float(c_noise(float(sigma), sigma_min)), *told)
        if self._constants.get(x.shape) == constants and not is_map:
            return
        for plane, value in zip(planes[0, 1:], constants, strict=False):
            if value is not None:
                plane[...] = value
        self._constants[x.shape] = constants

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
