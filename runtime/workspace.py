"""Arrays that are allocated once and written again for every frame, so that a running stream allocates nothing."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import numpy as np
from numpy.typing import NDArray

ARRAYS_KEPT: Final = 12  # a few arrays for each of the last few frame shapes


class Workspace:
    """Named float32 arrays; one that was handed out is valid until it is asked for again with the same shape."""

    def __init__(self) -> None:
        self._arrays: OrderedDict[tuple[str, tuple[int, ...]], NDArray[np.float32]] = OrderedDict()

    def array(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """The array of that name and shape, C order; what it holds is arbitrary."""
        key = (name, shape)
        if key not in self._arrays:
            self._arrays[key] = np.empty(shape, np.float32)
            while len(self._arrays) > ARRAYS_KEPT:
                self._arrays.popitem(last=False)
        self._arrays.move_to_end(key)
        return self._arrays[key]

    @property
    def nbytes(self) -> int:
        """Memory held, bytes."""
        return sum(array.nbytes for array in self._arrays.values())
