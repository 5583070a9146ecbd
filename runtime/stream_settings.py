"""What a live stream is told to do: checked when it is made, never changed afterwards."""

from __future__ import annotations

import numbers
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict, get_args

from numpy.typing import NDArray

from .camera import Camera
from .errors import CameraError, StreamError
from .temporal import FusionSettings

if TYPE_CHECKING:
    from .restore import Restorer

Policy = Literal["latest", "all", "drop_oldest"]
Preview = Literal["auto"] | tuple[float, float] | None
HOT: Final = ("camera", "deadline_ms", "preview", "steps", "temporal")


@dataclass(frozen=True, kw_only=True)
class Drop:
    """An accepted frame that no consumer got, and why: one of `stream_stats.DROP_REASONS`."""

    frame_id: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """Settings of a live stream.

    Parameters
    ----------
    camera : its numbers; None estimates them from the first frame that allows it, and keeps them
    deadline_ms : from capture to result; None sets no limit, and every frame gets ``steps``
    policy : "latest" (a newer frame replaces a waiting one), "all" (nothing is replaced, `put` refuses when the ring is
        full) or "drop_oldest" (the oldest waiting frame makes room)
    temporal : fuse the measurements of successive frames where nothing moves: True, or `FusionSettings`
    steps : most network evaluations per frame; None takes the bundle's default
    preview : 8-bit pictures: "auto" (smoothed percentiles), (low, high) in the image's units, or None for none
    ring : frames that may wait; "latest" keeps one
    buffers : results that may exist at a time: in work, undelivered, or held by the consumer
    fallback : restorer for when the first is too slow or fails; "auto" opens the bundle `live` when there is a deadline
        and the first is another one; None has none
    keep_warm_ms : after so long without a frame a small evaluation keeps threads and caches warm, again and again; None
        does not
    freeze_gc : `gc.freeze` after ``warm_up`` or the first frame of the stream, for the whole process
    warm_up : a frame like those that will come: what their first one would pay is paid before the stream opens
    on_drop : called with a `Drop` for every frame that no consumer gets, on a thread of its own
    callback_crashes : a callback that raises so many times in a row is called no more
    clock_ns : the clock of all times, ns

    Raises
    ------
    StreamError : a value that the stream cannot take
    CameraError : the camera is none
    """

    camera: Camera | None = None
    deadline_ms: float | None = None
    policy: Policy = "latest"
    temporal: bool | FusionSettings = False
    steps: int | None = None
    preview: Preview = "auto"
    ring: int = 8
    buffers: int = 4
    fallback: Restorer | Literal["auto"] | None = "auto"
    keep_warm_ms: float | None = 250.0
    freeze_gc: bool = False
    warm_up: NDArray[Any] | None = None
    on_drop: Callable[[Drop], None] | None = None
    callback_crashes: int = 5
    clock_ns: Callable[[], int] = time.perf_counter_ns

    def __post_init__(self) -> None:
        if not isinstance(self.camera, Camera | None):
            raise CameraError(
                f"camera is a {type(self.camera).__name__}; expected a photonstep.Camera, or None to estimate it"
            )
        if self.policy not in get_args(Policy):
            raise StreamError(f"policy is {self.policy!r}; choose one of {', '.join(get_args(Policy))}")
        for name in ("deadline_ms", "keep_warm_ms"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and 0 < value < float("inf")):
                raise StreamError(f"{name} is {value!r}; expected milliseconds above 0, or None")
        for name, least in (("ring", 1), ("buffers", 2), ("callback_crashes", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= 1024:
                raise StreamError(f"{name} is {value!r}; expected a whole number from {least} to 1024")
        if not isinstance(self.temporal, bool | FusionSettings):
            raise StreamError(f"temporal is {self.temporal!r}; expected True, False or FusionSettings")
        if not isinstance(self.freeze_gc, bool):
            raise StreamError(f"freeze_gc is {self.freeze_gc!r}; expected True or False")
        self._check_preview()
        if isinstance(self.fallback, str) and self.fallback != "auto":
            raise StreamError(f"fallback is {self.fallback!r}; pass photonstep.load({self.fallback!r}), 'auto' or None")
        if self.on_drop is not None and not callable(self.on_drop):
            raise StreamError(f"on_drop is a {type(self.on_drop).__name__}; expected a function of one Drop, or None")

    @property
    def depth(self) -> int:
        """Frames that may wait."""
        return 1 if self.policy == "latest" else self.ring

    def updated(self, **changes: Any) -> StreamSettings:
        """The settings with some of `HOT` changed.

        Raises
        ------
        StreamError : a value that the stream cannot take, no such setting, or one that is fixed once the stream is open
        """
        check_names(changes)
        if fixed := sorted(set(changes) - set(HOT)):
            raise StreamError(f"{', '.join(fixed)} cannot change in an open stream; expected some of {', '.join(HOT)}")
        return replace(self, **changes)

    def _check_preview(self) -> None:
        limits = self.preview
        if limits is None or limits == "auto":
            return
        if not isinstance(limits, tuple | list) or len(limits) != 2 or not all(map(_is_number, limits)):
            raise StreamError(f"preview is {limits!r}; expected 'auto', (low, high) in the image's units, or None")
        if not -float("inf") < limits[0] < limits[1] < float("inf"):
            raise StreamError(f"preview is {limits!r}; expected finite limits, the low one below the high one")


class StreamOptions(TypedDict, total=False):
    """The keywords of `Restorer.stream`: the fields of `StreamSettings`, all optional."""

    camera: Camera | None
    deadline_ms: float | None
    policy: Policy
    temporal: bool | FusionSettings
    steps: int | None
    preview: Preview
    ring: int
    buffers: int
    fallback: Restorer | Literal["auto"] | None
    keep_warm_ms: float | None
    freeze_gc: bool
    warm_up: NDArray[Any] | None
    on_drop: Callable[[Drop], None] | None
    callback_crashes: int
    clock_ns: Callable[[], int]


class HotOptions(TypedDict, total=False):
    """The keywords of `LiveStream.update`."""

    camera: Camera | None
    deadline_ms: float | None
    temporal: bool | FusionSettings
    steps: int | None
    preview: Preview


SETTING_NAMES: Final = tuple(field.name for field in fields(StreamSettings))


def check_names(settings: Iterable[str]) -> None:
    """A StreamError where one of the names is no setting."""
    for name in settings:
        if name not in SETTING_NAMES:
            near = get_close_matches(name, SETTING_NAMES, n=1, cutoff=0.5)
            meant = f"did you mean {near[0]}? " if near else ""
            raise StreamError(f"a stream has no setting {name!r}; {meant}expected some of {', '.join(SETTING_NAMES)}")


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
