"""Statistics and previews of frames: every implementation against the float64 oracle."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from kernel_runs import (
    DTYPES,
    IMPLEMENTATIONS,
    SHAPES,
    Guarded,
    assert_within_budget,
    largest,
    normals,
    positive_map,
    random_image,
    running,
)

from photonstep.kernels import ops, reference

MAX_FLOAT = float(np.finfo(np.float32).max)


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    with running(request.param):
        yield request.param


# --- residual ---


def residual_inputs(shape):
    """A frame of which some pixels were cut off at 0, and its restoration in model units."""
    z = np.maximum(normals(shape, scale=3.0) + np.float32(2), 0)
    return z, (z + normals(shape, 1) - np.float32(20)) / np.float32(25)


@pytest.mark.parametrize("shape", [*SHAPES, (16, 40), (33, 40), (100, 1030)], ids=str)
@pytest.mark.parametrize("noise", ["number", "map"])
@pytest.mark.parametrize("step", [1, 2, 5])
def test_residual_statistics(implementation, shape, noise, step):
    z, u = residual_inputs(shape)
    level = positive_map(shape) if noise == "map" else 0.8
    found = ops.residual_statistics(z, u, span=25.0, centre=20.0, noise=level, step=step)
    exact, single = (
        reference.residual_statistics(
            z.astype(d), reference.from_model(u.astype(d), d(25), d(20)), noise=np.asarray(level, d), step=step
        )
        for d in (np.float64, np.float32)
    )
    for name in ("variance", "along_y", "along_x"):
        # a covariance may cancel: its rounding is that of the products, the variance
        assert_within_budget(*(getattr(s, name) for s in (found, single, exact)), tiny=2e-6 * exact.variance)
    assert found.cut_off == pytest.approx(exact.cut_off, abs=1e-12)


def test_residual_statistics_tell_the_axes_apart(implementation):
    white = normals((400, 401))
    along_y = (white[1:] + white[:-1]) / np.float32(2**0.5)
    found = ops.residual_statistics(along_y, np.zeros_like(along_y))
    assert found.variance == pytest.approx(1, abs=0.02)
    assert found.along_y == pytest.approx(0.5, abs=0.02)
    assert found.along_x == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("step", [0, -1])
def test_a_step_is_at_least_1(implementation, step):
    z = normals((8, 8))
    with pytest.raises(ops.FrameError, match="step"):
        ops.residual_statistics(z, z, step=step)


# --- percentiles ---

PERCENTS = (0, 0.1, 1, 25, 50, 50.5, 75, 99.9, 100)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_percentiles(implementation, shape, dtype):
    image = random_image(shape, dtype)
    exact = np.percentile(image.astype(np.float64), PERCENTS)
    single = np.percentile(image.astype(np.float32), PERCENTS)
    found = np.array(ops.percentiles(image, PERCENTS))
    assert_within_budget(found, single, exact, tiny=1e-12 * largest(exact))
    if implementation != "reference":  # order statistics are exact, and numbers between them of double precision
        np.testing.assert_allclose(found, exact, rtol=1e-12, atol=1e-9)


@given(
    arrays.arrays(np.float32, st.integers(1, 60), elements=st.floats(-MAX_FLOAT / 4, MAX_FLOAT / 4, width=32)),
    st.lists(st.floats(0, 100), max_size=12),
    st.sampled_from(IMPLEMENTATIONS[1:] or IMPLEMENTATIONS),
)
def test_percentiles_of_any_numbers(values, percents, implementation):
    """Denormals, zeros of either sign, repeated numbers, few numbers, any number of percents in any order."""
    with running(implementation):
        found = ops.percentiles(values[None], percents)
    exact = np.percentile(values.astype(np.float64), percents) if percents else []
    eps = 1e-12 if implementation != "reference" else 1e-6
    np.testing.assert_allclose(found, exact, rtol=eps, atol=eps * largest(values))


def test_what_is_not_finite_is_not_ranked(implementation):
    image = np.float32([[np.nan, 5, np.inf], [-np.inf, 1, 3]])
    assert ops.percentiles(image, (0, 50, 100)) == (1, 3, 5)
    with pytest.raises(ops.FrameError, match="finite"):
        ops.percentiles(np.full((2, 2), np.nan, np.float32), (50,))


@pytest.mark.parametrize("percent", [-0.1, 100.1, float("nan")])
def test_percents_lie_between_0_and_100(implementation, percent):
    with pytest.raises(ops.FrameError, match="percents"):
        ops.percentiles(normals((4, 4)), (50, percent))


# --- noise level ---


@pytest.mark.parametrize("shape", [(3, 3), (3, 9), (9, 3), (17, 33), (5, 1026), (4, 1027), (50, 2060)], ids=str)
def test_laplacian_noise(implementation, shape):
    image = normals(shape, scale=3.0) + np.float32(50)
    exact, single = (reference.laplacian_noise(image.astype(d)) for d in (np.float64, np.float32))
    assert_within_budget(ops.laplacian_noise(image), single, exact, tiny=1e-5)


def test_laplacian_noise_is_that_of_the_noise_and_not_of_a_ramp(implementation):
    y, x = np.mgrid[:300, :300].astype(np.float32)
    assert ops.laplacian_noise(normals((300, 300), scale=2.5) + 3 * y - 2 * x) == pytest.approx(2.5, rel=0.02)


@pytest.mark.parametrize("shape", [(2, 9), (9, 2), (0, 0)])
def test_an_image_with_no_inside_is_refused(implementation, shape):
    with pytest.raises(ops.FrameError, match="3x3"):
        ops.laplacian_noise(np.zeros(shape, np.float32))


# --- preview ---


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_lut", [False, True], ids=["grey", "lut"])
def test_preview(implementation, shape, dtype, with_lut):
    image, low, high = random_image(shape, dtype), 20.3, 181.7
    lut = np.random.default_rng(4).permutation(256).astype(np.uint8) if with_lut else None
    out = Guarded(shape, np.uint8)
    ops.preview_u8(image, low=low, high=high, lut=lut, out=out.array)
    shown = out.check()
    exact = np.clip((image.astype(np.float64) - low) * (255 / (high - low)), 0, 255)
    if with_lut:
        shown = np.argsort(lut)[shown]
    # a level that lies within a rounding error of a half may go either way
    assert np.abs(shown - exact).max() <= 0.5 + 1e-3


def test_ties_go_to_even_and_the_ends_are_black_and_white(implementation):
    image = np.float32([[-1e30, -0.5, 0.5, 1.5, 2.5, 253.5, 254.5, 255.5, 1e30]])
    shown = ops.preview_u8(np.tile(image, (3, 4)), low=0.0, high=255.0)
    np.testing.assert_array_equal(shown, np.tile(np.uint8([[0, 0, 0, 2, 2, 254, 254, 255, 255]]), (3, 4)))


def test_nan_is_shown_as_black_and_infinity_as_an_end(implementation):
    image = np.tile(np.float32([[np.nan, np.inf, -np.inf, 5.0]]), (3, 9))
    shown = ops.preview_u8(image, low=0.0, high=10.0)
    np.testing.assert_array_equal(shown, np.tile(np.uint8([[0, 255, 0, 128]]), (3, 9)))


@pytest.mark.parametrize(
    ("low", "high"), [(1.0, 1.0), (2.0, 1.0), (np.nan, 1.0), (0.0, np.nan), (0.0, np.inf), (-np.inf, 0.0)]
)
def test_levels_are_finite_and_in_order(implementation, low, high):
    with pytest.raises(ops.FrameError, match="low < high"):
        ops.preview_u8(normals((4, 4)), low=low, high=high)


@pytest.mark.parametrize("lut", [np.zeros(255, np.uint8), np.zeros(256, np.uint16), np.zeros((256, 3), np.uint8)])
def test_a_lookup_table_has_256_greys(implementation, lut):
    with pytest.raises(ops.FrameError, match="256 uint8"):
        ops.preview_u8(normals((4, 4)), low=0.0, high=1.0, lut=lut)
