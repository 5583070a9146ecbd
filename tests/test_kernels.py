"""Kernels against their formulas in float64: no worse than twice what the same formula in float32 loses."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from photonstep.kernels import ops, reference

SHAPES = [(16, 16), (17, 33), (1, 64), (65, 1), (128, 96)]
DTYPES = ["uint8", "uint16", "float32"]
CAMERAS = [
    {"offset_adu": 0.0, "gain_e_per_adu": 1.0, "readout_noise_e": 0.0},
    {"offset_adu": 100.0, "gain_e_per_adu": 0.46, "readout_noise_e": 1.6},
    {"offset_adu": 3.1, "gain_e_per_adu": 0.03, "readout_noise_e": 0.0},
    {"offset_adu": 0.5, "gain_e_per_adu": 12.0, "readout_noise_e": 30.0},
]


def random_frame(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    if dtype == "float32":
        return rng.normal(300, 400, shape).astype(np.float32)
    return rng.integers(0, np.iinfo(dtype).max, shape, endpoint=True).astype(dtype)


def random_maps(shape, seed=1):
    rng = np.random.default_rng(seed)
    return {
        "offset_adu": rng.normal(100, 3, shape).astype(np.float32),
        "gain_e_per_adu": rng.uniform(0.3, 0.6, shape).astype(np.float32),
        "readout_noise_e": rng.uniform(0.5, 8, shape).astype(np.float32),
    }


def in_dtype(camera, dtype):
    return {name: np.asarray(value, dtype) for name, value in camera.items()}


def largest(difference):
    return float(np.max(np.abs(difference.astype(np.float64)), initial=0.0))


def assert_within_budget(result, single, exact, *, tiny):
    """Shapes and dtype agree, and the error is at most twice that of the plain formula in float32."""
    assert result.dtype == np.float32
    assert result.shape == exact.shape
    assert largest(result - exact) <= 2 * largest(single - exact) + tiny


def stabilise_as_written(frame, camera, dtype):
    c = in_dtype(camera, dtype)
    electrons = reference.to_photoelectrons(frame.astype(dtype), c["offset_adu"], c["gain_e_per_adu"])
    return reference.anscombe(electrons, c["readout_noise_e"]).astype(dtype)


# --- stabilise ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("camera", [*CAMERAS, "maps"], ids=["plain", "sCMOS", "EMCCD", "photodiode", "maps"])
def test_stabilise_meets_the_oracle(shape, dtype, camera):
    frame, numbers = random_frame(shape, dtype), random_maps(shape) if camera == "maps" else camera
    exact, single = (stabilise_as_written(frame, numbers, d) for d in (np.float64, np.float32))
    # 2 sqrt(e + c) near e = -c turns a rounding error of the sum into its square root
    tiny = 2 * np.sqrt(np.finfo(np.float32).eps * largest(np.maximum(frame, 0) * numbers["gain_e_per_adu"]))
    far = exact > 1
    assert_within_budget(ops.stabilise(frame, **numbers)[far], single[far], exact[far], tiny=1e-5)
    assert_within_budget(ops.stabilise(frame, **numbers)[~far], single[~far], exact[~far], tiny=tiny)


STRIDED = {
    "every other pixel": lambda a: a[::2, ::3],
    "upside down": lambda a: a[::-1],
    "mirrored": lambda a: a[:, ::-1],
    "transposed": lambda a: a.T,
    "window": lambda a: a[3:60, 5:70],
    "Fortran order": np.asfortranarray,
    "repeated row": lambda a: np.broadcast_to(a[:1], a.shape),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("view", STRIDED.values(), ids=STRIDED)
def test_strides_do_not_change_what_is_computed(view, dtype):
    frame = view(random_frame((80, 90), dtype))
    before = frame.copy()
    strided = ops.stabilise(frame, **CAMERAS[1])
    np.testing.assert_array_equal(strided, ops.stabilise(np.ascontiguousarray(frame), **CAMERAS[1]))
    assert strided.flags.c_contiguous
    np.testing.assert_array_equal(frame, before)


def test_big_endian_frames_are_taken():
    frame = random_frame((20, 20), "uint16")
    np.testing.assert_array_equal(ops.stabilise(frame.astype(">u2"), **CAMERAS[1]), ops.stabilise(frame, **CAMERAS[1]))


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        ([[1, 2], [3, 4]], "list"),
        (np.zeros((2, 3, 4), np.uint16), r"\(2, 3, 4\)"),
        (np.zeros(7, np.uint16), r"\(7,\)"),
        (np.zeros((4, 4), np.float64), "float64"),
        (np.zeros((4, 4), np.int16), "int16"),
        (np.zeros((4, 4), bool), "bool"),
    ],
)
def test_what_is_no_frame_is_refused(frame, says):
    with pytest.raises(ops.FrameError, match=says):
        ops.stabilise(frame, **CAMERAS[1])


@pytest.mark.parametrize("name", ["offset_adu", "gain_e_per_adu", "readout_noise_e"])
def test_a_map_of_another_shape_is_refused_by_name(name):
    camera = {**CAMERAS[1], name: np.ones((8, 9), np.float32)}
    with pytest.raises(ops.FrameError, match=rf"{name} map is \(8, 9\), frame is \(8, 8\)"):
        ops.stabilise(np.zeros((8, 8), np.uint16), **camera)


@pytest.mark.parametrize("call", ["unstabilise", "to_counts"])
def test_the_way_back_refuses_maps_of_another_shape(call):
    image, wrong = np.zeros((8, 8), np.float32), np.ones((4, 8), np.float32)
    with pytest.raises(ops.FrameError, match=r"\(4, 8\)"):
        if call == "unstabilise":
            ops.unstabilise(image, readout_noise_e=wrong)
        else:
            ops.to_counts(image, "uint16", offset_adu=0, gain_e_per_adu=wrong)


# --- unstabilise, to_counts ---


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("readout", [0.0, 1.6, 30.0, "map"])
def test_unstabilise_meets_the_oracle(shape, readout):
    z = np.random.default_rng(2).uniform(-5, 500, shape).astype(np.float32)
    r = random_maps(shape)["readout_noise_e"] if readout == "map" else readout
    exact, single = (reference.inverse_anscombe(z.astype(d), np.asarray(r, d)) for d in (np.float64, np.float32))
    assert_within_budget(ops.unstabilise(z, readout_noise_e=r), single, exact, tiny=1e-6)


@pytest.mark.parametrize("maps", [False, True], ids=["scalars", "maps"])
def test_float_counts_meet_the_oracle(maps):
    electrons = np.random.default_rng(3).uniform(0, 5000, (33, 47)).astype(np.float32)
    camera = random_maps(electrons.shape) if maps else CAMERAS[1]
    numbers = {k: camera[k] for k in ("offset_adu", "gain_e_per_adu")}
    exact, single = (
        reference.to_adu(electrons.astype(d), *in_dtype(numbers, d).values()) for d in (np.float64, np.float32)
    )
    assert_within_budget(ops.to_counts(electrons, np.float32, **numbers), single, exact, tiny=1e-3)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_integer_counts_are_rounded_and_clipped(dtype):
    top = np.iinfo(dtype).max
    values = np.array([-1e9, -0.6, -0.4, 0.49, 0.51, 1.5, 2.5, top - 0.6, top - 0.4, top + 0.4, 1e9], np.float32)
    counts = ops.to_counts(values[None], dtype, offset_adu=0.0, gain_e_per_adu=1.0)[0]
    np.testing.assert_array_equal(counts, reference.round_and_clip(values.astype(np.float64), np.dtype(dtype)))
    assert counts.dtype == dtype
    assert counts.tolist() == [0, 0, 0, 0, 1, 2, 2, top - 1, top, top, top]


def test_inputs_of_the_way_back_are_not_modified():
    z = np.full((4, 4), 9.0, np.float32)
    electrons = ops.unstabilise(z, readout_noise_e=1.0)
    kept = electrons.copy()
    ops.to_counts(electrons, "uint16", offset_adu=1.0, gain_e_per_adu=0.5)
    assert (z == 9).all()
    np.testing.assert_array_equal(electrons, kept)


# --- round trips ---


cameras = st.fixed_dictionaries(
    {
        "offset_adu": st.floats(0, 500, width=32),
        "gain_e_per_adu": st.floats(0.03125, 32, width=32),
        "readout_noise_e": st.floats(0, 40, width=32),
    }
)


@given(cameras, st.sampled_from(DTYPES), st.integers(0, 2**32 - 1))
def test_counts_come_back_from_the_stabilised_frame(camera, dtype, seed):
    """ADU -> z -> electrons -> ADU is the identity wherever the transform is not cut off below zero."""
    frame = random_frame((9, 11), dtype, seed)
    z = ops.stabilise(frame, **camera)
    electrons = ops.unstabilise(z, readout_noise_e=camera["readout_noise_e"])
    numbers = {k: camera[k] for k in ("offset_adu", "gain_e_per_adu")}
    counts = ops.to_counts(electrons, dtype, **numbers)
    exact = reference.to_photoelectrons(frame.astype(np.float64), **numbers)
    kept = exact + 0.375 + camera["readout_noise_e"] ** 2 > 1e-3
    # float32 carries 2^-24 of the largest number on the way, in electrons, and a float frame keeps the fraction
    largest_e = np.abs(exact).max() + camera["readout_noise_e"] ** 2 + camera["offset_adu"] * camera["gain_e_per_adu"]
    allowed = 8 * np.finfo(np.float32).eps * largest_e / camera["gain_e_per_adu"] + 1e-6
    if dtype != "float32":
        allowed = np.floor(allowed + 0.5)
    difference = np.abs(counts.astype(np.float64) - frame.astype(np.float64))[kept]
    assert np.all(difference <= allowed)


@given(st.floats(0, 1e5, width=32), st.floats(0, 40, width=32))
def test_electrons_come_back_from_z(electrons, readout):
    z = reference.anscombe(np.float64(electrons), readout)
    assert reference.inverse_anscombe(z, readout) == pytest.approx(electrons, rel=1e-12, abs=1e-9)


def test_frames_below_the_floor_stabilise_to_zero_and_not_nan():
    z = ops.stabilise(np.full((4, 4), -1e6, np.float32), **CAMERAS[1])
    assert (z == 0).all()


# --- what the transform is for ---


@pytest.mark.parametrize("readout", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("photons", [5.0, 20.0, 100.0, 1000.0])
def test_stabilised_noise_has_unit_variance(photons, readout):
    rng = np.random.default_rng(4)
    electrons = rng.poisson(photons, (512, 512)) + rng.normal(0, readout, (512, 512))
    counts = (electrons / 0.46 + 100).astype(np.float32)
    z = ops.stabilise(counts, offset_adu=100, gain_e_per_adu=0.46, readout_noise_e=readout)
    # sampling error of a variance of 512^2 pixels is 0.3 %; the transform's own departure is largest at 5 photons
    assert float(z.var(dtype=np.float64)) == pytest.approx(1.0, abs=0.06 if photons == 5 else 0.025)


def test_a_pixel_map_stabilises_every_pixel():
    """An sCMOS chip: each pixel has its own offset, gain and readout noise, and all have unit noise afterwards."""
    rng, frames = np.random.default_rng(5), 4000
    camera = random_maps((12, 12))
    electrons = rng.poisson(30, (frames, 12, 12)) + rng.normal(0, 1, (frames, 12, 12)) * camera["readout_noise_e"]
    counts = (electrons / camera["gain_e_per_adu"] + camera["offset_adu"]).astype(np.float32)
    variance = np.var([ops.stabilise(c, **camera) for c in counts], axis=0, dtype=np.float64)
    np.testing.assert_allclose(variance, 1.0, atol=0.12)  # 5 standard errors


# --- block means, lag products ---


@pytest.mark.parametrize("block_px", [1, 2, 3, 16])
@pytest.mark.parametrize("shape", [(16, 16), (35, 50), (64, 17)])
def test_block_means_meet_the_oracle(shape, block_px):
    image = np.random.default_rng(6).normal(10, 5, shape).astype(np.float32)
    exact, single = (reference.block_means(image.astype(d), block_px) for d in (np.float64, np.float32))
    assert_within_budget(ops.block_means(image, block_px), single, exact, tiny=1e-5)


def test_block_means_need_a_whole_block():
    with pytest.raises(ops.FrameError, match=r"\(3, 9\).*4x4"):
        ops.block_means(np.zeros((3, 9), np.float32), 4)


@pytest.mark.parametrize("view", [lambda a: a, lambda a: a[::2, ::3], lambda a: a.T, lambda a: a[::-1, ::-1]])
def test_lag_products_meet_the_oracle(view):
    rng = np.random.default_rng(7)
    residual = view(rng.normal(0, 1, (130, 171)).astype(np.float32))
    exact = np.array(reference.lag_products(residual.astype(np.float64)))
    single = np.array(reference.lag_products(residual))
    assert largest(np.array(ops.lag_products(residual)) - exact) <= 2 * largest(single - exact) + 1e-5


def test_lag_products_tell_the_axes_apart():
    white = np.random.default_rng(8).normal(size=(400, 401)).astype(np.float32)
    along_y = (white[1:] + white[:-1]) / np.sqrt(2).astype(np.float32)
    variance, lag_y, lag_x = ops.lag_products(along_y)
    assert variance == pytest.approx(1, abs=0.02)
    assert lag_y == pytest.approx(0.5, abs=0.02)
    assert lag_x == pytest.approx(0, abs=0.02)
