"""Where a stabilised frame lies in the model's range: ``u = (z - centre) / span``, tracked, never per-frame min/max."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..kernels import ops
from .manifest import Normalisation

NEW_SCENE: Final = 0.25


@dataclass(frozen=True, kw_only=True)
class ModelRange:
    """``u = (z - centre_z) / span_z``; the noise level in model units is ``1 / span_z``."""

    centre_z: float
    span_z: float

    @property
    def sigma(self) -> float:
        return 1.0 / self.span_z

    def to_model(self, z: NDArray[np.float32], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """z to u, (H, W) float32, written into ``out``."""
        u = np.empty(z.shape, np.float32) if out is None else out
        ops.network_input(z, per_span=1.0 / self.span_z, shift=self.centre_z / self.span_z, state=u)
        return u

    def from_model(self, u: NDArray[Any]) -> NDArray[np.float32]:
        """u to z, a new float32 array."""
        z: NDArray[np.float32] = np.multiply(u, np.float32(self.span_z), dtype=np.float32)
        z += np.float32(self.centre_z)
        return z


class RangeTracker:
    """The range of a running sequence: percentiles of block means, smoothed over frames so that nothing flickers.

    A frame whose levels lie a quarter of the range or more from the past's (another scene, a shutter, the next plane of
    a steep z stack) starts anew.

    Parameters
    ----------
    settings : the bundle's normalisation
    memory : weight of the past per frame; 0 looks at each frame alone
    """

    def __init__(self, settings: Normalisation, memory: float = 0.9) -> None:
        self._settings = settings
        self._memory = memory
        self._levels: NDArray[np.float64] | None = None

    def update(self, z: NDArray[np.float32]) -> ModelRange:
        """Take in a stabilised frame, (H, W) float32, and return the range to use for it."""
        s = self._settings
        block = min(s.block_px, *z.shape)
        means = ops.block_means(z, block)
        levels = np.array(ops.percentiles(means, (s.low_percent, s.high_percent)))
        if self._levels is not None and self._is_alike(levels):
            levels = self._memory * self._levels + (1 - self._memory) * levels
        self._levels = levels
        span = max(float(levels[1] - levels[0]), s.minimum_range_z) / (s.high_u - s.low_u)
        return ModelRange(centre_z=float(levels[0]) - s.low_u * span, span_z=span)

    def _is_alike(self, levels: NDArray[np.float64]) -> bool:
        past = self._levels if self._levels is not None else levels
        span = max(float(past[1] - past[0]), self._settings.minimum_range_z)
        return bool(np.all(np.abs(levels - past) < NEW_SCENE * span))
