"""Noise that belongs to a frame and a pixel: the same whatever the tiles, threads and devices."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import native, reference
from ..arguments import structure
from .checks import PIXEL_TYPES, Float32, FrameError, address, check_frame, output, rows_in_memory

Key = tuple[int, int]
LARGEST_WORD = 2**32 - 1


def content_key(frame: NDArray[Any]) -> Key:
    """Two 32-bit numbers that stand for a frame's content; any strides.

    Parameters
    ----------
    frame : (H, W) uint8, uint16 or float32
    """
    check_frame(frame)
    lib = native.library()
    if lib is None:
        return reference.content_key(frame.astype(frame.dtype.newbyteorder("="), copy=False))
    k = _content(lib, frame, np.inf, hashed=True)
    return k.low, k.high


def count_at_least(frame: NDArray[Any], limit: float) -> int:
    """How many pixels of a frame hold ``limit`` or more."""
    check_frame(frame)
    lib = native.library()
    if lib is None:
        return int(np.count_nonzero(frame >= limit))
    return int(_content(lib, frame, limit, hashed=False).full_pixels)


def seeded_key(key: Key, seed: int) -> Key:
    """The key of one of many noises for the same frame.

    Raises
    ------
    FrameError : a negative seed
    """
    if seed < 0:
        raise FrameError(f"seed is {seed}; expected a whole number, 0 or more")
    seed = int(seed)
    return (key[0] ^ (seed & LARGEST_WORD), key[1] ^ ((seed >> 32) & LARGEST_WORD))


def check_place(shape: tuple[int, ...], key: Key, row: int, origin: tuple[int, int]) -> None:
    """That key, row and every pixel of the window have a counter of 32-bit words."""
    last = (origin[0] + shape[0] - 1, origin[1] + shape[1] - 1)
    if not all(0 <= word <= LARGEST_WORD for word in (*key, row, *origin, *last)):
        raise FrameError(
            f"key {key}, row {row}, window {shape} at {origin}; expected whole numbers from 0 to 2^32 - 1, "
            "for the window's last pixel too"
        )


def normal(
    shape: tuple[int, int], *, key: Key, row: int, origin: tuple[int, int] = (0, 0), out: Float32 | None = None
) -> Float32:
    """Unit normal noise of a frame's window.

    Parameters
    ----------
    shape : (H, W) of the window
    key : of the frame and seed, two 32-bit numbers
    row : which of the noises of that key, a 32-bit number; a sampler's row
    origin : (y, x) of the window in the frame

    Returns
    -------
    (H, W) float32

    Raises
    ------
    FrameError : a number out of range
    """
    check_place(shape, key, row, origin)
    noise = output("out", out, shape, np.float32)
    lib = native.library()
    if lib is None:
        noise[...] = reference.normal(shape, key=key, row=row, origin=origin, dtype=np.float32)
        return noise
    lib.call("normal", structure("Normal")(
        height=shape[0], width=shape[1], row=row, key_low=key[0], key_high=key[1],
        origin_y=origin[0], origin_x=origin[1], noise=address(noise),
    ))  # fmt: skip
    return noise


def _content(lib: native.Library, frame: NDArray[Any], full: float, *, hashed: bool) -> Any:
    rows = rows_in_memory(frame)
    k = structure("Content")(
        frame=address(rows), frame_stride=rows.strides[0], height=frame.shape[0], width=frame.shape[1],
        pixel_type=PIXEL_TYPES[frame.dtype.name], hashed=hashed, full=full,
    )  # fmt: skip
    lib.call("content", k)
    return k
