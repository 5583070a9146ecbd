"""8-bit pictures of a running stream whose limits glide, so that the picture does not flicker."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..kernels import ops
from .stream_settings import Preview

PERCENTS: Final = (0.5, 99.8)
MEMORY: Final = 0.9
NEW_SCENE: Final = 0.25  # limits that lie this share of their range from the past's start anew: no slow fade-in
LOOKED_AT_PX: Final = 1 << 16  # pixels that percentiles need; more of them cost time and change nothing on a screen


class PreviewMaker:
    """The limits of one stream's previews."""

    def __init__(self) -> None:
        self._limits: NDArray[np.float64] | None = None

    def reset(self) -> None:
        """Forget the past: the next image sets its limits alone."""
        self._limits = None

    def draw(self, image: NDArray[Any], limits: Preview, out: NDArray[np.uint8]) -> None:
        """Fill ``out``, (H, W) uint8, from an image (H, W) in any frame dtype; an image without signal is black."""
        low, high = self._tracked(image) if limits is None or isinstance(limits, str) else limits
        ops.preview_u8(image, low=float(low), high=float(high), out=out)

    def _tracked(self, image: NDArray[Any]) -> tuple[float, float]:
        step = max(1, int((image.size / LOOKED_AT_PX) ** 0.5))
        seen = image[::step, ::step]
        if seen.dtype.kind == "f":  # values that are no counts go through a restoration as they are
            usable = ops.usable_pixels(seen)
            if not usable.any():
                return (0.0, 1.0)
            seen = np.where(usable, seen, np.float32(np.nan))
        limits = np.array(ops.percentiles(seen, PERCENTS), np.float64)
        # a flat image has no range: a count below and above keeps the limits apart
        limits += (-0.5, 0.5) if limits[1] - limits[0] < 1e-6 * max(1.0, abs(limits[1])) else (0.0, 0.0)
        past = self._limits
        if past is not None and np.all(np.abs(limits - past) < NEW_SCENE * (past[1] - past[0])):
            limits = MEMORY * past + (1 - MEMORY) * limits
        self._limits = limits
        return float(limits[0]), float(limits[1])
