"""Counter-based normal noise: Philox4x32-10 and the Box-Muller transform.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (SC11); Box & Muller 1958.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .arrays import Floats

Words = NDArray[np.uint64]  # 32-bit words in 64-bit integers, so that products keep their upper halves
LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)


def philox4x32(counter: tuple[Words, Words, Words, Words], key: tuple[int, int]) -> tuple[Words, Words, Words, Words]:
    """Ten rounds; counter and result are four arrays of 32-bit words."""
    c0, c1, c2, c3 = counter
    k0, k1 = (np.uint64(k) for k in key)
    for _ in range(10):
        first, second = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (second >> HALF) ^ c1 ^ k0, second & LOW, (first >> HALF) ^ c3 ^ k1, first & LOW
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & LOW, (k1 + np.uint64(0xBB67AE85)) & LOW
    return c0, c1, c2, c3


def normal(
    shape: tuple[int, int], *, key: tuple[int, int], row: int, origin: tuple[int, int] = (0, 0),
    dtype: DTypeLike = np.float64,
) -> Floats:  # fmt: skip
    """Unit normal noise of the window that begins at ``origin`` (y, x) of a frame.

    The words of counter (x // 4, y, row, 0) belong to the pixels 4 (x // 4) to 4 (x // 4) + 3 of line y.
    """
    y, x = (np.arange(start, start + n, dtype=np.uint64) for start, n in zip(origin, shape, strict=True))
    group, line = np.broadcast_arrays(x[None] // np.uint64(4), y[:, None])
    constant = np.zeros_like(group)
    words = philox4x32((group, line, constant + np.uint64(row), constant), key)
    kind: Any = np.dtype(dtype).type
    uniform = [((w >> np.uint64(9)).astype(kind) + kind(0.5)) * kind(2**-23) for w in words]  # exact in float32
    upper = np.broadcast_to(x[None] % np.uint64(4) >= 2, group.shape)
    radius_from, turns = (np.where(upper, uniform[i + 2], uniform[i]) for i in (0, 1))
    angle = turns * kind(2 * np.pi)
    odd = np.broadcast_to(x[None] % np.uint64(2) == 1, group.shape)
    noise: Floats = np.sqrt(kind(-2) * np.log(radius_from)) * np.where(odd, np.sin(angle), np.cos(angle))
    return noise


def content_key(frame: NDArray[Any]) -> tuple[int, int]:
    """Two 32-bit sums over all pixels of a hash of value and place; the same in any order."""
    pixels = np.ascontiguousarray(frame)
    bits = pixels.view(np.uint32) if pixels.dtype == np.float32 else pixels
    value = bits.astype(np.uint64).ravel()
    index = np.arange(value.size, dtype=np.uint64)
    low = _mixed((value + index * np.uint64(0x9E3779B9)) & LOW)
    high = _mixed(((value ^ np.uint64(0x5BD1E995)) + index * np.uint64(0x632BE5AB)) & LOW)
    return int(low.sum() & LOW), int(high.sum() & LOW)


def _mixed(h: Words) -> Words:
    """The 32-bit finaliser of MurmurHash3 (Appleby, public domain)."""
    h = h ^ (h >> np.uint64(16))
    h = (h * np.uint64(0x85EBCA6B)) & LOW
    h = h ^ (h >> np.uint64(13))
    h = (h * np.uint64(0xC2B2AE35)) & LOW
    return h ^ (h >> np.uint64(16))
