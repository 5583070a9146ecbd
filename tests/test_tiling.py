"""Tiles: what they keep partitions the frame, what they read lies inside it and covers the halo."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from photonstep import PlanError
from photonstep.runtime.tiling import pad_to_multiple, plan_tiles


@st.composite
def plans(draw):
    multiple = draw(st.sampled_from([1, 2, 8, 16]))
    height, width = (multiple * draw(st.integers(1, 40)) for _ in range(2))
    return {
        "shape": (height, width),
        "tile_px": draw(st.integers(1, 200)),
        "halo_px": draw(st.integers(0, 90)),
        "multiple": multiple,
    }


@given(plans())
def test_kept_parts_partition_the_frame(plan):
    covered = np.zeros(plan["shape"], np.int32)
    for tile in plan_tiles(**plan):
        covered[tile.keep] += 1
    assert (covered == 1).all()


@given(plans())
def test_reads_are_inside_aligned_and_wide_enough(plan):
    for tile in plan_tiles(**plan):
        for read, keep, length in zip(tile.read, tile.keep, plan["shape"], strict=True):
            assert 0 <= read.start <= keep.start < keep.stop <= read.stop <= length
            assert read.start % plan["multiple"] == 0
            assert read.stop % plan["multiple"] == 0
            assert read.start == 0 or keep.start - read.start >= plan["halo_px"]
            assert read.stop == length or read.stop - keep.stop >= plan["halo_px"]


@given(plans())
def test_copying_through_tiles_changes_nothing(plan):
    frame = np.arange(np.prod(plan["shape"])).reshape(plan["shape"])
    copied = np.full_like(frame, -1)
    for tile in plan_tiles(**plan):
        copied[tile.keep] = frame[tile.read][tile.inner]
    np.testing.assert_array_equal(copied, frame)


def test_a_frame_within_one_tile_is_read_whole():
    (tile,) = plan_tiles((64, 96), tile_px=96, halo_px=32, multiple=16)
    assert tile.read == tile.keep == tile.inner == (slice(0, 64), slice(0, 96))


def test_no_tile_keeps_more_than_was_asked_for_rounded_up():
    for tile in plan_tiles((160, 320), tile_px=50, halo_px=10, multiple=16):
        assert all(part.stop - part.start <= 64 for part in tile.keep)


@pytest.mark.parametrize(
    "changes",
    [{"shape": (60, 64)}, {"shape": (64, 0)}, {"tile_px": 0}, {"halo_px": -1}, {"multiple": 0}],
    ids=lambda c: str(c),
)
def test_what_does_not_fit_the_grid_is_refused(changes):
    plan = {"shape": (64, 64), "tile_px": 32, "halo_px": 8, "multiple": 16, **changes}
    with pytest.raises(PlanError, match=r"tiles of .* px grid"):
        plan_tiles(**plan)


@given(st.integers(1, 50), st.integers(1, 50), st.sampled_from([1, 2, 8, 16]))
def test_padding_reaches_the_grid_and_keeps_the_frame(height, width, multiple):
    image = np.random.default_rng(0).normal(size=(height, width)).astype(np.float32)
    padded = pad_to_multiple(image, multiple)
    assert padded.dtype == image.dtype
    for was, now in zip(image.shape, padded.shape, strict=True):
        assert now % multiple == 0
        assert 0 <= now - was < multiple
    np.testing.assert_array_equal(padded[:height, :width], image)
    assert np.isin(padded, image).all()


def test_padding_reflects_the_edge():
    image = np.arange(12.0).reshape(3, 4)
    padded = pad_to_multiple(image, 5)
    np.testing.assert_array_equal(padded[3:, :4], image[[2, 1]])
    np.testing.assert_array_equal(padded[:3, 4], image[:, 3])


def test_a_frame_that_fits_is_not_copied():
    image = np.zeros((32, 48), np.float32)
    assert pad_to_multiple(image, 16) is image
