"""Counts to unit-variance coordinates."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import native, reference
from ..arguments import structure
from .checks import (
    PIXEL_TYPES,
    Float32,
    address,
    both_numbers_or_maps,
    check_frame,
    number_or_map,
    output,
    rows_in_memory,
    scalar_and_map,
    single,
)  # fmt: skip

Coefficient = float | Float32


def stabilise(
    frame: NDArray[Any],
    *,
    offset_adu: ArrayLike,
    gain_e_per_adu: ArrayLike,
    readout_noise_e: ArrayLike,
    out: Float32 | None = None,
) -> Float32:
    """Raw frame to unit-variance coordinates: the generalised Anscombe transform of its photoelectrons.

    Parameters
    ----------
    frame : (H, W) uint8, uint16 or float32, ADU; any strides
    offset_adu, gain_e_per_adu, readout_noise_e : scalars or (H, W) maps; ADU, photoelectrons per ADU, rms e-
    out : (H, W) float32, C order, to write into

    Returns
    -------
    (H, W) float32, ``out`` or a new array, C order; noise of standard deviation 1

    Raises
    ------
    FrameError : frame not 2-D, dtype not supported, or a map of another shape

    Source: Makitalo & Foi 2013, IEEE TIP 22:91.
    """
    check_frame(frame)
    offset, gain, readout = (
        number_or_map(name, value, frame.shape)
        for name, value in (
            ("offset_adu", offset_adu), ("gain_e_per_adu", gain_e_per_adu), ("readout_noise_e", readout_noise_e)
        )
    )  # fmt: skip
    scale, bias = stabilise_coefficients(offset_adu=offset, gain_e_per_adu=gain, readout_noise_e=readout)
    return stabilise_with(frame, scale, bias, out=out)


def stabilise_coefficients(*, offset_adu: Any, gain_e_per_adu: Any, readout_noise_e: Any) -> tuple[Any, Any]:
    """``z = sqrt(max(0, f scale + bias))``: scale = 4 g, bias = 4 (3/8 + r^2 - o g), numbers, or both of them maps.

    Worked out once a camera, not once a frame.
    """
    scale = 4.0 * gain_e_per_adu
    bias = 4.0 * (reference.ANSCOMBE_OFFSET + readout_noise_e**2 - offset_adu * gain_e_per_adu)
    return both_numbers_or_maps(scale, bias)


def stabilise_with(
    frame: NDArray[Any], scale: Coefficient, bias: Coefficient, *, out: Float32 | None = None
) -> Float32:
    """`stabilise` with the numbers of `stabilise_coefficients`."""
    check_frame(frame)
    z = output("out", out, frame.shape, np.float32)
    scale, bias = both_numbers_or_maps(scale, bias)
    scale_number, scale_map = scalar_and_map(scale, frame.shape)
    bias_number, bias_map = scalar_and_map(bias, frame.shape)
    lib = native.library()
    if lib is None:
        np.multiply(frame, single(scale), out=z, dtype=np.float32, casting="unsafe")
        z += single(bias)
        np.maximum(z, 0, out=z)
        np.sqrt(z, out=z)
        return z
    rows = rows_in_memory(frame)
    lib.call("stabilise", structure("Stabilise")(
        frame=address(rows), frame_stride=rows.strides[0], height=z.shape[0], width=z.shape[1],
        pixel_type=PIXEL_TYPES[frame.dtype.name], scale=scale_number, bias=bias_number,
        scale_map=address(scale_map), bias_map=address(bias_map), z=address(z),
    ))  # fmt: skip
    return z
