"""What a live stream hands out: a restored frame in a leased buffer, and how it came about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .camera import Camera
from .errors import DeadlineMissed, StreamError
from .lease import Lease

FLAGS = {
    "late": "the result came after its deadline",
    "deadline_raw": "no restoration would have come in time: the image is the raw frame",
    "restore_failed": "this frame could not be restored, see `error`: the image is the raw frame",
    "device_lost": "the restorer's device fails, see `error`: another restorer made the image, or it is the raw frame",
}


@dataclass(frozen=True, kw_only=True)
class FrameTimes:
    """When things happened to a frame, nanoseconds of the stream's clock (`time.perf_counter_ns`).

    ``capture_ns`` is the caller's, or the time of put; ``started_ns`` the worker took the frame; ``restored_ns`` image
    and preview were done; ``delivered_ns`` a consumer took the result. ``network_ms`` was spent inside the network.
    """

    capture_ns: int
    put_ns: int
    started_ns: int
    restored_ns: int
    delivered_ns: int
    network_ms: float

    @property
    def queue_ms(self) -> float:
        """Put to start of work."""
        return (self.started_ns - self.put_ns) / 1e6

    @property
    def compute_ms(self) -> float:
        """Start of work to result, preview included."""
        return (self.restored_ns - self.started_ns) / 1e6

    @property
    def deliver_ms(self) -> float:
        """Result to consumer."""
        return (self.delivered_ns - self.restored_ns) / 1e6

    @property
    def total_ms(self) -> float:
        """Capture to consumer."""
        return (self.delivered_ns - self.capture_ns) / 1e6


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known about a result, apart from its pixels."""

    steps: int
    plan: str
    flags: tuple[str, ...]
    sigma: float
    network_ms: float
    camera: Camera | None
    error: str | None


class LiveResult:
    """One frame of a live stream, restored or labelled as raw.

    Attributes
    ----------
    frame_id : 0, 1, 2... in the order of put
    steps : network evaluations; 0 for a raw frame
    plan : "K=4", "K=2", "K=1", "live K=1" (a fallback by its name) or "raw"
    flags : those of `Result` and of `FLAGS` here
    sigma : measured noise level, model units; NaN for a raw frame
    times : FrameTimes
    camera : the camera used; None where there was none yet
    error : why the frame was not restored as asked, or None
    """

    __slots__ = ("_lease", "_returned", "camera", "error", "flags", "frame_id", "plan", "sigma", "steps", "times")

    def __init__(
        self, *, frame_id: int, facts: Facts, times: FrameTimes, lease: Lease, returned: Callable[[], None]
    ) -> None:
        self.frame_id = frame_id
        self.steps, self.plan, self.flags = facts.steps, facts.plan, facts.flags
        self.sigma, self.camera, self.error = facts.sigma, facts.camera, facts.error
        self.times = times
        self._lease = lease
        self._returned = returned

    def __repr__(self) -> str:
        return f"LiveResult(frame_id={self.frame_id}, plan={self.plan!r}, flags={self.flags})"

    @property
    def image(self) -> NDArray[Any]:
        """(H, W) in the frame's dtype and units (twice the side for super-resolution), read-only, leased.

        Raises
        ------
        StreamError : the result was released
        """
        if self._lease.image is None:
            raise StreamError(f"frame {self.frame_id} was released; copy the image before, or release it later")
        return self._lease.image

    @property
    def preview_u8(self) -> NDArray[np.uint8] | None:
        """(H, W) uint8 for a screen, read-only, leased; None where the stream makes none.

        Raises
        ------
        StreamError : the result was released
        """
        if self._lease.released:
            raise StreamError(f"frame {self.frame_id} was released; copy the preview before, or release it later")
        return self._lease.preview

    def raise_if_late(self) -> None:
        """For callers that must not go on with a late or raw frame.

        Raises
        ------
        DeadlineMissed : the result is flagged ``late`` or ``deadline_raw``
        """
        if missed := {"late", "deadline_raw"} & set(self.flags):
            age_ms = (self.times.restored_ns - self.times.capture_ns) / 1e6
            raise DeadlineMissed(
                f"frame {self.frame_id} ({self.plan}) is {', '.join(sorted(missed))}: done {age_ms:.1f} ms after its "
                "capture; give it more time, fewer steps or a smaller frame"
            )

    def release(self) -> None:
        """Give the buffers back to the stream; views that are still held may then change. Again does nothing."""
        if not self._lease.released:
            self._lease.release()
            self._returned()

    def __enter__(self) -> LiveResult:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
