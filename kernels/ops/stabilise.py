"""Counts to unit-variance coordinates."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import reference
from .checks import Float32, check_frame, number_or_map, single


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
    check_frame(frame)
    offset, gain, readout = (
        number_or_map(name, value, frame.shape)
        for name, value in (
            ("offset_adu", offset_adu), ("gain_e_per_adu", gain_e_per_adu), ("readout_noise_e", readout_noise_e)
        )
    )  # fmt: skip
    z = np.array(frame, dtype=np.float32, order="C")
    # 2 sqrt((f - o) g + 3/8 + r^2) = sqrt(f * 4g + (4 (3/8 + r^2 - o g))): one multiply and one add per pixel
    z *= single(4.0 * gain)
    z += single(4.0 * (reference.ANSCOMBE_OFFSET + readout**2 - offset * gain))
    np.maximum(z, 0, out=z)
    return np.sqrt(z, out=z)
