"""The live engine: frames go in as the camera makes them, restored frames come out, and the camera never waits.

    put -> ring -> [worker: ladder -> restore -> preview] -> get, callbacks, asyncio

Who does what: `exchange` accounts for every frame, `stream_restore` restores one, `deadline` picks its plan.
"""

from __future__ import annotations

import asyncio
import atexit
import gc
import logging
import numbers
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Unpack

from numpy.typing import NDArray

from . import start
from .errors import StreamError
from .exchange import Exchange
from .frame_ring import Slot
from .frames import check_frames
from .lease import Buffer
from .live_result import FrameTimes, LiveResult
from .plan import Plan
from .preview_maker import PreviewMaker
from .stream_restore import StreamRestorer
from .stream_settings import Drop, HotOptions, StreamSettings
from .stream_stats import StreamStats
from .subscription import DropNotices, Subscription

if TYPE_CHECKING:
    from .restore import Restorer

log = logging.getLogger("photonstep.stream")
EVENTS: Final = ("stage_moved", "exposure_changed", "focus_moved")
JOIN_S: Final = 10.0
CALLBACK_S: Final = 2.0  # that close waits for a callback to return
EARLIEST_CAPTURE_NS: Final = 3600 * 10**9
LATEST_CAPTURE_NS: Final = 10**9

_open: weakref.WeakSet[LiveStream] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """A worker inside a library's code while the interpreter goes away would crash it."""
    for stream in list(_open):
        stream.close()


class LiveStream:
    """A restorer that runs beside an acquisition. Open one with `Restorer.stream`, close it or use ``with``.

    Every method may be called from any thread. The stream does not survive a fork: open it in the child.
    """

    def __init__(self, restorer: Restorer, settings: StreamSettings) -> None:
        self._settings = settings
        self._clock_ns = settings.clock_ns
        self._restorer = restorer
        self._own_fallback: Restorer | None = None
        self._drops: DropNotices | None = None
        self._exchange = Exchange(
            settings, on_drop=None if settings.on_drop is None else self._note_drop, clock_ns=settings.clock_ns
        )
        self._restoring = StreamRestorer(restorer, clock_ns=settings.clock_ns, report=self._exchange.error)
        self._preview = PreviewMaker()
        self._events: deque[tuple[int, str]] = deque()  # (id of the first frame after it, event)
        self._updating = threading.Lock()
        self._subscriptions: list[Subscription] = []
        self._frozen = not settings.freeze_gc
        self._check_plan(settings)
        self._open_fallback(settings)
        if settings.warm_up is not None:
            self._warm_up(settings.warm_up, settings)
        if settings.on_drop is not None:
            self._drops = DropNotices(settings.on_drop, settings.callback_crashes, self._exchange.error)
        _open.add(self)
        self._thread = threading.Thread(target=self._run, name="photonstep-restore", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        state = "closed" if self._exchange.closed else "open"
        return f"LiveStream({self._restorer}, policy={self._settings.policy!r}, {state})"

    def __enter__(self) -> LiveStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- frames in ---

    def put(self, frame: NDArray[Any], *, capture_ns: int | None = None, timeout: float = 0.0) -> int:
        """Hand in a raw frame. It is copied once; the caller may use its array again at once.

        Parameters
        ----------
        frame : (H, W) uint8, uint16 or float32, ADU; shape and dtype may change from frame to frame
        capture_ns : when it was taken, on the stream's clock (`time.perf_counter_ns`); None is now
        timeout : seconds to wait for room, with the policy "all"; the others never wait

        Returns
        -------
        the frame's id: 0, 1, 2...

        Raises
        ------
        ShapeError : a frame that cannot be restored; no id is used up
        StreamFull : policy "all", and no room
        StreamError : the stream is closed or has failed, or ``capture_ns`` is on another clock
        """
        check_frames(frame, self._restoring.scale, "frame", stack=False)
        self._check_capture(capture_ns)
        return self._exchange.put(frame, None if capture_ns is None else int(capture_ns), self._settings, timeout)

    def event(self, name: str) -> None:
        """Say that what follows is another scene: brightness and fused measurements start anew with the next frame.

        Parameters
        ----------
        name : "stage_moved", "exposure_changed" or "focus_moved"

        Raises
        ------
        StreamError : no such event, or the stream is closed
        """
        if name not in EVENTS:
            raise StreamError(f"event is {name!r}; choose one of {', '.join(EVENTS)}")
        with self._exchange.lock:
            self._exchange.check_open()
            self._events.append((self._exchange.next_id, name))

    def update(self, **changes: Unpack[HotOptions]) -> None:
        """Change settings for the frames that are put from now on; frames that wait keep theirs.

        Parameters
        ----------
        camera, deadline_ms, temporal, steps, preview : as in `StreamSettings`

        Raises
        ------
        StreamError, CameraError, PlanError : a value that the stream cannot take; nothing is changed
        """
        with self._updating:
            with self._exchange.lock:
                self._exchange.check_open()
            settings = self._settings.updated(**changes)
            self._check_plan(settings)
            self._open_fallback(settings)
            self._settings = settings

    # --- results out ---

    def get(self, timeout: float | None = 0.0) -> LiveResult | None:
        """The oldest result that was not taken yet, or None if none came in ``timeout`` seconds (None: no limit).

        While callbacks are subscribed, results are kept for `get` from its first call on.

        Raises
        ------
        StreamError : the stream is closed or has failed, and has nothing left to give
        """
        self._exchange.polled = True
        return self._exchange.take(self._exchange.inbox, timeout)

    async def aget(self, timeout: float | None = None) -> LiveResult | None:
        """`get` for coroutines: waits without holding up the event loop; None: no limit."""
        exchange = self._exchange
        exchange.polled = True
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            with exchange.lock:
                result = exchange.take_now(exchange.inbox)
                if result is not None:
                    return result
                future = exchange.waiters.add()
            try:
                await asyncio.wait_for(future, None if until is None else max(0.0, until - time.monotonic()))
            except TimeoutError:
                return None
            finally:
                with exchange.lock:
                    exchange.waiters.remove(future)

    async def results(self) -> AsyncIterator[LiveResult]:
        """Every result until the stream is closed: ``async for r in live.results()``."""
        while True:
            try:
                result = await self.aget()
            except StreamError:
                if self._exchange.failed:
                    raise
                return
            if result is not None:
                yield result
            del result

    def subscribe(self, callback: Callable[[LiveResult], None]) -> Subscription:
        """Call ``callback(result)`` for every result, on a thread of its own.

        A slow callback misses results (policy "all": holds the stream back), and never those of other consumers. What
        it does not keep goes back to the stream when it returns.

        Returns
        -------
        Subscription : `stop` ends it

        Raises
        ------
        StreamError : not a function, or the stream is closed
        """
        if not callable(callback):
            raise StreamError(f"callback is a {type(callback).__name__}; expected a function of one result")
        subscription = Subscription(callback, self._exchange, self._settings.callback_crashes)
        self._subscriptions = [s for s in self._subscriptions if s.active] + [subscription]
        return subscription

    # --- the whole ---

    @property
    def settings(self) -> StreamSettings:
        """Of the frames that are put now."""
        return self._settings

    @property
    def clock_ns(self) -> Callable[[], int]:
        """The clock of all times, nanoseconds."""
        return self._clock_ns

    def stats(self) -> StreamStats:
        """Latencies, rates and where every frame went, up to now."""
        return self._exchange.stats()

    def drain(self, timeout: float) -> bool:
        """Wait until every frame is restored and every callback has had its results; False after ``timeout`` seconds.

        Results for `get` may still be there. With the policy "all" and nobody who takes them it cannot succeed.
        """
        return self._exchange.drain(timeout)

    def close(self) -> None:
        """End the stream. Frames that wait and results not taken are dropped (see `stats`); held results stay valid."""
        self._exchange.stop("closed")
        if self._thread is not threading.current_thread():
            self._thread.join(JOIN_S)
            if self._thread.is_alive():
                log.error("the stream's worker did not end in %g s: the device hangs", JOIN_S)
                return  # closing what it works with would wait for it
        for subscription in self._subscriptions:
            subscription.join(CALLBACK_S)
        if self._drops is not None:
            self._drops.close()
        if self._own_fallback is not None:
            self._own_fallback.close()
        _open.discard(self)

    # --- the worker ---

    def _run(self) -> None:
        slot: Slot | None = None
        try:
            while not self._exchange.closed:
                keep_warm_ms = self._settings.keep_warm_ms
                slot = self._exchange.next_frame(None if keep_warm_ms is None else keep_warm_ms / 1e3)
                if slot is not None:
                    self._serve(slot)
                elif not self._exchange.closed and self._restoring.keep_warm():
                    self._exchange.warmed()
        except BaseException as error:  # reported by put and get; a thread that dies in silence would hang them
            log.critical("the live stream failed", exc_info=True)
            self._exchange.error(f"the stream failed: {type(error).__name__}: {error}")
            if slot is not None:
                self._exchange.abandon(slot)
            self._exchange.stop("engine_failed", error)

    def _serve(self, slot: Slot) -> None:
        """One frame: restore, draw, hand over."""
        started_ns = self._clock_ns()
        settings = slot.settings or self._settings
        self._apply_events(slot.frame_id)
        scale = self._restoring.scale
        height, width = slot.frame.shape
        buffer = self._exchange.lend(slot, (height * scale, width * scale), preview=settings.preview is not None)
        if buffer is None:
            return
        outcome = self._restoring.restore(slot.frame, settings, capture_ns=slot.capture_ns, out=buffer.image)
        image_ns = self._clock_ns()
        self._draw(buffer, settings)
        restored_ns = self._clock_ns()
        self._restoring.record(outcome, slot.frame.shape, extra_ms=(restored_ns - image_ns) / 1e6)
        late = settings.deadline_ms is not None and restored_ns - slot.capture_ns > settings.deadline_ms * 1e6
        facts = replace(outcome.facts, flags=(*outcome.facts.flags, "late")) if late else outcome.facts
        times = FrameTimes(
            capture_ns=slot.capture_ns, put_ns=slot.put_ns, started_ns=started_ns, restored_ns=restored_ns,
            delivered_ns=restored_ns, network_ms=facts.network_ms,
        )  # fmt: skip
        self._exchange.hand_over(slot, buffer, facts, times, late=late)
        self._freeze()

    def _freeze(self) -> None:
        """Once: take what lives out of the garbage collector's sight."""
        if not self._frozen:
            self._frozen = True
            gc.collect()
            gc.freeze()

    def _draw(self, buffer: Buffer, settings: StreamSettings) -> None:
        if settings.preview is None:
            return
        try:
            self._preview.draw(buffer.image, settings.preview, buffer.preview)
        except Exception as error:  # the image is there, and a picture of it is not worth the stream
            log.exception("a preview could not be drawn")
            self._exchange.error(f"a preview could not be drawn: {type(error).__name__}: {error}")
            buffer.preview[...] = 0

    def _apply_events(self, frame_id: int) -> None:
        """Events that came before this frame, those of frames that were dropped included."""
        came = False
        while self._events and self._events[0][0] <= frame_id:
            self._events.popleft()
            came = True
        if came:
            self._restoring.reset()
            self._preview.reset()

    # --- settings ---

    def _check_plan(self, settings: StreamSettings) -> None:
        """A PlanError for what would fail with every frame."""
        manifest = self._restorer.bundle.manifest
        if settings.steps is not None:
            start.rows(manifest, manifest.defaults.sampler, Plan(steps=settings.steps).steps)
        if settings.temporal:
            for restorer in self._restoring.restorers:
                start.check_fusable(restorer.bundle.manifest)

    def _check_capture(self, capture_ns: int | None) -> None:
        if capture_ns is None:
            return
        now_ns = self._clock_ns()
        if not isinstance(capture_ns, numbers.Integral) or not (
            now_ns - EARLIEST_CAPTURE_NS <= int(capture_ns) <= now_ns + LATEST_CAPTURE_NS
        ):
            raise StreamError(
                f"capture_ns is {capture_ns!r}, the stream's clock says {now_ns}; expected nanoseconds of "
                "time.perf_counter_ns, in the last hour: leave it out where the camera has another clock"
            )

    def _open_fallback(self, settings: StreamSettings) -> None:
        fallback, main = settings.fallback, self._restorer
        if fallback is None or self._restoring.has_fallback:
            return
        if isinstance(fallback, str):
            scale = main.bundle.manifest.scale
            if settings.deadline_ms is None or main.bundle.manifest.name == "live" or scale != 1:
                return
            from .restore import load

            self._own_fallback = fallback = load("live", device=main.device, threads=main.threads)
        if fallback is main or fallback.bundle.manifest.scale != main.bundle.manifest.scale:
            raise StreamError(
                f"fallback is {fallback} with scale {fallback.bundle.manifest.scale}; expected another restorer of "
                f"scale {main.bundle.manifest.scale}, so that every result has the same shape"
            )
        if settings.temporal:
            start.check_fusable(fallback.bundle.manifest)
        self._restoring.add_fallback(fallback)

    def _warm_up(self, frame: NDArray[Any], settings: StreamSettings) -> None:
        try:
            check_frames(frame, self._restoring.scale, "warm_up", stack=False)
            self._restoring.warm_up(frame, settings)
        except BaseException:
            if self._own_fallback is not None:
                self._own_fallback.close()
            raise
        self._exchange.allocate(frame, self._restoring.scale, preview=settings.preview is not None)
        self._freeze()

    def _note_drop(self, drop: Drop) -> None:
        if self._drops is not None:
            self._drops.add(drop)
