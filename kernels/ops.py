"""Checked entry points to the per-pixel maths: float32 work arrays, shapes verified before anything runs.

Every function here has its formula in `reference.py`, where it can be read in one line; these versions save memory
traffic by working in place on float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from . import reference

Float32 = NDArray[np.float32]
FRAME_DTYPES = ("uint8", "uint16", "float32")
LARGEST_COUNT = 1e9  # a float pixel beyond it is a fill value or a fault, not light


class FrameError(ValueError):
    """An array that a kernel cannot take; the runtime turns it into a `ShapeError`."""


def stabilise(
    frame: NDArray[Any], *, offset_adu: ArrayLike, gain_e_per_adu: ArrayLike, readout_noise_e: ArrayLike
) -> Float32:
    """Raw frame to unit-variance coordinates: the generalised Anscombe transform of its photoelectrons.

    Parameters
    ----------
    frame : (H, W) uint8, uint16 or float32, ADU; any strides
    offset_adu, gain_e_per_adu, readout_noise_e : scalars or (H, W) maps; ADU, photoelectrons per ADU, rms e-

    Returns
    -------
    (H, W) float32, new array, C order; noise of standard deviation 1

    Raises
    ------
    FrameError : frame not 2-D, dtype not supported, or a map of another shape

    Source: Makitalo & Foi 2013, IEEE TIP 22:91.
    """
    _check_frame(frame)
    offset, gain, readout = (
        _number_or_map(name, value, frame.shape)
        for name, value in (
            ("offset_adu", offset_adu), ("gain_e_per_adu", gain_e_per_adu), ("readout_noise_e", readout_noise_e)
        )
    )  # fmt: skip
    z = np.array(frame, dtype=np.float32, order="C")
    # 2 sqrt((f - o) g + 3/8 + r^2) = sqrt(f * 4g + (4 (3/8 + r^2 - o g))): one multiply and one add per pixel
    z *= _single(4.0 * gain)
    z += _single(4.0 * (reference.ANSCOMBE_OFFSET + readout**2 - offset * gain))
    np.maximum(z, 0, out=z)
    return np.sqrt(z, out=z)


def unstabilise(z: Float32, *, readout_noise_e: ArrayLike) -> Float32:
    """Unit-variance coordinates back to photoelectrons: ``(z/2)^2 - 3/8 - r^2``.

    Parameters
    ----------
    z : (H, W) float32
    readout_noise_e : scalar or (H, W) map, rms e-

    Returns
    -------
    (H, W) float32 photoelectrons, new array; not below ``-3/8 - r^2``

    Raises
    ------
    FrameError : a map of another shape

    Source: the algebraic inverse; exact where the network estimates the transform of the clean frame.
    """
    readout = _number_or_map("readout_noise_e", readout_noise_e, z.shape)
    electrons = np.maximum(z, 0, dtype=np.float32)
    electrons *= electrons
    electrons *= np.float32(0.25)
    electrons -= _single(reference.ANSCOMBE_OFFSET + readout**2)
    return electrons


def to_counts(
    electrons: Float32, dtype: DTypeLike, *, offset_adu: ArrayLike, gain_e_per_adu: ArrayLike
) -> NDArray[Any]:
    """Photoelectrons to camera counts: ``e / gain + offset``, rounded and clipped into an integer dtype.

    Parameters
    ----------
    electrons : (H, W) float32
    dtype : of the result; uint8 and uint16 are rounded and clipped, float32 is not
    offset_adu, gain_e_per_adu : scalars or (H, W) maps

    Returns
    -------
    (H, W) of ``dtype``, ADU
    """
    offset = _number_or_map("offset_adu", offset_adu, electrons.shape)
    gain = _number_or_map("gain_e_per_adu", gain_e_per_adu, electrons.shape)
    counts: Float32 = electrons * _single(1.0 / gain)
    counts += _single(offset)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return counts.astype(kind, copy=False)
    limits = np.iinfo(kind)
    np.rint(counts, out=counts)
    np.clip(counts, limits.min, limits.max, out=counts)
    return counts.astype(kind)


def block_means(image: Float32, block_px: int) -> Float32:
    """Means of whole ``block_px`` squares, (H // block, W // block) float32; a ragged edge is left out.

    Raises
    ------
    FrameError : the image holds no whole block
    """
    height, width = image.shape[0] // block_px, image.shape[1] // block_px
    if not height or not width:
        raise FrameError(f"image is {image.shape}; expected at least one block of {block_px}x{block_px} px")
    cropped = image[: height * block_px, : width * block_px]
    rows = cropped[::block_px].astype(np.float32)
    for offset in range(1, block_px):  # whole rows at a time: the fast direction in memory
        rows += cropped[offset::block_px]
    means = np.ascontiguousarray(rows[:, ::block_px])
    for offset in range(1, block_px):
        means += rows[:, offset::block_px]
    means *= np.float32(1 / block_px**2)
    return means


def upsample2(image: Float32) -> Float32:
    """Twice the side by cubic interpolation (Catmull-Rom) on the grid of pixel integration: nothing moves.

    Two fine pixels tile a coarse one, so their centres lie a quarter of a coarse pixel off its own. Edges repeat.

    Parameters
    ----------
    image : (H, W) float32

    Returns
    -------
    (2H, 2W) float32, new array, C order; a constant stays that constant

    Raises
    ------
    FrameError : not 2-D, or empty

    Source: Keys 1981, IEEE TASSP 29:1153, with a = -1/2.
    """
    if image.ndim != 2 or not image.size:
        raise FrameError(f"image is {image.shape}; expected two axes (H, W), neither of them empty")
    height, width = image.shape
    taps = np.array(reference.UPSAMPLE_TAPS, np.float32)
    rows = np.pad(image.astype(np.float32, copy=False), ((2, 2), (0, 0)), mode="edge")
    tall = np.empty((height, 2, width), np.float32)
    _weigh(rows, taps, tall[:, 0])
    _weigh(rows[1:], taps[::-1], tall[:, 1])
    columns = np.pad(tall.reshape(2 * height, width), ((0, 0), (2, 2)), mode="edge").T
    wide = np.empty((2 * height, width, 2), np.float32)
    _weigh(columns, taps, wide[..., 0].T)
    _weigh(columns[1:], taps[::-1], wide[..., 1].T)
    return wide.reshape(2 * height, 2 * width)


def _weigh(padded: Float32, taps: Float32, out: Float32) -> None:
    """``out[i] = sum over k of taps[k] padded[i + k]``, along the first axis."""
    np.multiply(padded[: len(out)], taps[0], out=out)
    for offset in range(1, len(taps)):
        out += padded[offset : offset + len(out)] * taps[offset]


def usable_pixels(frame: NDArray[Any]) -> NDArray[np.bool_]:
    """Where a float frame holds counts, not NaN, infinity or a fill value beyond ``LARGEST_COUNT``; (H, W) bool."""
    with np.errstate(invalid="ignore"):
        usable: NDArray[np.bool_] = np.abs(frame) <= LARGEST_COUNT
    return usable


def lag_products(residual: Float32) -> tuple[float, float, float]:
    """Variance about zero and lag-1 autocovariances along y and x of a residual, as three floats."""
    flat = np.ascontiguousarray(residual)
    count = flat.size
    upper, lower = flat[:-1].ravel(), flat[1:].ravel()
    along_x = float(np.einsum("ij,ij->", flat[:, :-1], flat[:, 1:])) / max(flat[:, 1:].size, 1)
    return float(np.vdot(flat, flat)) / max(count, 1), float(np.vdot(upper, lower)) / max(lower.size, 1), along_x


def _check_frame(frame: NDArray[Any]) -> None:
    if not isinstance(frame, np.ndarray):
        raise FrameError(f"frame is a {type(frame).__name__}; expected a NumPy array, see numpy.asarray")
    if frame.ndim != 2:
        raise FrameError(f"frame has shape {frame.shape}; expected two axes (H, W)")
    if frame.dtype.name not in FRAME_DTYPES:
        raise FrameError(f"frame is {frame.dtype}; expected {', '.join(FRAME_DTYPES)}: convert it with astype")


def _number_or_map(name: str, value: ArrayLike, shape: tuple[int, ...]) -> Any:
    array = np.asarray(value, dtype=np.float64 if np.ndim(value) == 0 else np.float32)
    if array.ndim and array.shape != shape:
        raise FrameError(
            f"{name} map is {array.shape}, frame is {shape}; crop the map to the camera's region of interest"
        )
    return array if array.ndim else float(array)


def _single(value: Any) -> Any:
    """float32 of a number or map, so that NumPy does not widen the work array."""
    return value.astype(np.float32, copy=False) if isinstance(value, np.ndarray) else np.float32(value)
