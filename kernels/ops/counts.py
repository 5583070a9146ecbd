"""Unit-variance coordinates back to photoelectrons and counts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from .. import native, reference
from ..arguments import structure
from .checks import (
    FRAME_DTYPES,
    PIXEL_TYPES,
    Float32,
    FrameError,
    address,
    both_numbers_or_maps,
    check_writable,
    float_image,
    number_or_map,
    output,
    scalar_and_map,
    single,
)  # fmt: skip


def electrons_of(
    u: Float32,
    *,
    span: float = 1.0,
    centre: float = 0.0,
    readout_noise_e: Any = 0.0,
    unbiased: bool = False,
    out: Float32 | None = None,
) -> Float32:
    """Photoelectrons of a restored frame: ``z = u span + centre``, then the inverse of the Anscombe transform.

    Parameters
    ----------
    u : (H, W) float32, model units (or z, with span 1 and centre 0)
    readout_noise_e : scalar or (H, W) map, rms e-
    unbiased : the exact unbiased inverse, for a network that estimates E[z]; False is the algebraic inverse, exact for
        a network that estimates the transform of the clean frame, as photonstep's own do
    out : (H, W) float32, C order, to write into; may be ``u``

    Returns
    -------
    (H, W) float32; not below ``-3/8 - r^2``

    Raises
    ------
    FrameError : an array of another shape or dtype

    Source: Makitalo & Foi 2013, IEEE TIP 22:91.
    """
    u = float_image("u", u)
    readout = number_or_map("readout_noise_e", readout_noise_e, u.shape)
    electrons = output("out", out, u.shape, np.float32)
    constant, constant_map = scalar_and_map(readout**2 + (0.0 if unbiased else reference.ANSCOMBE_OFFSET), u.shape)
    lib = native.library()
    if lib is None:
        z = reference.from_model(u, np.float32(span), np.float32(centre))
        inverse = reference.unbiased_inverse if unbiased else reference.inverse_anscombe
        electrons[...] = inverse(z, single(readout))
        return electrons
    lib.call("electrons", structure("Electrons")(
        u=address(u), u_stride=u.strides[0], height=u.shape[0], width=u.shape[1], span=span, centre=centre,
        constant=constant, unbiased=unbiased, constant_map=address(constant_map), electrons=address(electrons),
    ))  # fmt: skip
    return electrons


def unstabilise(z: Float32, *, readout_noise_e: ArrayLike) -> Float32:
    """Unit-variance coordinates back to photoelectrons, ``(z/2)^2 - 3/8 - r^2``; see `electrons_of`."""
    return electrons_of(z, readout_noise_e=readout_noise_e)


def write_counts(
    electrons: Float32,
    out: NDArray[Any],
    *,
    offset_adu: ArrayLike = 0.0,
    adu_per_e: ArrayLike = 1.0,
    gain: float = 1.0,
    shift_e: float = 0.0,
) -> float:
    """Balanced light as counts, ``max(0, gain e + shift) adu_per_e + offset``, rounded and clipped into ``out``.

    Parameters
    ----------
    electrons : (H, W) float32
    out : (H, W) uint8, uint16 or float32, rows contiguous, written; float32 is not rounded; may be ``electrons``
    offset_adu, adu_per_e : scalars or (H, W) maps; counts without light, counts per photoelectron
    gain, shift_e : of the balance, see `runtime.photon_balance`

    Returns
    -------
    mean light, photoelectrons per pixel

    Raises
    ------
    FrameError : an array of another shape or dtype
    """
    electrons = float_image("electrons", electrons)
    offset = number_or_map("offset_adu", offset_adu, electrons.shape)
    per_gain = number_or_map("adu_per_e", adu_per_e, electrons.shape)
    if out.shape != electrons.shape or out.dtype.name not in FRAME_DTYPES or out.strides[1] != out.itemsize:
        raise FrameError(
            f"out is {out.dtype} of shape {out.shape}; expected {', '.join(FRAME_DTYPES)} of shape {electrons.shape}"
        )
    check_writable("out", out)
    lib = native.library()
    if lib is None:
        light = reference.balanced(electrons, np.float32(gain), np.float32(shift_e))
        out[...] = reference.round_and_clip(light * single(per_gain) + single(offset), out.dtype)
        return float(np.mean(light, dtype=np.float64))
    per_gain, offset = both_numbers_or_maps(per_gain, offset)
    (per_gain_number, per_gain_map), (offset_number, offset_map) = (
        scalar_and_map(value, electrons.shape) for value in (per_gain, offset)
    )
    k = structure("Counts")(
        electrons=address(electrons), height=out.shape[0], width=out.shape[1], gain=gain, shift=shift_e,
        per_gain=per_gain_number, offset=offset_number, pixel_type=PIXEL_TYPES[out.dtype.name],
        per_gain_map=address(per_gain_map), offset_map=address(offset_map), counts=address(out),
        counts_stride=out.strides[0],
    )  # fmt: skip
    lib.call("counts", k)
    return float(k.light) / electrons.size


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
    offset = number_or_map("offset_adu", offset_adu, electrons.shape)
    gain = number_or_map("gain_e_per_adu", gain_e_per_adu, electrons.shape)
    counts: Float32 = electrons * single(1.0 / gain)
    counts += single(offset)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return counts.astype(kind, copy=False)
    limits = np.iinfo(kind)
    np.rint(counts, out=counts)
    np.clip(counts, limits.min, limits.max, out=counts)
    return counts.astype(kind)
