"""What a restoration will do, and what came of it."""

from __future__ import annotations

import numbers
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from numpy.typing import NDArray

from . import samplers, schedule
from .camera import Camera
from .errors import PlanError
from .manifest import MAX_SIDE_PX, ModelSpec

WHOLE_FRAME_PX: Final = 2048  # a frame with both sides within this runs as one tile
TILE_PX: Final = 1024
MINIMUM_SIDE_PX: Final = 16

Output = Literal["input", "photoelectrons"]
OUTPUTS: Final[tuple[Output, ...]] = ("input", "photoelectrons")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a restoration will do: evaluations, sampler, detail, levels, tile size; goes into the provenance."""

    steps: int
    sampler: str = "ddim"
    detail: float = 0.0
    output: Output = "input"
    seed: int = 0
    report: bool = False
    tile_px: int | None = None

    def __post_init__(self) -> None:
        if not _is_whole(self.steps) or not 1 <= self.steps <= 1000:
            raise PlanError(
                f"steps is {self.steps!r}; expected an integer from 1 (safe mean) to 4 (detail), at most 1000"
            )
        if isinstance(self.detail, bool) or not isinstance(self.detail, numbers.Real) or not 0 <= self.detail <= 1:
            raise PlanError(f"detail is {self.detail!r}; expected a number from 0 (mean) to 1 (most texture)")
        if self.output not in OUTPUTS:
            raise PlanError(f"output is {self.output!r}; choose one of {', '.join(OUTPUTS)}")
        if self.tile_px is not None and not (_is_whole(self.tile_px) and self.tile_px >= MINIMUM_SIDE_PX):
            raise PlanError(f"tile_px is {self.tile_px!r}; expected a whole number, {MINIMUM_SIDE_PX} or more")
        if not _is_whole(self.seed) or self.seed < 0:
            raise PlanError(f"seed is {self.seed!r}; expected a whole number, 0 or more")
        self.rows()

    def rows(self) -> samplers.Table:
        """The sampler's table in units of the measured noise level, 1 -> 0."""
        return samplers.table(self.sampler, schedule.measured(self.steps))

    def as_dict(self) -> dict[str, Any]:
        return {
            "steps": int(self.steps),
            "sampler": self.sampler,
            "detail": float(self.detail),
            "output": self.output,
            "seed": int(self.seed),
        }


@dataclass(frozen=True, kw_only=True)
class Result:
    """A restored frame or stack and how it came about.

    ``image`` has the input's shape (twice the side for super-resolution), and its dtype and units (ADU) or float32
    photoelectrons, both per measured pixel. ``sigma`` is the measured noise level in model units (of the last plane).
    ``network_ms`` is the part of ``latency_ms`` spent inside the network. ``flags`` name reasons to distrust the
    result. ``report`` holds the residual statistics when asked for. ``backend`` is the library that ran the network:
    while an engine is built, another one than was asked for. On a GPU ``network_ms`` is 0: nothing waits for the
    network alone.
    """

    image: NDArray[Any]
    sigma: float
    steps: int
    latency_ms: float
    network_ms: float
    flags: tuple[str, ...]
    camera: Camera
    plan: dict[str, Any]
    report: dict[str, float] = field(default_factory=dict)
    backend: str = ""


def side_of_tile(plan: Plan, model: ModelSpec, side_px: int) -> int:
    """Side of a tile; a network that sees the whole frame (attention, normalisation over space) runs in one piece."""
    if model.receptive_radius_px < MAX_SIDE_PX:
        return plan.tile_px or (WHOLE_FRAME_PX if side_px <= WHOLE_FRAME_PX else TILE_PX)
    if plan.tile_px is not None and plan.tile_px < side_px:
        raise PlanError(
            f"tile_px is {plan.tile_px}, but every pixel of this network sees the whole frame, so that tiles would "
            "change the result; leave tile_px out, or crop the frame"
        )
    return side_px


def _is_whole(number: object) -> bool:
    return isinstance(number, numbers.Integral) and not isinstance(number, bool)
