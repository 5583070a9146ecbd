"""Tiles as data: what to read, what to keep. The kept parts partition the frame exactly.

A tile reads a halo of the network's receptive radius around what it keeps, so that tiled and whole restoration agree.
Reads start and end at multiples of the network's grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import PlanError


@dataclass(frozen=True)
class Tile:
    """``frame[keep]`` is ``restored(frame[read])[inner]``; each a pair of slices (rows, columns)."""

    read: tuple[slice, slice]
    keep: tuple[slice, slice]
    inner: tuple[slice, slice]


def plan_tiles(shape: tuple[int, int], *, tile_px: int, halo_px: int, multiple: int) -> tuple[Tile, ...]:
    """Cut a frame into tiles.

    Parameters
    ----------
    shape : (H, W) of the padded frame, multiples of ``multiple``
    tile_px : side of what a tile keeps, rounded up to ``multiple``; a frame within it is one tile without a halo
    halo_px : pixels read around it, rounded up to ``multiple``

    Raises
    ------
    PlanError : a side is not a multiple, or a size is not positive
    """
    if multiple < 1 or tile_px < 1 or halo_px < 0 or any(n < 1 or n % multiple for n in shape):
        raise PlanError(
            f"tiles of {tile_px} px with a halo of {halo_px} px do not fit a frame {shape} on a {multiple} px grid"
        )
    step, halo = (-(-n // multiple) * multiple for n in (tile_px, halo_px))
    rows, columns = (list(_spans(n, step, halo)) for n in shape)
    return tuple(Tile(read=(y[0], x[0]), keep=(y[1], x[1]), inner=(y[2], x[2])) for y in rows for x in columns)


def _spans(length: int, step: int, halo: int) -> Iterator[tuple[slice, slice, slice]]:
    for start in range(0, length, step):
        stop = min(start + step, length)
        first, last = max(start - halo, 0), min(stop + halo, length)
        yield slice(first, last), slice(start, stop), slice(start - first, stop - first)


def pad_to_multiple(image: NDArray[Any], multiple: int) -> NDArray[Any]:
    """Extend the lower and right edge by reflection to multiples of ``multiple``; an image that fits is returned."""
    extra = [-n % multiple for n in image.shape]
    if not any(extra):
        return image
    return np.pad(image, [(0, e) for e in extra], mode="symmetric")
