"""Arrays that are allocated once."""

import numpy as np

from photonstep.runtime.workspace import ARRAYS_KEPT, Workspace


def test_the_same_name_and_shape_is_the_same_array():
    space = Workspace()
    first = space.array("z", (4, 5))
    assert first.shape == (4, 5)
    assert first.dtype == np.float32
    assert space.array("z", (4, 5)) is first
    assert space.array("electrons", (4, 5)) is not first
    assert space.array("z", (5, 4)) is not first
    assert space.nbytes == 3 * 20 * 4


def test_shapes_that_are_no_longer_asked_for_are_given_back():
    space = Workspace()
    kept = space.array("z", (8, 8))
    for side in range(1, ARRAYS_KEPT):
        space.array("z", (side, 9))
    assert space.array("z", (8, 8)) is kept
    for side in range(1, ARRAYS_KEPT + 1):
        space.array("z", (side, 9))
    assert space.array("z", (8, 8)) is not kept
