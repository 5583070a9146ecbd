"""Noise that belongs to frame and pixel, and the sampler row that adds it: every implementation against the oracle."""

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

KEY = (0x243F6A88, 0x85A308D3)
words = st.integers(0, 2**32 - 1)


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    with running(request.param):
        yield request.param


# --- Philox ---

# Random123's kat_vectors, philox4x32 with 10 rounds: counter, key, result
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words_of(text):
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers(counter, key, expected):
    found = reference.philox4x32(tuple(np.array([w], np.uint64) for w in words_of(counter)), tuple(words_of(key)))
    assert [int(word[0]) for word in found] == words_of(expected)


def test_the_first_pixels_are_made_of_the_first_known_answer(implementation):
    """Pixels 0 to 3 of line 0 stand for counter (0, 0, 0, 0): words to (0, 1), then Box and Muller's pairs."""
    u = [((word >> 9) + 0.5) / 2**23 for word in words_of(KNOWN_ANSWERS[0][2])]
    pairs = [np.sqrt(-2 * np.log(u[i])) * np.exp(2j * np.pi * u[i + 1]) for i in (0, 2)]
    expected = [pairs[0].real, pairs[0].imag, pairs[1].real, pairs[1].imag]
    np.testing.assert_allclose(ops.normal((1, 4), key=(0, 0), row=0)[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("origin", [(0, 0), (5, 1), (70_000, 2), (3, 2**31 + 3)], ids=str)
def test_normal(implementation, shape, origin):
    place = {"key": KEY, "row": 3, "origin": origin}
    exact, single = (reference.normal(shape, **place, dtype=d) for d in (np.float64, np.float32))
    out = Guarded(shape)
    ops.normal(shape, **place, out=out.array)
    assert_within_budget(out.check(), single, exact, tiny=2e-6)


def test_normal_is_accurate_for_every_kind_of_word(implementation):
    """A million words hold some close to 0 and to 1, where a uniform number that is rounded would show."""
    noise = ops.normal((1000, 1000), key=KEY, row=0)
    assert largest(noise - reference.normal((1000, 1000), key=KEY, row=0)) < 3e-6


@given(words, words, words, words, words, st.sampled_from(IMPLEMENTATIONS))
def test_any_counter_and_key(y, x, row, low, high, implementation):
    origin = (min(y, 2**32 - 3), min(x, 2**32 - 9))
    place = {"key": (low, high), "row": row, "origin": origin}
    with running(implementation):
        noise = ops.normal((2, 6), **place)
    np.testing.assert_allclose(noise, reference.normal((2, 6), **place), rtol=0, atol=3e-6)


@given(st.data(), st.sampled_from(IMPLEMENTATIONS))
def test_a_window_holds_its_part_of_the_whole_frames_noise(data, implementation):
    top, left = data.draw(st.integers(0, 19)), data.draw(st.integers(0, 1199))
    height, width = data.draw(st.integers(1, 20 - top)), data.draw(st.integers(1, 1200 - left))
    with running(implementation):
        whole = ops.normal((20, 1200), key=KEY, row=1)
        window = ops.normal((height, width), key=KEY, row=1, origin=(top, left))
    np.testing.assert_array_equal(window, whole[top : top + height, left : left + width])


def test_moments_are_those_of_unit_normals(implementation):
    noise = ops.normal((1024, 1024), key=KEY, row=0).astype(np.float64)
    error = 1 / 1024  # standard error of the mean of a million; of the higher moments it is times the root given
    assert abs(noise.mean()) < 5 * error
    assert abs(noise.var() - 1) < 5 * error * np.sqrt(2)
    assert abs((noise**3).mean()) < 5 * error * np.sqrt(15)
    assert abs((noise**4).mean() - 3) < 5 * error * np.sqrt(96)
    assert 4 < np.abs(noise).max() < 6


@pytest.mark.parametrize(
    "other",
    [
        {"row": 1}, {"key": (KEY[0] ^ 1, KEY[1])}, {"key": (KEY[0], KEY[1] ^ 1)}, {"key": KEY[::-1]},
        {"origin": (1, 0)}, {"origin": (0, 1)}, {"origin": (0, 4)},
    ],
    ids=str,
)  # fmt: skip
def test_rows_keys_and_places_are_independent(implementation, other):
    first = ops.normal((512, 512), key=KEY, row=0)
    second = ops.normal((512, 512), **{"key": KEY, "row": 0, **other})
    assert abs(float(np.mean(first * second))) < 5 / 512
    assert abs(float(np.mean(first**2 * second**2)) - 1) < 5 * 3 / 512


def test_neighbours_are_independent(implementation):
    """Two pixels share a pair of Box and Muller's, four share a counter: none of it may be seen."""
    noise = ops.normal((512, 512), key=KEY, row=0).astype(np.float64)
    for lag in range(1, 6):
        for a, b in ((noise[:, lag:], noise[:, :-lag]), (noise[lag:], noise[:-lag])):
            assert abs(np.mean(a * b)) < 5 / 510
            assert abs(np.mean(a**2 * b**2) - 1) < 5 * 3 / 510


@pytest.mark.parametrize(
    "place",
    [
        {"key": (-1, 0), "row": 0}, {"key": (0, 2**32), "row": 0}, {"key": KEY, "row": -1}, {"key": KEY, "row": 2**32},
        {"key": KEY, "row": 0, "origin": (-1, 0)}, {"key": KEY, "row": 0, "origin": (0, 2**32 - 3)},
    ],
    ids=str,
)  # fmt: skip
def test_places_that_cannot_be_are_refused(implementation, place):
    x = normals((4, 5))
    with pytest.raises(ops.FrameError, match="from 0 to"):
        ops.normal((4, 5), **place)
    with pytest.raises(ops.FrameError, match="from 0 to"):
        walk(x, x, n=0.5, noise=ops.RowNoise(**place), out=np.empty_like(x))


# --- the content key ---


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_content_key(implementation, shape, dtype):
    frame = random_image(shape, dtype)
    assert ops.content_key(frame) == reference.content_key(frame)
    limit = 100 if dtype == "uint8" else 500
    assert ops.count_at_least(frame, limit) == np.count_nonzero(frame >= limit)


def test_what_is_no_number_is_not_full(implementation):
    frame = np.float32([[np.nan, np.inf, -np.inf, 3.0, 4.0]])
    assert ops.count_at_least(frame, 4.0) == 2


@given(st.data(), st.sampled_from(DTYPES), st.sampled_from(IMPLEMENTATIONS))
def test_any_changed_pixel_changes_both_numbers_of_the_key(data, dtype, implementation):
    frame = random_image((6, 21), dtype, seed=data.draw(st.integers(0, 99)))
    place = data.draw(st.integers(0, 5)), data.draw(st.integers(0, 20))
    with running(implementation):
        key = ops.content_key(frame)
        changed = frame.copy()
        bits = changed.view(f"u{frame.itemsize}")
        bits[place] ^= 1 << data.draw(st.integers(0, 8 * frame.itemsize - 1))
        other = ops.content_key(changed)
    assert key[0] != other[0]
    assert key[1] != other[1]


@given(st.data(), st.sampled_from(DTYPES), st.sampled_from(IMPLEMENTATIONS))
def test_a_moved_pixel_changes_the_key(data, dtype, implementation):
    """The sum is the same in any order of evaluation, yet not for pixels in another order."""
    frame = np.full((6, 21), 7, dtype)
    places = data.draw(st.lists(st.integers(0, frame.size - 1), min_size=2, max_size=2, unique=True))
    keys = []
    with running(implementation):
        for place in places:
            moved = frame.copy()
            moved.flat[place] = 8
            keys.append(ops.content_key(moved))
    assert keys[0][0] != keys[1][0]
    assert keys[0][1] != keys[1][1]


def test_seeds_give_other_keys_and_seed_0_the_frames_own():
    keys = {ops.seeded_key(KEY, seed) for seed in (*range(100), 2**32, 2**63, 2**64 - 1)}
    assert len(keys) == 103
    assert ops.seeded_key(KEY, 0) == KEY
    with pytest.raises(ops.FrameError, match="-1"):
        ops.seeded_key(KEY, -1)


def test_a_seed_may_be_a_number_of_numpy(implementation):
    key = ops.seeded_key(KEY, np.int64(5))
    assert key == ops.seeded_key(KEY, 5)
    np.testing.assert_array_equal(
        ops.normal((2, 3), key=key, row=0), ops.normal((2, 3), key=(KEY[0] ^ 5, KEY[1]), row=0)
    )


# --- sampler row ---


def walk(x, network, **given):
    row = {"a": 0.4, "b": 0.6, "sigma": 0.9, "sigma_next": 0.3, "sigma_data": 0.5, **given}
    ops.sampler_row(x, network, **row)


def row_as_written(arrays, row, levels, noise, d):
    """The row's formula in one dtype: (state, x0, plane, condition)."""
    x, network, before, seen = (array.astype(d) for array in arrays)
    scale = d(1) if levels is None else levels.astype(d)
    number = {name: d(value) for name, value in row.items()}
    x0 = reference.x0_hat(x, network, number["sigma"] * scale, number["sigma_data"])
    state = number["a"] * x + number["b"] * x0 + number["p"] * before + number["y"] * seen
    state = state + number["n"] * (scale * reference.normal(x.shape, **noise, dtype=d))
    level = number["sigma_next"] * scale
    plane = reference.edm(level, number["sigma_data"]).c_in * state
    condition = reference.noise_condition(level, number["sigma_min"]) * np.ones_like(state)
    return state, x0, plane, condition


ROWS = {
    "ddim": {"a": 0.4, "b": 0.6},
    "last": {"a": 0.0, "b": 1.0, "sigma_next": 0.0},
    "ancestral": {"a": 0.2, "b": 0.8, "n": 0.35},
    "second order": {"a": 0.5, "b": 0.9, "p": -0.4},
    "anchored bridge": {"a": 0.3, "b": 0.5, "y": 0.2, "n": 0.1},
}
BASE = {"n": 0.0, "y": 0.0, "p": 0.0, "sigma": 0.9, "sigma_next": 0.3, "sigma_data": 0.5, "sigma_min": 0.002}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("with_map", [False, True], ids=["number", "map"])
def test_sampler_row(implementation, shape, row, with_map):
    row, place = {**BASE, **ROWS[row]}, {"key": KEY, "row": 2, "origin": (7, 3)}
    arrays = [normals(shape, seed) for seed in range(4)]
    levels = positive_map(shape, low=0.0) if with_map else None
    if with_map:
        levels.flat[::5] = 0  # a noiseless pixel
    kept = [array.copy() for array in arrays]
    written = [Guarded(shape) for _ in range(4)]
    out, x0, plane, condition = (guarded.array for guarded in written)
    ops.sampler_row(
        arrays[0], arrays[1], **row, x0_before=arrays[2], measurement=arrays[3], sigma_map=levels,
        noise=ops.RowNoise(**place), out=out, x0=x0, following=ops.NextInputs(plane=plane, condition=condition),
    )  # fmt: skip
    exact, single = (row_as_written(arrays, row, levels, place, d) for d in (np.float64, np.float32))
    for guarded, s, e in zip(written, single, exact, strict=True):
        assert_within_budget(guarded.check(), s, e, tiny=3e-6)
    for array, before in zip(arrays, kept, strict=True):
        np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize("with_map", [False, True], ids=["number", "map"])
def test_outputs_may_take_the_place_of_inputs(implementation, with_map):
    """The state over the state, x0 over the x0 before: a walk needs no more than two arrays."""
    shape = (20, 1100)
    x, network, before = (normals(shape, seed) for seed in range(3))
    given_map = {"sigma_map": positive_map(shape)} if with_map else {}
    out, x0 = np.empty_like(x), np.empty_like(x)
    walk(x, network, p=0.3, x0_before=before, out=out, x0=x0, **given_map)
    state, estimate = x.copy(), before.copy()
    walk(state, network, p=0.3, x0_before=estimate, out=state, x0=estimate, **given_map)
    np.testing.assert_array_equal(state, out)
    np.testing.assert_array_equal(estimate, x0)
    state = x.copy()
    walk(state, network, p=0.3, x0_before=before, out=out, x0=state, **given_map)
    np.testing.assert_array_equal(state, x0)


def test_optional_outputs_change_nothing(implementation):
    x, network = normals((5, 1030)), normals((5, 1030), 1)
    all_of_them, state_only = np.empty_like(x), np.empty_like(x)
    inputs = ops.NextInputs(plane=np.empty_like(x), condition=np.empty_like(x))
    walk(x, network, out=all_of_them, x0=np.empty_like(x), following=inputs)
    walk(x, network, out=state_only)
    np.testing.assert_array_equal(all_of_them, state_only)


def test_tiles_walk_as_the_whole_frame_does(implementation):
    x, network, levels = normals((24, 2100)), normals((24, 2100), 1), positive_map((24, 2100))
    whole = np.empty_like(x)
    walk(x, network, n=0.3, sigma_map=levels, noise=ops.RowNoise(key=KEY, row=1), out=whole)
    for tile in (np.s_[0:9, 0:1027], np.s_[9:24, 0:1027], np.s_[0:24, 1027:2100]):
        origin = tile[0].start, tile[1].start
        noise, out = ops.RowNoise(key=KEY, row=1, origin=origin), np.empty(x[tile].shape, np.float32)
        walk(x[tile], network[tile], n=0.3, sigma_map=levels[tile], noise=noise, out=out)
        np.testing.assert_array_equal(out, whole[tile])


@pytest.mark.parametrize("name", ["x0_before", "measurement", "noise"])
def test_what_a_row_weighs_must_be_given(implementation, name):
    x = normals((4, 5))
    weight = {"x0_before": "p", "measurement": "y", "noise": "n"}[name]
    with pytest.raises(ops.FrameError, match=f"{name} by 0.5"):
        walk(x, x, out=np.empty_like(x), **{weight: 0.5})


# --- the network's planes ---


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("with_map", [False, True], ids=["number", "map"])
def test_network_planes(implementation, shape, with_map):
    x, levels = normals(shape), positive_map(shape, low=0.0) if with_map else None
    plane, condition = Guarded(shape), Guarded(shape)
    inputs = ops.NextInputs(plane=plane.array, condition=condition.array)
    ops.network_planes(x, sigma=0.7, sigma_data=0.5, sigma_map=levels, inputs=inputs)
    exact, single = (
        (
            reference.edm(level, d(0.5)).c_in * x.astype(d),
            reference.noise_condition(level, d(0.002)) * np.ones(shape, d),
        )
        for d in (np.float64, np.float32)
        for level in [d(0.7) * (d(1) if levels is None else levels.astype(d))]
    )
    for guarded, s, e in zip((plane, condition), single, exact, strict=True):
        assert_within_budget(guarded.check(), s, e, tiny=1e-6)


def test_the_logarithm_is_good_to_few_ulp(implementation):
    """Through the plane of noise levels, for mantissas of every exponent and all that lies close to 1."""
    smallest = np.finfo(np.float32).tiny
    rng = np.random.default_rng(5)
    bits = rng.integers(np.float32(smallest).view(np.uint32), np.float32(np.inf).view(np.uint32), 2**19, np.uint32)
    one = np.float32(1).view(np.uint32) + np.arange(-(2**16), 2**16).astype(np.uint32)
    levels = np.concatenate([bits, one]).view(np.float32).reshape(-1, 512)
    condition = np.empty_like(levels)
    inputs = ops.NextInputs(plane=np.empty_like(levels), condition=condition)
    with np.errstate(all="ignore"):
        ops.network_planes(
            np.zeros_like(levels), sigma=1.0, sigma_data=0.5, sigma_min=float(smallest), sigma_map=levels, inputs=inputs
        )
    exact = np.log(levels.astype(np.float64)) / 4
    ulp = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
    # the kernel promises 2, NumPy's own 4
    assert np.max(np.abs(condition - exact) / ulp) <= (4 if implementation == "reference" else 2)
