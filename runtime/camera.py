"""The camera's physics: offset, gain and readout noise, given, calibrated or estimated."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..kernels import ops
from .calibration import photon_transfer
from .errors import CameraError, ShapeError
from .noise_estimate import estimate_noise
from .strict_json import parse_strict

Number = float | NDArray[np.float32]
Source = Literal["given", "estimated", "calibrated"]

FORMAT = "photonstep-camera"
MAPPABLE = ("offset_adu", "gain_e_per_adu", "readout_noise_e")
LARGEST_NUMBER = 1e18  # its square is still a float32
MAXIMUM_FILE_BYTES = 1 << 30  # three maps of 8192 x 8192 px


@dataclass(frozen=True, kw_only=True, eq=False)
class Camera:
    """What turns counts into photoelectrons, ``e = (frame - offset_adu) * gain_e_per_adu``, and how noisy that is.

    Parameters
    ----------
    offset_adu : counts without light; scalar or (H, W) map
    gain_e_per_adu : photoelectrons per count (the reciprocal of what some vendors call gain); scalar or (H, W) map
    readout_noise_e : rms readout noise, photoelectrons; scalar or (H, W) map
    saturation_adu : counts at which a pixel is full, or None: the largest value of an integer dtype
    noise_correlation : lag-1 autocorrelation of the noise along (y, x); 0 where every pixel is read by itself.
        Binning, deBayering, interpolation and lossy compression raise it
    gain_interval_e_per_adu : 95 % confidence interval of the gain where it was measured
    source : where the numbers come from

    Raises
    ------
    CameraError : a number is not finite or not possible, or maps differ in shape

    Source: Huang et al. 2013, Nat. Methods 10:653.
    """

    offset_adu: Number = 0.0
    gain_e_per_adu: Number = 1.0
    readout_noise_e: Number = 0.0
    saturation_adu: float | None = None
    noise_correlation: tuple[float, float] = (0.0, 0.0)
    gain_interval_e_per_adu: tuple[float, float] | None = None
    source: Source = "given"

    def __post_init__(self) -> None:
        for name in MAPPABLE:
            object.__setattr__(self, name, _number_or_map(name, getattr(self, name)))
        shapes = {name: np.shape(getattr(self, name)) for name in MAPPABLE if np.ndim(getattr(self, name))}
        if len(set(shapes.values())) > 1:
            raise CameraError(f"camera maps have the shapes {shapes}; expected one shape for all maps")
        if not np.all(np.asarray(self.gain_e_per_adu) > 0):
            raise CameraError(
                f"lowest gain_e_per_adu is {np.min(self.gain_e_per_adu)}; expected photoelectrons per ADU > 0"
            )
        if np.any(np.asarray(self.readout_noise_e) < 0):
            raise CameraError(f"lowest readout_noise_e is {np.min(self.readout_noise_e)}; expected 0 or more")
        correlation = _two_numbers("noise_correlation", self.noise_correlation)
        if not all(-1 < c < 1 for c in correlation):
            raise CameraError(f"noise_correlation is {correlation}; expected two numbers (y, x) between -1 and 1")
        object.__setattr__(self, "noise_correlation", correlation)
        if self.saturation_adu is not None:
            object.__setattr__(self, "saturation_adu", _number("saturation_adu", self.saturation_adu))
        if self.gain_interval_e_per_adu is not None:
            interval = _two_numbers("gain_interval_e_per_adu", self.gain_interval_e_per_adu)
            if not 0 < interval[0] <= interval[1]:
                raise CameraError(f"gain_interval_e_per_adu is {interval}; expected 0 < low <= high")
            object.__setattr__(self, "gain_interval_e_per_adu", interval)
        if self.source not in get_args(Source):
            raise CameraError(f"source is {self.source!r}; expected one of {', '.join(get_args(Source))}")

    @classmethod
    def estimate(cls, frames: NDArray[Any]) -> Camera:
        """Measure noise and its correlation from the frames themselves, when nothing is known about the camera.

        Parameters
        ----------
        frames : (H, W) or (T, H, W) uint8, uint16 or float32, ADU; at least 32x32 pixels

        Returns
        -------
        Camera with ``source="estimated"``. Offset and readout noise cannot be told apart without dark frames: the
        variance as a function of the counts is right, the photon numbers are up to an offset.

        Raises
        ------
        ShapeError : wrong shape or dtype
        CameraError : the frames are too small, constant or not finite
        """
        noise = estimate_noise(frames)
        # var = slope * mean + intercept = slope * (mean - offset) + readout^2, counts squared
        gain = 1.0 / noise.slope
        # restored light is never negative, so an offset above the darkest part of the scene would cut it off
        offset = min(max(0.0, -noise.intercept / noise.slope), noise.darkest)
        # an offset below 0 (a background was subtracted) takes its share of the intercept
        readout_adu = max(noise.intercept + noise.slope * min(offset, 0.0), 0.0) ** 0.5
        return cls(
            offset_adu=offset,
            gain_e_per_adu=gain,
            readout_noise_e=readout_adu * gain,
            noise_correlation=noise.correlation,
            source="estimated",
        )

    @classmethod
    def calibrate(cls, *, dark: NDArray[Any], flats: Sequence[NDArray[Any]], maps: bool = True) -> Camera:
        """Photon transfer: offset and readout noise from dark frames, gain from evenly lit ones.

        Parameters
        ----------
        dark : (T, H, W) frames with the shutter closed, T >= 2 (100 or more for good maps)
        flats : (T, H, W) stacks of static scenes, one per light level, T >= 2
        maps : per-pixel offset and readout maps; False gives scalars

        Returns
        -------
        Camera with ``source="calibrated"`` and the gain's confidence interval

        Raises
        ------
        CameraError : too few frames, or flats that are not brighter than the dark frames
        """
        measured = photon_transfer(dark, flats)
        offset, readout = measured.offset_adu, measured.readout_noise_e
        return cls(
            offset_adu=offset.astype(np.float32) if maps else float(offset.mean()),
            gain_e_per_adu=measured.gain_e_per_adu,
            readout_noise_e=readout.astype(np.float32) if maps else float(np.sqrt(np.mean(readout**2))),
            saturation_adu=measured.saturation_adu,
            noise_correlation=measured.correlation,
            gain_interval_e_per_adu=measured.gain_interval_e_per_adu,
            source="calibrated",
        )

    def save(self, path: str | Path, *, overwrite: bool = True) -> None:
        """Write the camera as JSON; maps are embedded, compressed. Replaces the file in one step.

        Raises
        ------
        CameraError : the file exists and ``overwrite`` is False, or it cannot be written
        """
        target = Path(path)
        if target.exists() and not overwrite:
            raise CameraError(f"{target} exists; choose another name or pass overwrite=True")
        content = {
            "format": FORMAT,
            "format_version": 1,
            **{f.name: _to_json(getattr(self, f.name)) for f in fields(self)},
        }
        partial = target.with_name(target.name + ".partial")
        try:
            partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
            partial.replace(target)
        except OSError as error:
            raise CameraError(f"cannot write camera file {target}: {error}; check the folder and free space") from error
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> Camera:
        """Read a camera that `save` wrote.

        Raises
        ------
        CameraError : unreadable, not a camera file, unknown fields, or impossible numbers
        """
        fields = _read_json(Path(path))
        if not isinstance(fields, dict) or fields.pop("format", None) != FORMAT or fields.pop("format_version", 0) != 1:
            raise CameraError(
                f'{path} is not a version 1 {FORMAT} file; expected {{"format": "{FORMAT}", "format_version": 1, '
                '"offset_adu": ..., "gain_e_per_adu": ..., "readout_noise_e": ...}: write it by hand, '
                "with Camera.save or with photonstep calibrate"
            )
        unknown = set(fields) - set(cls.__dataclass_fields__)
        if unknown:
            known = ", ".join(cls.__dataclass_fields__)
            raise CameraError(f"{path} has the unknown fields {sorted(unknown)}; expected {known}")
        try:
            return cls(**{k: _from_json(v) for k, v in fields.items()})
        except (CameraError, TypeError, ValueError, zlib.error) as error:
            raise CameraError(f"{path}: {error}; write the file again with Camera.save") from error

    @property
    def map_shape(self) -> tuple[int, int] | None:
        """(H, W) of the maps, or None where all numbers are scalars."""
        for name in MAPPABLE:
            if np.ndim(getattr(self, name)):
                height, width = np.shape(getattr(self, name))
                return height, width
        return None

    def crop(self, rows: slice, columns: slice) -> Camera:
        """The camera of a region of interest: maps cut, scalars kept."""
        cut = {n: getattr(self, n)[rows, columns] for n in MAPPABLE if np.ndim(getattr(self, n))}
        return replace(self, **cut)

    def enlarged(self, scale: int) -> Camera:
        """The camera on a grid ``scale`` times as fine: a fine pixel has the map's numbers of the one it lies in."""
        maps = {n: getattr(self, n) for n in MAPPABLE if np.ndim(getattr(self, n))}
        if scale == 1 or not maps:
            return self
        return replace(self, **{n: m.repeat(scale, axis=0).repeat(scale, axis=1) for n, m in maps.items()})

    def stabilise(self, frame: NDArray[Any], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """(H, W) counts to (H, W) float32 z with unit noise, written into ``out``; see `kernels.ops.stabilise`."""
        if self.map_shape is not None and self.map_shape != np.shape(frame):
            name = next(n for n in MAPPABLE if np.ndim(getattr(self, n)))
            raise ShapeError(
                f"{name} map is {self.map_shape}, frame is {np.shape(frame)}; crop the map to the camera's region of "
                "interest"
            )
        try:
            return ops.stabilise_with(frame, *self._anscombe, out=out)
        except ops.FrameError as error:
            raise ShapeError(str(error)) from None

    def unstabilise(self, z: NDArray[np.float32]) -> NDArray[np.float32]:
        """(H, W) float32 z to photoelectrons; see `kernels.ops.unstabilise`."""
        return ops.unstabilise(z, readout_noise_e=self.readout_noise_e)

    @cached_property
    def _anscombe(self) -> tuple[Any, Any]:
        return ops.stabilise_coefficients(
            offset_adu=self.offset_adu, gain_e_per_adu=self.gain_e_per_adu, readout_noise_e=self.readout_noise_e
        )

    @cached_property
    def adu_per_e(self) -> Number:
        """Counts per photoelectron: the reciprocal of the gain, number or map."""
        gain = self.gain_e_per_adu
        return np.asarray(1 / gain, np.float32) if isinstance(gain, np.ndarray) else 1 / gain

    @cached_property
    def dark_e(self) -> Number:
        """What counts become without their offset: ``e = frame gain + dark_e``, number or map, photoelectrons."""
        dark = -np.asarray(self.offset_adu) * self.gain_e_per_adu
        return np.asarray(dark, np.float32) if dark.ndim else float(dark)

    @cached_property
    def median_readout_noise_e(self) -> float:
        """Readout noise of the usual pixel, rms photoelectrons."""
        return float(np.median(self.readout_noise_e))

    @cached_property
    def mean_readout_variance_e2(self) -> float:
        """Mean over pixels of the readout noise squared, photoelectrons squared."""
        return float(np.mean(np.square(self.readout_noise_e)))

    def summary(self) -> dict[str, Any]:
        """Plain numbers for logs and provenance; a map is given by its median."""
        numbers = {n: float(np.median(getattr(self, n))) for n in MAPPABLE}
        return {
            **numbers,
            "noise_correlation": list(self.noise_correlation),
            "maps": self.map_shape,
            "source": self.source,
        }


def _number_or_map(name: str, value: Any) -> Number:
    array = np.asarray(value)
    if array.dtype.kind not in "iuf" or array.ndim not in (0, 2):
        raise CameraError(
            f"{name} is {array.dtype} of shape {array.shape}; expected a number or an (H, W) map of numbers"
        )
    if array.ndim == 2 and not array.size:
        raise CameraError(f"{name} is a map of shape {array.shape}; expected at least one pixel")
    if not np.all(np.abs(array) <= LARGEST_NUMBER):
        raise CameraError(
            f"{name} holds values that are not finite or beyond 1e18; expected numbers, replace bad pixels"
        )
    if array.ndim == 0:
        return float(array)
    frozen = np.array(array, dtype=np.float32)
    frozen.flags.writeable = False
    return frozen


def _number(name: str, value: Any) -> float:
    number = _number_or_map(name, value)
    if not isinstance(number, float):
        raise CameraError(f"{name} is a map of shape {number.shape}; expected one number")
    return number


def _two_numbers(name: str, value: Any) -> tuple[float, float]:
    if not isinstance(value, tuple | list | np.ndarray) or len(value) != 2:
        raise CameraError(f"{name} is {value!r}; expected two numbers")
    return _number(name, value[0]), _number(name, value[1])


def _read_json(path: Path) -> Any:
    try:
        if path.stat().st_size > MAXIMUM_FILE_BYTES:
            raise CameraError(
                f"{path} is {path.stat().st_size} bytes; expected a camera file, write one with Camera.save"
            )
        return parse_strict(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CameraError(f"cannot read camera file {path}: {str(error)[:200]}; write one with Camera.save") from error


def _to_json(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    packed = zlib.compress(np.ascontiguousarray(value, "<f4").tobytes(), 6)
    return {"shape": list(value.shape), "float32_zlib_base64": base64.b64encode(packed).decode("ascii")}


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    if not isinstance(value, dict):
        return value
    if set(value) != {"shape", "float32_zlib_base64"}:
        raise ValueError(f"a map has the fields {sorted(value)}; expected shape and float32_zlib_base64")
    shape = value["shape"]
    if not isinstance(shape, list) or len(shape) != 2 or not all(type(n) is int and 0 < n <= 8192 for n in shape):
        raise ValueError(f"a map has the shape {shape}; expected two whole numbers from 1 to 8192")
    height, width = shape
    size = 4 * height * width
    content = zlib.decompressobj().decompress(base64.b64decode(value["float32_zlib_base64"], validate=True), size + 1)
    if len(content) != size:
        raise ValueError(f"a map of shape {shape} needs {size} bytes, the file holds {len(content)} or more")
    return np.frombuffer(content, "<f4").reshape(height, width)
