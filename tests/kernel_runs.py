"""What the kernels' tests share: every implementation on this machine, guarded outputs, budgets, odd sizes."""

from contextlib import contextmanager

import numpy as np

from photonstep.kernels import native

# around one pixel, around a vector of 16, around the 1024 pixels that the loops work on at a time
SHAPES = [(1, 1), (1, 7), (9, 1), (17, 33), (3, 15), (2, 16), (5, 17), (3, 1023), (2, 1024), (2, 1025), (35, 2051)]
LARGE = (2049, 1601)  # every kernel shares it among threads, whatever the dtype: more than 2 x 3 MiB of work
DTYPES = ["uint8", "uint16", "float32"]
PAD_BYTES = 192
SENTINEL = 0xA5


def variants():
    """Instruction sets of the native library that this machine runs; none where it was not built."""
    lib = native.library()
    if lib is None:
        return []
    chosen = lib.variant
    found = [name for name in ("baseline", "avx2", "avx512") if lib.use_variant(name)]
    lib.use_variant(chosen)
    return found


IMPLEMENTATIONS = ["reference", *variants()]


@contextmanager
def running(implementation, threads=2):
    """Within the block the entry points use this implementation; afterwards what they used before."""
    lib = native.library()
    if implementation == "reference":
        with native.use_reference():
            yield
        return
    before = lib.variant, lib.threads
    assert lib.use_variant(implementation)
    lib.set_threads(threads)
    try:
        yield
    finally:
        lib.use_variant(before[0])
        lib.set_threads(before[1])


class Guarded:
    """An array to write into, with bytes around it (and after every row) that nobody may touch.

    ``row_padding`` pixels follow every row; without them the array is in C order. It does not begin on a boundary of a
    vector register, as outputs in the wild do not.
    """

    def __init__(self, shape, dtype=np.float32, row_padding=0):
        self._itemsize = np.dtype(dtype).itemsize
        lead, rows = shape[:-1], shape[-1] + row_padding
        count = int(np.prod(lead, dtype=int)) * rows * self._itemsize
        self._bytes = np.full(count + 2 * PAD_BYTES, SENTINEL, np.uint8)
        padded = self._bytes[PAD_BYTES : PAD_BYTES + count].view(dtype).reshape(*lead, rows)
        self.array = padded[..., : shape[-1]]

    def check(self):
        """Fails where anything outside the array was written; then returns a copy of the array."""
        result = self.array.copy()
        self.array.view(np.uint8 if self._itemsize == 1 else f"u{self._itemsize}")[...] = 0
        outside = np.count_nonzero(self._bytes != SENTINEL)
        assert outside == result.nbytes, "bytes outside the output were written"
        return result


def random_image(shape, dtype, seed=0):
    """Counts in all of an integer's range, or floats about 300 that may be negative."""
    rng = np.random.default_rng(seed)
    if dtype == "float32":
        return rng.normal(300, 400, shape).astype(np.float32)
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def normals(shape, seed=0, scale=1.0):
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


def positive_map(shape, seed=1, low=0.3, high=2.0):
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


def largest(difference):
    return float(np.max(np.abs(np.asarray(difference, np.float64)), initial=0.0))


def assert_within_budget(result, single, exact, *, tiny):
    """The error is at most twice that of the plain formula in float32, and ``tiny`` where that one is exact by luck."""
    result, single, exact = (np.asarray(a) for a in (result, single, exact))
    assert result.shape == exact.shape
    assert largest(result - exact) <= 2 * largest(single - exact) + tiny
