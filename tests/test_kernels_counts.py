"""Counts to the network's input and back to counts: every implementation against the float64 oracle."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
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

CAMERA = {"offset_adu": 100.0, "gain_e_per_adu": 0.46, "readout_noise_e": 1.6}


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    with running(request.param):
        yield request.param


def camera_of(kind, shape):
    if kind == "numbers":
        return CAMERA
    maps = {name: (positive_map(shape, i) * value).astype(np.float32) for i, (name, value) in enumerate(CAMERA.items())}
    if kind == "maps":
        return maps
    return {**CAMERA, kind: maps[kind]}


# --- stabilise ---


def anscombe(frame, camera, dtype):
    offset, gain, readout = (np.asarray(value, dtype) for value in camera.values())
    electrons = reference.to_photoelectrons(frame.astype(dtype), offset, gain)
    return reference.anscombe(electrons, readout).astype(dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["numbers", "maps", "offset_adu", "gain_e_per_adu"])
def test_stabilise(implementation, shape, dtype, kind):
    frame, camera = random_image(shape, dtype), camera_of(kind, shape)
    out = Guarded(shape)
    ops.stabilise(frame, **camera, out=out.array)
    exact, single = (anscombe(frame, camera, d) for d in (np.float64, np.float32))
    # of z^2, a sum of products: near the cut the root would turn its rounding error into the root of that
    rounding = (
        4 * np.finfo(np.float32).eps * largest(4 * (np.abs(frame.astype(float)) + 200) * camera["gain_e_per_adu"])
    )
    squares = (np.asarray(z, np.float64) ** 2 for z in (out.check(), single, exact))
    assert_within_budget(*squares, tiny=rounding)


VIEWS = {
    "every other pixel": lambda a: a[::2, ::3],
    "upside down": lambda a: a[::-1],
    "mirrored": lambda a: a[:, ::-1],
    "transposed": lambda a: a.T,
    "window": lambda a: a[3:60, 5:70],
    "one column": lambda a: a[:, 7:8],
    "repeated row": lambda a: np.broadcast_to(a[:1], a.shape),
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "big-endian window": lambda a: a.astype(a.dtype.newbyteorder(">"))[::-1, 3:70],
    "unaligned": lambda a: unaligned(a),
    "read-only": lambda a: frozen(a),
}


def unaligned(image):
    """The same pixels, each at an odd address: a frame after a header in a camera's packet."""
    raw = np.zeros(image.nbytes + 1, np.uint8)
    view = raw[1:].view(image.dtype).reshape(image.shape)
    view[...] = image
    return view


def frozen(image):
    kept = image.copy()
    kept.flags.writeable = False
    return kept


OF_A_FRAME = {
    "stabilise": lambda frame: ops.stabilise(frame, **CAMERA),
    "block_means": lambda frame: ops.block_means(frame, min(3, *frame.shape)),
    "preview_u8": lambda frame: ops.preview_u8(frame, low=10.0, high=200.0),
    "content_key": lambda frame: np.array(ops.content_key(frame)),
    "count_at_least": lambda frame: np.array(ops.count_at_least(frame, 100)),
    "percentiles": lambda frame: np.array(ops.percentiles(frame, (1, 50, 99.9))),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("call", OF_A_FRAME)
def test_how_a_frame_lies_in_memory_changes_nothing(implementation, call, view, dtype):
    frame = VIEWS[view](random_image((80, 90), dtype))
    before = frame.copy()
    plain = np.ascontiguousarray(frame, frame.dtype.newbyteorder("="))
    np.testing.assert_array_equal(OF_A_FRAME[call](frame), OF_A_FRAME[call](plain))
    np.testing.assert_array_equal(frame, before)


@pytest.mark.parametrize("which", ["scale", "bias"])
def test_one_coefficient_may_be_a_map_and_the_other_a_number(implementation, which):
    frame, values = random_image((6, 40), "uint16"), {"scale": 1.5, "bias": 20.0}
    maps = {name: np.full(frame.shape, value, np.float32) for name, value in values.items()}
    mixed = ops.stabilise_with(frame, **{**values, which: maps[which]})
    np.testing.assert_array_equal(mixed, ops.stabilise_with(frame, **maps))


# --- electrons ---


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("is_map", [False, True], ids=["number", "map"])
@pytest.mark.parametrize("unbiased", [False, True], ids=["algebraic", "unbiased"])
@pytest.mark.parametrize("in_place", [False, True], ids=["apart", "in place"])
def test_electrons(implementation, shape, is_map, unbiased, in_place):
    u = normals(shape, scale=2.0)
    readout = positive_map(shape) if is_map else 1.6
    inverse = reference.unbiased_inverse if unbiased else reference.inverse_anscombe
    exact, single = (
        inverse(reference.from_model(u.astype(d), d(25.0), d(20.0)), np.asarray(readout, d))
        for d in (np.float64, np.float32)
    )
    out = Guarded(shape)
    out.array[...] = u
    given = out.array if in_place else u
    ops.electrons_of(given, span=25.0, centre=20.0, readout_noise_e=readout, unbiased=unbiased, out=out.array)
    assert_within_budget(out.check(), single, exact, tiny=1e-4)


@given(st.floats(0, 1e4, width=32), st.floats(0, 30, width=32), st.sampled_from(IMPLEMENTATIONS))
def test_electrons_come_back(electrons, readout, implementation):
    z = np.full((1, 3), reference.anscombe(np.float64(electrons), readout), np.float32)
    with running(implementation):
        back = ops.electrons_of(z, readout_noise_e=readout)
    np.testing.assert_allclose(back, electrons, rtol=1e-5, atol=1e-5 * (1 + readout**2))


# --- counts ---


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["numbers", "maps", "offset_adu", "adu_per_e"])
def test_counts_and_their_light(implementation, shape, dtype, kind):
    electrons = normals(shape, scale=60.0) + np.float32(50)
    maps = {"offset_adu": positive_map(shape) * 10, "adu_per_e": positive_map(shape, 2)}
    numbers = {"offset_adu": 7.3, "adu_per_e": 2.1}
    camera = {"numbers": numbers, "maps": maps}.get(kind) or {**numbers, kind: maps[kind]}
    out = Guarded(shape, dtype, row_padding=5)
    light = ops.write_counts(electrons, out.array, **camera, gain=1.02, shift_e=-0.4)
    result = out.check()
    lights, values = [], []
    for d in (np.float64, np.float32):
        lit = reference.balanced(electrons.astype(d), d(1.02), d(-0.4))
        lights.append(float(np.mean(lit)))
        values.append(lit * np.asarray(camera["adu_per_e"], d) + np.asarray(camera["offset_adu"], d))
    assert_within_budget(light, lights[1], lights[0], tiny=2e-6 * lights[0] + 1e-6)
    if dtype == "float32":
        assert_within_budget(result, values[1], values[0], tiny=1e-4)
    else:
        # a value that lies within a rounding error of a half may go either way
        rounded = reference.round_and_clip(values[0], np.dtype(dtype)).astype(int)
        limits = np.iinfo(dtype)
        assert np.abs(result - np.clip(values[0], limits.min, limits.max)).max() <= 0.5 + 1e-4
        assert np.count_nonzero(result != rounded) <= 1e-3 * result.size


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_counts_are_rounded_half_to_even_and_clipped(implementation, dtype):
    top = np.iinfo(dtype).max
    row = [-np.inf, -1e9, -0.6, -0.4, 0.5, 1.5, 2.5, 3.5, top - 0.5, top - 0.25, top, top + 0.5, 1e9, 3e38, np.inf]
    values = np.tile(np.float32(row), (2, 3))
    out = Guarded(values.shape, dtype)
    ops.write_counts(values, out.array)
    np.testing.assert_array_equal(out.check(), reference.round_and_clip(values.astype(np.float64), np.dtype(dtype)))


def test_counts_may_be_written_over_the_electrons(implementation):
    electrons = normals((40, 1100), scale=60.0)
    expected = np.empty_like(electrons)
    light = ops.write_counts(electrons, expected, offset_adu=100.0, adu_per_e=2.0)
    same = electrons.copy()
    assert ops.write_counts(same, same, offset_adu=100.0, adu_per_e=2.0) == light
    np.testing.assert_array_equal(same, expected)


def refused_outputs(shape, dtype):
    swapped = np.zeros(shape, np.dtype(dtype).newbyteorder())
    read_only = np.zeros(shape, dtype)
    read_only.flags.writeable = False
    return {"big-endian": swapped, "read-only": read_only, "unaligned": unaligned(np.zeros(shape, dtype))}


@pytest.mark.parametrize("fault", ["big-endian", "read-only", "unaligned"])
@pytest.mark.parametrize(
    ("dtype", "call"),
    [
        ("float32", lambda x, out: ops.stabilise_with(x, 1.0, 0.0, out=out)),
        ("float32", lambda x, out: ops.electrons_of(x, out=out)),
        ("uint16", lambda x, out: ops.write_counts(x, out)),
        ("float32", lambda x, out: ops.write_counts(x, out)),
        ("float32", lambda x, out: ops.network_input(x, per_span=1.0, shift=0.0, state=out)),
        ("float32", lambda x, out: ops.network_input(x, per_span=1.0, shift=0.0, plane=out)),
        ("float16", lambda x, out: ops.network_input(x, per_span=1.0, shift=0.0, plane=out)),
        ("uint16", lambda x, out: ops.network_input(x, per_span=1.0, shift=0.0, plane=out)),
        ("float32", lambda x, out: row_into(x, out=out)),
        ("float32", lambda x, out: row_into(x, x0=out)),
        ("float32", lambda x, out: row_into(x, following=ops.NextInputs(plane=out))),
        ("float32", lambda x, out: row_into(x, following=ops.NextInputs(plane=np.empty_like(x), condition=out))),
        ("float32", lambda x, out: ops.network_planes(x, sigma=1.0, sigma_data=0.5, inputs=ops.NextInputs(plane=out))),
        ("float32", lambda x, out: ops.normal(x.shape, key=(1, 2), row=0, out=out)),
        ("float32", lambda x, out: fuse_into(x, out_mean=out)),
        ("float32", lambda x, out: fuse_into(x, out_variance=out)),
        ("float32", lambda x, out: ops.fused_noise(x, out=out)),
    ],
)
def test_what_cannot_be_written_into_is_refused(implementation, fault, dtype, call):
    x = np.ones((8, 9), np.float32)
    out = refused_outputs(x.shape, dtype)[fault]
    with pytest.raises(ops.FrameError):
        call(x, out)
    assert not out.any()


def fuse_into(x, **outputs):
    limits = reference.Limits(point=3.0, small=3.0, large=3.0, motion=3.0, spread=3.0)
    ops.fuse(x, x + 1, x, n_max=4.0, limits=limits, emphasis=16.0, **outputs)


def row_into(x, **outputs):
    written = {"out": np.empty_like(x), **outputs}
    ops.sampler_row(x, x, a=0.5, b=0.5, sigma=1.0, sigma_next=0.5, sigma_data=0.5, **written)


# --- block means ---


@pytest.mark.parametrize("block_px", [1, 2, 3, 16, 35])
@pytest.mark.parametrize("dtype", [*DTYPES, "bool"])
@pytest.mark.parametrize("scaling", ["none", "numbers", "maps", "one map"])
def test_block_means(implementation, block_px, dtype, scaling):
    image = random_image((35, 2051), "uint8") > 100 if dtype == "bool" else random_image((35, 2051), dtype)
    maps = {"scale": positive_map(image.shape), "bias": positive_map(image.shape, 2)}
    chosen = {
        "none": {}, "numbers": {"scale": 0.4, "bias": 3.0}, "maps": maps, "one map": {**maps, "bias": 2.0},
    }[scaling]  # fmt: skip
    exact, single = (
        reference.block_means(
            image.astype(d) * np.asarray(chosen.get("scale", 1.0), d) + np.asarray(chosen.get("bias", 0.0), d), block_px
        )
        for d in (np.float64, np.float32)
    )
    means = ops.block_means(image, block_px, **chosen)
    assert means.dtype == np.float32
    assert_within_budget(means, single, exact, tiny=2e-6 * largest(exact))


@pytest.mark.parametrize(("shape", "block_px"), [((1024, 1024), 1024), ((513, 1030), 513)])
def test_the_largest_blocks(implementation, shape, block_px):
    image = random_image(shape, "uint16")
    exact = reference.block_means(image.astype(np.float64), block_px)
    np.testing.assert_allclose(ops.block_means(image, block_px), exact, rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "block_px"), [((8, 8), 9), ((8, 8), 0), ((8, 8), -2), ((3, 8, 8), 2), ((2000, 2000), 1025), ((0, 8), 1)]
)
def test_blocks_that_cannot_be_are_refused(implementation, shape, block_px):
    with pytest.raises(ops.FrameError):
        ops.block_means(np.zeros(shape, np.float32), block_px)


# --- network input ---


def planes(z, per_span, shift, c_in, factor, dtype):
    u = reference.to_model(z.astype(dtype), dtype(per_span), dtype(shift))
    return u, reference.pixel_unshuffle(dtype(c_in) * u, factor)


@pytest.mark.parametrize(
    ("shape", "factor"),
    [((1, 1), 1), ((17, 33), 1), ((3, 1025), 1), ((16, 34), 2), ((6, 1026), 2), ((9, 15), 3), ((6, 2052), 3),
     ((8, 1032), 4)],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("plane_dtype", ["float32", "float16", "uint16"])
@pytest.mark.parametrize("with_state", [False, True], ids=["plane", "plane and state"])
def test_network_input(implementation, shape, factor, plane_dtype, with_state):
    z = normals(shape, scale=20.0)
    height, width = shape
    plane = Guarded((factor * factor, height // factor, width // factor), plane_dtype)
    state = Guarded(shape) if with_state else None
    ops.network_input(
        z, per_span=0.04, shift=0.8, c_in=1.7, factor=factor, plane=plane.array, state=state.array if state else None
    )
    (u, exact), (u_single, single) = (planes(z, 0.04, 0.8, 1.7, factor, d) for d in (np.float64, np.float32))
    if state:
        assert_within_budget(state.check(), u_single, u, tiny=1e-6)
    fed = plane.check()
    if plane_dtype == "float32":
        assert_within_budget(fed, single, exact, tiny=1e-6)
    elif plane_dtype == "float16":
        assert_within_budget(fed.astype(np.float64), single.astype(np.float16), exact, tiny=1e-6)
    else:
        rounded = (fed.astype(np.uint32) << 16).view(np.float32)
        assert_within_budget(rounded, single, exact, tiny=2**-8 * largest(exact))


def test_the_state_alone(implementation):
    z, state = normals((5, 1500)), Guarded((5, 1500))
    ops.network_input(z, per_span=0.5, shift=1.0, state=state.array, factor=5)
    np.testing.assert_array_equal(state.check(), reference.to_model(z, np.float32(0.5), np.float32(1.0)))


@pytest.mark.parametrize(("shape", "factor"), [((6, 7), 2), ((7, 6), 2), ((6, 6), 0)])
def test_sides_are_multiples_of_the_factor(implementation, shape, factor):
    with pytest.raises(ops.FrameError, match="factor"):
        ops.network_input(np.zeros(shape, np.float32), per_span=1.0, shift=0.0, factor=factor)


def halves_and_what_lies_between():
    """Every half, its float32 neighbours, and the ties between it and the next: all that rounding can get wrong."""
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    finite = np.unique(halves[np.isfinite(halves)])
    ties = (finite[1:] + finite[:-1]) / 2
    with np.errstate(all="ignore"):
        exact = np.concatenate([halves, ties, np.float32([65520, -65520, 0.0, -0.0])])
        return np.concatenate(
            [exact, np.nextafter(exact, np.float32(np.inf)), np.nextafter(exact, np.float32(-np.inf))]
        )


def any_bits(count=2**19):
    return np.random.default_rng(3).integers(0, 2**32, count, np.uint32).view(np.float32)


def through_a_plane(values, dtype, factor):
    """The values as a plane of the network's dtype; a wide frame with no state, and a narrow one, take other loops."""
    width = 2048 if factor == 2 else 512
    z = np.zeros(-(-values.size // (2 * width)) * 2 * width, np.float32)
    z[: values.size] = values
    plane = np.empty(z.size, dtype)
    with np.errstate(all="ignore"):
        ops.network_input(z.reshape(-1, width), per_span=1.0, shift=0.0, plane=plane, factor=factor)
    cells = plane.reshape(factor, factor, -1, width // factor)
    return cells.transpose(2, 0, 3, 1).reshape(-1)[: values.size]


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("values", [halves_and_what_lies_between, any_bits])
def test_halves_are_rounded_as_numpy_rounds_them(implementation, values, factor):
    given_values = values()
    with np.errstate(all="ignore"):
        expected = given_values.astype(np.float16)
    fed = through_a_plane(given_values, np.float16, factor)
    is_number = ~np.isnan(expected)
    np.testing.assert_array_equal(fed.view(np.uint16)[is_number], expected.view(np.uint16)[is_number])
    assert np.isnan(fed[~is_number]).all()


@pytest.mark.parametrize("factor", [1, 2])
def test_bfloat16_is_the_nearest_and_ties_go_to_even(implementation, factor):
    upper = np.arange(2**16, dtype=np.uint32)
    offsets = np.uint32([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    values = np.concatenate([((upper[:, None] << 16) + offsets).reshape(-1).view(np.float32), any_bits()])
    fed = through_a_plane(values, np.uint16, factor).astype(np.uint32)
    is_nan = np.isnan(values)
    assert np.isnan((fed << 16).view(np.float32)[is_nan]).all()
    bits, fed = values.view(np.uint32)[~is_nan], fed[~is_nan]
    below, remainder = bits >> 16, bits & 0xFFFF
    expected = np.where(remainder == 0x8000, below + (below & 1), below + (remainder > 0x8000))
    np.testing.assert_array_equal(fed, expected)
