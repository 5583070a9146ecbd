"""Temporal fusion and similarity for a GPU: the bits of the native CPU library, near float64; see test_cuda_kernels."""

import numpy as np
import pytest
from device_runs import on_cpu, on_device
from fiber_device import FiberDevice

from photonstep.kernels import native, reference
from photonstep.kernels.reference.temporal import LARGE_PX, SMALL_PX, noise_left
from photonstep.runtime.backends import cuda_device
from photonstep.runtime.temporal import FusionSettings

SHAPES = [(1, 1), (1, 40), (9, 5), (17, 33), (40, 70)]
LIMITS = FusionSettings().limits
LIGHTS = [(1.0, 0.0), (1.08, -0.3), (0.9, 0.4)]


@pytest.fixture(params=["fibers", "fibers reversed", "GPU"])
def device(request):
    if request.param == "GPU":
        cause = cuda_device.unavailable()
        if cause:
            pytest.skip(cause)
        opened = cuda_device.open_device()
    else:
        opened = FiberDevice(reverse=request.param == "fibers reversed")
    yield opened
    opened.close()


@pytest.fixture
def cpu():
    if native.library() is None:
        pytest.skip(f"native kernels {native.cause()}")


def frames(shape, seed=0):
    """A frame, the mean of those before it, and its variance: a scene with slopes, and a corner that changed."""
    rng = np.random.default_rng(seed)
    scene = 12 + np.cumsum(rng.normal(size=shape), axis=1) * 0.3
    mean = scene + rng.normal(size=shape) * 0.5
    scene[: shape[0] // 2 + 1, : shape[1] // 3] += 4
    arrays = scene + rng.normal(size=shape), mean, rng.uniform(0.25, 1, shape)
    return dict(zip(("z", "mean", "variance"), (np.ascontiguousarray(a, np.float32) for a in arrays), strict=True))


def sizes(shape):
    return {"height": shape[0], "width": shape[1]}


def numbers(correlation, light, n_max=4.0, emphasis=16.0):
    """What `kernels.ops.fuse` tells the kernel."""
    small, large = (noise_left(window, correlation) for window in (SMALL_PX, LARGE_PX))
    return {
        "light_gain": light[0], "light_shift": light[1], "emphasis": emphasis, "least_gain": 2 / (n_max + 1),
        "per_point": 1 / LIMITS.point**2, "per_small": 1 / (small * LIMITS.small**2),
        "per_large": 1 / (large * LIMITS.large**2), "per_spread": 1 / (small * LIMITS.spread**2),
        "per_motion": LARGE_PX**2 / (small * SMALL_PX**2 * LIMITS.motion**2),
    }  # fmt: skip


@pytest.mark.parametrize("light", LIGHTS, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_fuse(device, cpu, shape, light):
    correlation = (0.2, 0.1)
    arrays = frames(shape)
    outputs = {"out_mean": (shape, np.float32), "out_variance": (shape, np.float32)}
    fields = arrays | sizes(shape) | numbers(correlation, light)
    _, on = on_device(device, "fuse", outputs=outputs, **fields)
    _, off = on_cpu("fuse", outputs=outputs, **fields)
    exact = reference.fuse(
        *(a.astype(np.float64) for a in arrays.values()), n_max=4.0, limits=LIMITS, emphasis=16.0,
        noise_correlation=correlation, light=light,
    )  # fmt: skip
    for name, truth in zip(outputs, exact, strict=True):
        np.testing.assert_array_equal(on[name], off[name])
        np.testing.assert_allclose(on[name], truth, atol=5e-5, rtol=1e-5)
    assert np.prod(shape) < 100 or np.ptp(exact[1]) > 0.1  # the tests had something to find


@pytest.mark.parametrize("shape", SHAPES)
def test_fused_noise(device, cpu, shape):
    variance = frames(shape)["variance"]
    outputs = {"level": (shape, np.float32)}
    _, on = on_device(device, "fused_noise", outputs=outputs, variance=variance, **sizes(shape))
    _, off = on_cpu("fused_noise", outputs=outputs, variance=variance, **sizes(shape))
    np.testing.assert_array_equal(on["level"], off["level"])
    np.testing.assert_allclose(on["level"], reference.fused_noise(variance.astype(np.float64)), atol=1e-6)


@pytest.mark.parametrize("block", [1, 3, 8])
@pytest.mark.parametrize("shape", [(8, 8), (17, 33), (70, 45), (9, 2300)])
def test_similarity(device, cpu, shape, block):
    arrays = frames(shape)
    fields = {"z": arrays["z"], "previous": arrays["mean"], "block": block, "cut": 9.0, **sizes(shape)}
    on, _ = on_device(device, "similarity", **fields)
    off, _ = on_cpu("similarity", **fields)
    squared = (arrays["z"].astype(np.float64) - arrays["mean"]) ** 2 / 2
    assert on.sum_cut == pytest.approx(np.minimum(squared, 9).sum(), rel=1e-5)
    assert on.largest_block == off.largest_block
    assert on.largest_block == pytest.approx(reference.block_means(squared, block).max(), rel=1e-5)
