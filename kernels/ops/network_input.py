"""Unit-variance coordinates to what a network is fed: model range, input scaling, place and format in its tensor."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .. import native, reference
from ..arguments import structure
from .checks import Float32, FrameError, address, check_writable, float_image

PLANE_TYPES: Final = {"float32": 0, "float16": 1, "uint16": 2}  # uint16 holds the bits of bfloat16


def network_input(
    z: Float32,
    *,
    per_span: float,
    shift: float,
    c_in: float = 1.0,
    state: Float32 | None = None,
    plane: NDArray[Any] | None = None,
    factor: int = 1,
) -> None:
    """``state = z per_span - shift`` and ``plane = c_in state``, pixel-unshuffled, in one pass.

    Parameters
    ----------
    z : (H, W) float32
    state : (H, W) float32, C order, written; None leaves it out
    plane : (factor^2, H // factor, W // factor), or (H, W) for factor 1, C order, written; float32, float16, or uint16
        for the bits of bfloat16; None leaves it out
    factor : of the pixel-unshuffle; H and W are multiples of it

    Raises
    ------
    FrameError : an array of another shape or dtype, or sides that are no multiples of factor
    """
    z = float_image("z", z)
    height, width = z.shape
    if factor < 1 or height % factor or width % factor:
        raise FrameError(f"z is {z.shape}, factor {factor}; expected sides that are multiples of the factor")
    if state is not None:
        _check_written("state", state, ("float32",), z.size)
    if plane is not None:
        _check_written("plane", plane, tuple(PLANE_TYPES), z.size)
    lib = native.library()
    if lib is None:
        _by_reference(z, per_span, shift, c_in, state, plane, factor)
        return
    lib.call("network_input", structure("NetworkInput")(
        z=address(z), height=height, width=width, factor=factor, per_span=per_span, shift=shift, c_in=c_in,
        plane_type=0 if plane is None else PLANE_TYPES[plane.dtype.name], state=address(state), plane=address(plane),
    ))  # fmt: skip


def _by_reference(
    z: Float32, per_span: float, shift: float, c_in: float, state: Float32 | None, plane: NDArray[Any] | None,
    factor: int,
) -> None:  # fmt: skip
    u = reference.to_model(z, np.float32(per_span), np.float32(shift))
    if state is not None:
        state.reshape(u.shape)[...] = u
    if plane is not None:
        fed = np.asarray(reference.pixel_unshuffle(np.float32(c_in) * u, factor), np.float32)
        plane.reshape(fed.shape)[...] = reference.bfloat16_bits(fed) if plane.dtype == np.uint16 else fed


def _check_written(name: str, array: NDArray[Any], dtypes: tuple[str, ...], size: int) -> None:
    if array.dtype.name not in dtypes or array.size != size or not array.flags.c_contiguous:
        raise FrameError(
            f"{name} is {array.dtype} of shape {array.shape}; expected {size} px of {' or '.join(dtypes)} in C order"
        )
    check_writable(name, array)
