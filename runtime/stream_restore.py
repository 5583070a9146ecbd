"""One frame of a live stream: the plan that fits its deadline, on the restorer that works."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from numpy.typing import NDArray

from . import pixel_integration
from .camera import Camera
from .deadline import RAW, Ladder, Rung, rungs_of
from .errors import BackendError, PhotonstepError
from .live_result import Facts
from .normalise import RangeTracker
from .stream_settings import StreamSettings
from .temporal import FusionSettings, TemporalFusion

if TYPE_CHECKING:
    from .backends.protocol import Session
    from .restore import Restorer

log = logging.getLogger("photonstep.stream")
FIRST_RETRY_S: Final = 0.5
LONGEST_RETRY_S: Final = 30.0
KEEP_WARM_PX: Final = 96


@dataclass(eq=False, kw_only=True)
class Source:
    """A restorer, its memory of brightness for this stream, and whether it works."""

    name: str  # "" for the stream's own
    restorer: Restorer
    tracker: RangeTracker
    warmed: set[tuple[Any, ...]] = field(default_factory=set)
    lost: str | None = None  # why the device failed
    lost_session: Session | None = None  # the one that failed
    retry_ns: int = 0
    retry_s: float = FIRST_RETRY_S


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was run, what came of it, and how long the restoration took."""

    rung: Rung
    facts: Facts
    run_ms: float


class StreamRestorer:
    """Everything about restoring that a stream remembers from frame to frame. One worker owns it."""

    def __init__(self, restorer: Restorer, *, clock_ns: Callable[[], int], report: Callable[[str], None]) -> None:
        self._clock_ns, self._report = clock_ns, report
        self._sources = [Source(name="", restorer=restorer, tracker=restorer.tracker())]
        self._estimated: Camera | None = None
        self._camera: Camera | None = None
        self._fusion: TemporalFusion | None = None
        self._warm_frame: NDArray[Any] | None = None
        self.ladder = Ladder()

    @property
    def scale(self) -> int:
        """Sides of a result over sides of its frame."""
        return self._main.restorer.bundle.manifest.scale

    @property
    def restorers(self) -> tuple[Restorer, ...]:
        """The stream's own, then its fallback if it has one."""
        return tuple(source.restorer for source in self._sources)

    @property
    def has_fallback(self) -> bool:
        return len(self._sources) > 1

    def add_fallback(self, fallback: Restorer) -> None:
        """Use another restorer where the first is too slow or fails."""
        name = fallback.bundle.manifest.name
        # a new list: the worker may be looking at the old one
        self._sources = [*self._sources, Source(name=name, restorer=fallback, tracker=fallback.tracker())]

    def reset(self) -> None:
        """The scene, focus or exposure changed: forget brightness and fused measurements."""
        for source in self._sources:
            source.tracker = source.restorer.tracker()
        self._forget_fused()

    def restore(self, frame: NDArray[Any], settings: StreamSettings, *, capture_ns: int, out: NDArray[Any]) -> Outcome:
        """Restore into ``out``, or copy the raw frame there and say why; raises nothing that a frame can cause.

        Parameters
        ----------
        frame : (H, W) uint8, uint16 or float32, ADU
        settings : of this frame
        capture_ns : when its deadline started
        out : (H scale, W scale) of the frame's dtype
        """
        self.ladder.next_frame()
        flags: list[str] = []
        errors: list[str] = []
        try:
            camera = self._camera_of(frame, settings)
            self._revive()
            self._prepare(frame, camera, settings)
            outcome = self._climb(frame, camera, settings, capture_ns, out, flags)
        except Exception as error:  # whatever a frame does to the restoration, the stream goes on
            self._forget_fused()  # it may have taken half of the frame in
            errors.append(f"{type(error).__name__}: {error}")
            flags.append("restore_failed")
            self._report(f"a frame could not be restored: {errors[-1]}")
            if not isinstance(error, PhotonstepError):
                log.exception("a frame could not be restored")
            outcome = None
        if outcome is not None:
            return outcome
        out[...] = pixel_integration.fine(frame, self.scale)
        lost = [source.lost for source in self._sources if source.lost]
        facts = Facts(
            steps=0, plan=RAW.name, flags=tuple(dict.fromkeys(flags)), sigma=float("nan"), network_ms=0.0,
            camera=self._camera, error="; ".join(errors or lost) or None,
        )  # fmt: skip
        return Outcome(rung=RAW, facts=facts, run_ms=0.0)

    def record(self, outcome: Outcome, shape: tuple[int, ...], *, extra_ms: float) -> None:
        """Remember what a plan cost, with what came after the restoration (the preview)."""
        self.ladder.record(outcome.rung, shape, total_ms=outcome.run_ms + extra_ms, network_ms=outcome.facts.network_ms)

    def warm_up(self, frame: NDArray[Any], settings: StreamSettings) -> None:
        """Pay what the first frame of this shape would pay.

        Raises
        ------
        CameraError, ShapeError : the frame does not suffice to estimate the camera, or does not fit its maps
        """
        self._prepare(frame, self._camera_of(frame, settings), settings)
        if settings.keep_warm_ms is not None:
            self.keep_warm()  # its shape is compiled now, not in the first pause

    def keep_warm(self) -> bool:
        """Evaluate a corner of an old frame, unless the restorer is busy for another stream; True where it did.

        A corner runs the same threads and code as a frame and wakes them as well, and a frame that comes meanwhile
        waits for 2 ms of it rather than for a whole frame's evaluation.
        """
        frame, camera = self._warm_frame, self._camera
        source = next((s for s in self._sources if s.lost is None), None)
        if frame is None or camera is None or source is None or not source.restorer.turn.acquire(blocking=False):
            return False
        try:
            # no tracker: the stream's memory of brightness belongs to real frames
            corner = slice(0, KEEP_WARM_PX)
            source.restorer.restore(frame[corner, corner], camera=camera.crop(corner, corner), steps=1)
        except BackendError as error:
            self._lose(source, error)
            return False
        except PhotonstepError:  # a camera with maps of another shape, say: the next frame will tell
            return False
        finally:
            source.restorer.turn.release()
        return True

    # --- the ladder ---

    @property
    def _main(self) -> Source:
        return self._sources[0]

    def _climb(
        self, frame: NDArray[Any], camera: Camera, settings: StreamSettings, capture_ns: int, out: NDArray[Any],
        flags: list[str],
    ) -> Outcome | None:  # fmt: skip
        """Run the largest plan that fits; None leaves the raw frame."""
        while True:
            rung = self._choose(frame, settings, capture_ns)
            source = self._source_of(rung)
            if self._main.lost is not None:
                flags.append("device_lost")
            if source is None:
                if any(s.lost is None for s in self._sources):
                    flags.append("deadline_raw")
                return None
            with source.restorer.turn:
                # another stream may have had it for a while: what fitted then may not fit now
                now_fits = self._choose(frame, settings, capture_ns)
                if self._source_of(now_fits) is not source:
                    continue
                try:
                    outcome = self._run(source, now_fits, frame, camera, settings, out)
                except BackendError as error:
                    self._lose(source, error)
                    continue
            facts = replace(outcome.facts, flags=(*outcome.facts.flags, *dict.fromkeys(flags)), error=self._main.lost)
            return replace(outcome, facts=facts)

    def _choose(self, frame: NDArray[Any], settings: StreamSettings, capture_ns: int) -> Rung:
        budget_ms = float("inf")
        if settings.deadline_ms is not None:
            budget_ms = settings.deadline_ms - (self._clock_ns() - capture_ns) / 1e6
        rungs: list[Rung] = []
        for source in self._sources:
            if source.lost is None:
                most = settings.steps or source.restorer.bundle.manifest.defaults.steps
                rungs += rungs_of(source.name, most if source is self._main else 1)
        return self.ladder.choose(tuple(rungs), frame.shape, budget_ms)

    def _source_of(self, rung: Rung) -> Source | None:
        if not rung.steps:
            return None
        return next(source for source in self._sources if source.name == rung.source)

    def _run(
        self, source: Source, rung: Rung, frame: NDArray[Any], camera: Camera, settings: StreamSettings,
        out: NDArray[Any],
    ) -> Outcome:  # fmt: skip
        started_ns = self._clock_ns()
        result = source.restorer.restore(
            frame, camera=camera, steps=rung.steps, tracker=source.tracker, fusion=self._fusion_of(settings), out=out
        )
        facts = Facts(
            steps=rung.steps, plan=rung.name, flags=result.flags, sigma=result.sigma, network_ms=result.network_ms,
            camera=camera, error=None,
        )  # fmt: skip
        return Outcome(rung=rung, facts=facts, run_ms=(self._clock_ns() - started_ns) / 1e6)

    # --- what a frame needs ---

    def _camera_of(self, frame: NDArray[Any], settings: StreamSettings) -> Camera:
        camera = settings.camera
        if camera is None:
            camera = self._estimated = self._estimated or Camera.estimate(frame)
        if camera is not self._camera:
            self._forget_fused()  # what was fused was stabilised with other numbers
            self._camera = camera
        return camera

    def _fusion_of(self, settings: StreamSettings) -> TemporalFusion | None:
        if not settings.temporal:
            self._fusion = None
            return None
        wanted = settings.temporal if isinstance(settings.temporal, FusionSettings) else FusionSettings()
        if self._fusion is None or self._fusion.settings != wanted:
            self._fusion = TemporalFusion(wanted)
        return self._fusion

    def _forget_fused(self) -> None:
        if self._fusion is not None:
            self._fusion.reset()

    def _prepare(self, frame: NDArray[Any], camera: Camera, settings: StreamSettings) -> None:
        """At a frame shape's first frame: compile the networks, and measure them where there is a deadline."""
        key = (frame.shape, frame.dtype)
        timed = settings.deadline_ms is not None
        for source in self._sources if timed else self._sources[:1]:
            if (key, timed) in source.warmed or source.lost is not None:
                continue
            try:
                self._warm(source, frame, camera, timed=timed)
            except BackendError as error:
                self._lose(source, error)
                continue
            self._warm_frame = frame.copy()
            source.warmed |= {(key, False), (key, timed)}

    def _warm(self, source: Source, frame: NDArray[Any], camera: Camera, *, timed: bool) -> None:
        for measured in (False, True) if timed else (False,):
            with source.restorer.turn:
                started_ns = self._clock_ns()
                result = source.restorer.restore(frame, camera=camera, steps=1)
                total_ms = (self._clock_ns() - started_ns) / 1e6
            if measured:
                rung = Rung(source=source.name, steps=1)
                self.ladder.record(rung, frame.shape, total_ms=total_ms, network_ms=result.network_ms)

    # --- a device that fails ---

    def _lose(self, source: Source, error: BackendError) -> None:
        if source.lost is None:
            log.error("%s fails: %s", source.restorer, error)
            self._report(f"{source.restorer.bundle.manifest.name} fails: {error}")
        source.lost, source.lost_session = str(error), source.restorer.choice.session
        source.retry_ns = self._clock_ns() + int(source.retry_s * 1e9)
        source.retry_s = min(2 * source.retry_s, LONGEST_RETRY_S)
        self._forget_fused()
        source.tracker = source.restorer.tracker()

    def _revive(self) -> None:
        """Open what failed anew, now and then."""
        for source in self._sources:
            if source.lost is None or self._clock_ns() < source.retry_ns:
                continue
            try:
                # another stream that shares the restorer may have opened it anew already
                if source.restorer.choice.session is source.lost_session:
                    source.restorer.reopen()
            except PhotonstepError as error:
                self._lose(source, BackendError(f"{source.lost.split('; opened anew')[0]}; opened anew: {error}"))
                continue
            source.lost = source.lost_session = None
            source.warmed.clear()
            self.ladder.forget(source.name)
            self._report(f"{source.restorer.bundle.manifest.name} was opened anew")
