"""Temporal fusion and the similarity test in the native library, in every instruction set, against float64."""

import numpy as np
import pytest

from photonstep.kernels import native, ops, reference
from photonstep.runtime.temporal import FusionSettings

SHAPES = [(1, 1), (1, 40), (40, 1), (5, 7), (33, 17), (64, 64), (95, 129), (40, 1031), (700, 1100)]
LIMITS = FusionSettings().limits


@pytest.fixture(params=["baseline", "avx2", "avx512"])
def variant(request):
    lib = native.library()
    if lib is None:
        pytest.skip(f"native kernels are {native.cause()}")
    before = lib.variant
    if not lib.use_variant(request.param):
        pytest.skip(f"this processor or build has no {request.param}")
    yield request.param
    lib.use_variant(before)


def frames(shape, seed=0):
    """A frame, the mean of those before it, and its variance: a scene with slopes, and a corner that changed."""
    rng = np.random.default_rng(seed)
    scene = 12 + np.cumsum(rng.normal(size=shape), axis=1) * 0.3
    mean = scene + rng.normal(size=shape) * 0.5
    scene[: shape[0] // 3, : shape[1] // 3] += 4
    arrays = scene + rng.normal(size=shape), mean, rng.uniform(0.25, 1, shape)
    return tuple(np.ascontiguousarray(a, np.float32) for a in arrays)


def options(correlation=(0.0, 0.0), light=(1.0, 0.0)):
    return {"n_max": 4.0, "limits": LIMITS, "emphasis": 16.0, "noise_correlation": correlation, "light": light}


@pytest.mark.parametrize("changed", [options(), options((0.3, 0.1), (1.05, 0.3)), options(light=(0.9, -0.2))])
@pytest.mark.parametrize("shape", SHAPES)
def test_fuse_meets_the_oracle(variant, shape, changed):
    z, mean, variance = frames(shape)
    exact = reference.fuse(*(a.astype(np.float64) for a in (z, mean, variance)), **changed)
    single = reference.fuse(z, mean, variance, **changed)
    for result, one, truth in zip(ops.fuse(z, mean, variance, **changed), single, exact, strict=True):
        assert result.dtype == np.float32
        assert np.abs(result - truth).max() <= 2 * np.abs(one - truth).max() + 2e-5
    assert shape[0] * shape[1] < 400 or np.ptp(exact[1]) > 0.1  # the tests had something to find


@pytest.mark.parametrize("shape", SHAPES)
def test_fused_noise_and_similarity_meet_the_oracle(variant, shape):
    z, mean, variance = frames(shape)
    exact = reference.fused_noise(variance.astype(np.float64))
    assert np.abs(ops.fused_noise(variance) - exact).max() <= 1e-6
    for correlation in ((0.0, 0.0), (0.4, 0.2)):
        wanted = reference.similarity(z.astype(np.float64), mean.astype(np.float64), noise_correlation=correlation)
        assert ops.similarity(z, mean, noise_correlation=correlation) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("shape", [(95, 129), (700, 1100)])
def test_every_instruction_set_and_number_of_threads_gives_the_same_bits(shape):
    lib = native.library()
    if lib is None:
        pytest.skip(f"native kernels are {native.cause()}")
    z, mean, variance = frames(shape)
    before, threads = lib.variant, lib.threads
    found = []
    try:
        for name in ("baseline", "avx2", "avx512"):
            for count in (1, 2):
                lib.set_threads(count)
                if lib.use_variant(name):
                    fused = ops.fuse(z, mean, variance, **options((0.1, 0.2), (1.02, 0.1)))
                    found.append((*fused, ops.fused_noise(variance), np.float64(ops.similarity(z, mean))))
    finally:
        lib.use_variant(before)
        lib.set_threads(threads)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_nothing_is_written_outside_the_outputs(variant):
    z, mean, variance = frames((37, 53))
    store = np.full((5, 37, 53), 7, np.float32)
    ops.fuse(z, mean, variance, **options(), out_mean=store[1], out_variance=store[3])
    ops.fused_noise(variance, out=store[2])
    assert (store[[0, 4]] == 7).all()
    assert (store[1:4] != 7).any(axis=(1, 2)).all()


def test_inputs_are_not_modified(variant):
    arrays = frames((64, 64))
    kept = [a.copy() for a in arrays]
    ops.fuse(*arrays, **options(light=(1.1, 0.2)))
    ops.similarity(arrays[0], arrays[1])
    for array, before in zip(arrays, kept, strict=True):
        np.testing.assert_array_equal(array, before)
