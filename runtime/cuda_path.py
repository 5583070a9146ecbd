"""Frames restored on a GPU: recordings by shape and plan, a frame's numbers in and out, tiles where memory is short.

    path = CudaPath(manifest, network)
    finding = path.restore(frame, camera, plan, tracker, out)     # None: this one needs the general path

A frame costs one copy into pinned memory, one graph launch and one wait. Nothing is allocated after the first frame of
a shape and plan.
"""

from __future__ import annotations

import contextlib
import logging
from collections import OrderedDict
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..kernels import ops, reference
from . import photon_balance, quality_flags, samplers, start
from .backends.cuda_device import DeviceMemoryError
from .backends.protocol import DeviceNetwork
from .camera import Camera
from .denoiser import parameterisation
from .device_buffers import DeviceBuffers
from .device_frame import MAPS, DeviceFrame, Recipe
from .errors import BackendError, ShapeError
from .manifest import MAX_SIDE_PX, Manifest
from .normalise import RangeTracker
from .plan import Plan, side_of_tile

SHAPES_KEPT: Final = 2  # frame shapes whose memory is held
RECORDINGS_KEPT: Final = 12
TILES_PX: Final = (2048, 1024, 512, 256)  # tried in this order where a frame does not fit

log: Final = logging.getLogger(__name__)


def unsupported(manifest: Manifest) -> str | None:
    """Why a bundle's frames cannot stay on the device from end to end, or None; the general path serves them all."""
    model, speaks = manifest.model, parameterisation(manifest)
    if manifest.scale != 1:
        return "it enlarges the frame"
    if not start.is_measured(manifest) or model.measurement_input:
        return "its walk does not start at the measured frame alone"
    if len(model.input_names) != 1 or speaks.scaling != "edm" or speaks.conditioning != "sigma_map":
        return "its network is not fed as photonstep's own"
    if speaks.prediction != "edm_f" or speaks.clip_x0 is not None:
        return f"its network predicts {speaks.prediction}"
    return None


class CudaPath:
    """The device's memory, recordings and network for one bundle. Serves one thread at a time."""

    def __init__(self, manifest: Manifest, network: DeviceNetwork) -> None:
        self._manifest, self._network = manifest, network
        self._device = network.device
        self._buffers: OrderedDict[tuple[tuple[int, int], str], DeviceBuffers] = OrderedDict()
        self._recordings: OrderedDict[Recipe, DeviceFrame] = OrderedDict()
        self._cameras: dict[int, Camera] = {}  # whose maps a shape's memory holds, by the identity of the buffers
        self._side_that_fits: dict[Recipe, int] = {}
        self.grey: NDArray[np.uint8] | None = None

    @property
    def memory_bytes(self) -> int:
        """Device memory held: buffers, and the network's own as far as it tells."""
        return sum(buffers.device_bytes for buffers in self._buffers.values()) + self._network.memory_bytes

    def restore(
        self, frame: NDArray[Any], camera: Camera, plan: Plan, tracker: RangeTracker, out: NDArray[Any],
        preview: tuple[float, float] | None = None,
    ) -> quality_flags.Finding | None:  # fmt: skip
        """Restore one plane into ``out``.

        Parameters
        ----------
        frame : (H, W) uint8, uint16 or float32, ADU
        out : (H, W) of the plan's output
        preview : levels shown black and white, in units of the image; ``grey`` is then (H, W) uint8 until the next call

        Returns
        -------
        Finding, or None where the frame needs the general path: pixels without a count

        Raises
        ------
        ShapeError : camera maps of another shape
        DeviceMemoryError : not even tiles fit; BackendError : the device failed
        """
        if frame.dtype.kind == "f" and not ops.usable_pixels(frame).all():
            return None
        if camera.map_shape not in (None, frame.shape):
            raise ShapeError(
                f"camera maps are {camera.map_shape}, frame is {frame.shape}; crop them to the camera's region of "
                "interest"
            )
        limit = full_limit(frame.dtype, camera)
        recording = self._recording(self._recipe(frame, camera, plan, limit is not None, preview is not None))
        recording.frame[...] = frame
        self._tell(recording, frame, camera, plan, tracker, limit, preview)
        recording.run()
        self._device.synchronise()
        out[...] = recording.image
        self.grey = recording.grey if preview is not None else None
        return self._finding(recording, frame, camera, plan, tracker)

    def close(self) -> None:
        """Free all device memory; the device itself belongs to the network's session."""
        self._free()

    # --- recordings ---

    def _recipe(self, frame: NDArray[Any], camera: Camera, plan: Plan, limited: bool, preview: bool) -> Recipe:
        model = self._manifest.model
        height, width = (-(-n // model.multiple) * model.multiple for n in frame.shape)
        return Recipe(
            shape=(frame.shape[0], frame.shape[1]), dtype=frame.dtype.name, sampler=plan.sampler, steps=plan.steps,
            output=plan.output, step=1 if plan.report else quality_flags.EXAMINED_ROWS,
            maps=camera.map_shape is not None, limited=limited, preview=preview,
            tile_px=side_of_tile(plan, model, max(height, width)),
        )  # fmt: skip

    def _recording(self, wanted: Recipe) -> DeviceFrame:
        side = self._side_that_fits.get(wanted, wanted.tile_px)
        recipe = replace(wanted, tile_px=side)
        if recipe in self._recordings:
            self._recordings.move_to_end(recipe)
            self._buffers.move_to_end((recipe.shape, recipe.dtype))
            return self._recordings[recipe]
        for candidate in (side, *self._tiles_below(wanted, side)):
            recipe = replace(wanted, tile_px=candidate)
            if self._read_px(recipe) > self._network.largest_side_px:
                continue
            try:
                recording = self._record(recipe)
            except DeviceMemoryError as error:
                self._free()  # what other shapes hold may be what is missing
                try:
                    recording = self._record(recipe)
                except DeviceMemoryError:
                    self._free()
                    log.warning("%s does not fit the GPU with tiles of %d px: %s", wanted.shape, candidate, error)
                    continue
            if candidate != wanted.tile_px:
                log.warning("%s is restored in tiles of %d px: the GPU's memory is short", wanted.shape, candidate)
            self._side_that_fits[wanted] = candidate
            return recording
        raise DeviceMemoryError(
            f"a frame of {wanted.shape[0]}x{wanted.shape[1]} px fits the GPU neither whole nor in tiles; close what "
            "else uses its memory, crop the frame, take fewer steps, or use device='cpu'"
        )

    def _tiles_below(self, wanted: Recipe, side: int) -> list[int]:
        if self._manifest.model.receptive_radius_px >= MAX_SIDE_PX:
            return []  # every pixel sees the whole frame
        return [t for t in TILES_PX if t < min(side, max(wanted.shape))]

    def _read_px(self, recipe: Recipe) -> int:
        """The longest side that the network is given."""
        multiple = self._manifest.model.multiple
        evaluations = len(start.rows(self._manifest, recipe.sampler, recipe.steps))
        halo_px = 2 * self._manifest.model.receptive_radius_px * evaluations
        longest = max(recipe.shape)
        return min(longest, recipe.tile_px + halo_px) if longest > recipe.tile_px else longest + -longest % multiple

    def _record(self, recipe: Recipe) -> DeviceFrame:
        place = recipe.shape, recipe.dtype
        if place not in self._buffers:
            while len(self._buffers) >= SHAPES_KEPT:
                self._forget(next(iter(self._buffers)))
            self._buffers[place] = DeviceBuffers(self._device)
        self._buffers.move_to_end(place)
        recording = DeviceFrame(
            self._network, self._manifest, self._manifest.normalisation, self._buffers[place], recipe
        )
        self._recordings[recipe] = recording
        while len(self._recordings) > RECORDINGS_KEPT:
            self._recordings.popitem(last=False)[1].close()
        return recording

    def _forget(self, place: tuple[tuple[int, int], str]) -> None:
        for recipe in [r for r in self._recordings if (r.shape, r.dtype) == place]:
            self._recordings.pop(recipe).close()
        buffers = self._buffers.pop(place)
        self._cameras.pop(id(buffers), None)
        buffers.close()

    def _free(self) -> None:
        for place in list(self._buffers):
            self._forget(place)
        with contextlib.suppress(BackendError):
            self._network.release()

    # --- numbers ---

    def _tell(
        self, recording: DeviceFrame, frame: NDArray[Any], camera: Camera, plan: Plan, tracker: RangeTracker,
        limit: float | None, preview: tuple[float, float] | None,
    ) -> None:  # fmt: skip
        """This frame's numbers into the recording's structures."""
        p, buffers = recording.parameters, self._buffers[recording.recipe.shape, recording.recipe.dtype]
        self._tell_camera(recording, camera, plan, buffers)
        levels, weight = _memory_of(tracker)
        p["range"].memory, p["range"].has_before = weight, levels is not None
        if levels is not None:
            p["range"].before[:] = levels
        if limit is not None:
            p["full"].full = limit
        if preview is not None:
            p["preview"].low, p["preview"].per_range = preview[0], 255.0 / (preview[1] - preview[0])
        rows = start.rows(self._manifest, plan.sampler, plan.steps)
        if samplers.is_stochastic(rows):
            low, high = ops.seeded_key(ops.content_key(frame), plan.seed)
            for index in range(len(rows) * len(recording.tiles)):
                p.at("rows", index).key_low, p.at("rows", index).key_high = low, high
        self._tell_constants(recording, camera, plan, buffers)

    def _tell_constants(self, recording: DeviceFrame, camera: Camera, plan: Plan, buffers: DeviceBuffers) -> None:
        model, p = self._manifest.model, recording.parameters
        told = (*camera.noise_correlation,) * model.noise_correlation_input + (plan.detail,) * model.detail_input
        if len(recording.tiles) > 1:
            for index in range(len(recording.tiles) * len(told)):
                p.at("constants_of_tiles", index).value = told[index % len(told)]
            buffers.constants = None  # tiles share the planes that a whole frame fills once
            return
        for index, value in enumerate(told):
            p.at("constants", index).value = value
        if buffers.constants != told:
            recording.fill_constants()
            buffers.constants = told

    def _tell_camera(self, recording: DeviceFrame, camera: Camera, plan: Plan, buffers: DeviceBuffers) -> None:
        p, is_input = recording.parameters, plan.output == "input"
        scale, bias = ops.stabilise_coefficients(
            offset_adu=camera.offset_adu, gain_e_per_adu=camera.gain_e_per_adu, readout_noise_e=camera.readout_noise_e
        ) if camera.map_shape is None else (0.0, 0.0)  # fmt: skip
        p["balance"].weight = photon_balance.BLOCK_PX**2 / _alike(camera)
        p["balance"].readout_variance = camera.mean_readout_variance_e2
        if camera.map_shape is None:
            p["stabilise"].scale, p["stabilise"].bias = scale, bias
            p["measured"].scale, p["measured"].bias = camera.gain_e_per_adu, camera.dark_e
            p["electrons"].constant = reference.ANSCOMBE_OFFSET + camera.readout_noise_e**2
            p["counts"].per_gain, p["counts"].offset = (camera.adu_per_e, camera.offset_adu) if is_input else (1.0, 0.0)
            return
        address = self._maps(recording, camera, buffers)
        p["stabilise"].scale_map, p["stabilise"].bias_map = address["scale"], address["bias"]
        p["measured"].scale_map, p["measured"].bias_map = address["gain"], address["dark"]
        p["electrons"].constant_map = address["constant"]
        if is_input:
            p["counts"].per_gain_map, p["counts"].offset_map = address["per_gain"], address["offset"]
        else:
            p["counts"].per_gain = 1.0

    def _maps(self, recording: DeviceFrame, camera: Camera, buffers: DeviceBuffers) -> dict[str, int]:
        """Addresses of the camera's maps on the device; sent there when another camera comes."""
        size = 4 * recording.recipe.shape[0] * recording.recipe.shape[1]
        places = {name: buffers.on_device(f"map {name}", size) for name in MAPS}
        if self._cameras.get(id(buffers)) is not camera:
            staging = buffers.pinned("map", size)
            for name, values in _camera_maps(camera).items():
                staging.array.view(np.float32).reshape(recording.recipe.shape)[...] = values
                self._device.upload(places[name], staging)
                self._device.synchronise()  # the staging memory is written again
            self._cameras[id(buffers)] = camera
        return {name: memory.address for name, memory in places.items()}

    def _finding(
        self, recording: DeviceFrame, frame: NDArray[Any], camera: Camera, plan: Plan, tracker: RangeTracker
    ) -> quality_flags.Finding:
        results = recording.parameters.result
        found, r, balance = results("range"), results("residual"), results("balance")
        _remember(tracker, np.array(found.level[:]))
        residual = ops.ResidualStatistics(
            variance=r.squares / max(r.pixels, 1), along_y=r.along_y / max(r.pairs_y, 1),
            along_x=r.along_x / max(r.pairs_x, 1), cut_off=r.cut_off / max(r.pixels, 1),
        )  # fmt: skip
        is_full = recording.recipe.limited and results("full").total > 0
        finding = quality_flags.examine(
            residual, camera, photons_e=results("counts").light / frame.size, sigma=1.0 / found.span,
            full=quality_flags.full_pixels(frame, camera) if is_full else None, missing=None,
            limits=self._manifest.operating_range, network_ms=0.0, report=plan.report,
        )  # fmt: skip
        if plan.report:
            finding.report["balance_gain"], finding.report["balance_shift_e"] = balance.gain, balance.shift
        return finding


def full_limit(dtype: np.dtype[Any], camera: Camera) -> float | None:
    """Counts from which a pixel is full, or None where none can be; as `quality_flags.full_pixels`."""
    limit = camera.saturation_adu
    if dtype.kind == "f":
        return limit
    highest = float(np.iinfo(dtype).max)
    limit = highest if limit is None else float(np.ceil(limit))
    return limit if limit <= highest else None


def _alike(camera: Camera) -> float:
    return float(np.prod([(1 + max(c, 0.0)) / (1 - max(c, 0.0)) for c in camera.noise_correlation]))


def _camera_maps(camera: Camera) -> dict[str, Any]:
    scale, bias = ops.stabilise_coefficients(
        offset_adu=camera.offset_adu, gain_e_per_adu=camera.gain_e_per_adu, readout_noise_e=camera.readout_noise_e
    )
    return {
        "scale": scale, "bias": bias, "gain": camera.gain_e_per_adu, "dark": camera.dark_e,
        "constant": reference.ANSCOMBE_OFFSET + np.square(camera.readout_noise_e), "per_gain": camera.adu_per_e,
        "offset": camera.offset_adu,
    }  # fmt: skip


def _memory_of(tracker: RangeTracker) -> tuple[NDArray[np.float64] | None, float]:
    """The levels of the frames before, and how much they weigh."""
    return tracker._levels, tracker._memory


def _remember(tracker: RangeTracker, levels: NDArray[np.float64]) -> None:
    tracker._levels = levels
