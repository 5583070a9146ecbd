"""Where the threads of a live stream meet: frames in, results out, every frame accounted for, one lock.

    put -> ring -> worker -> outboxes -> consumers

``put == delivered + dropped + waiting`` holds whenever the lock is free.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .async_wait import AsyncWaiters
from .errors import StreamError, StreamFull
from .frame_ring import FrameRing, Slot
from .lease import Buffer, BufferPool, Lease
from .live_result import Facts, FrameTimes, LiveResult
from .outbox import Outbox, Parcel
from .stream_settings import Drop, Policy, StreamSettings
from .stream_stats import StreamStats, Tally

GARBAGE_POLL_S: Final = 0.02  # what the garbage collector gives back cannot wake anybody
BUFFERS_PER_CONSUMER: Final = 2  # one waits for it while it holds another


class Exchange:
    """Ring, output buffers, outboxes and counters of one stream."""

    def __init__(
        self, settings: StreamSettings, *, on_drop: Callable[[Drop], None] | None, clock_ns: Callable[[], int]
    ) -> None:
        self.policy: Policy = settings.policy
        self.tally = Tally()
        self.polled = False  # somebody has asked for results, beside the subscribers
        self._on_drop = on_drop
        self._clock_ns = clock_ns
        self._ring = FrameRing(settings.depth)
        self._pool = BufferPool(settings.buffers)
        self._next_id = 0
        self._in_work: Slot | None = None
        self._undelivered = 0
        self._closed: str | None = None
        self._cause: BaseException | None = None
        self._putting = threading.Lock()  # one frame is copied at a time, outside the lock that all others need
        self.lock = threading.Lock()
        self._work = threading.Condition(self.lock)
        self._room = threading.Condition(self.lock)
        self.inbox = Outbox(self.lock)
        self._subscribed: list[Outbox] = []
        self.waiters = AsyncWaiters()

    # --- the camera's side ---

    def put(self, frame: NDArray[Any], capture_ns: int | None, settings: StreamSettings, timeout: float) -> int:
        """Copy a frame into the ring; its id. See `LiveStream.put`."""
        until = time.monotonic() + timeout
        while True:
            with self._putting:
                slot = self._reserve(frame)
                if slot is not None:
                    return self._commit(slot, frame, capture_ns, settings)
            with self.lock:
                while self._ring.full and self._closed is None:
                    left = until - time.monotonic()
                    if left <= 0:
                        raise StreamFull(
                            f"{self._ring.depth} frames wait already and policy 'all' drops none; expected room in the "
                            "ring: put(..., timeout=...) waits for it, a larger ring or fewer steps make more"
                        )
                    self._room.wait(left)

    def _reserve(self, frame: NDArray[Any]) -> Slot | None:
        with self.lock:
            self.check_open()
            if self.policy == "all" and self._ring.full:
                return None
            return self._ring.reserve(frame.shape, frame.dtype.newbyteorder("="))

    def _commit(self, slot: Slot, frame: NDArray[Any], capture_ns: int | None, settings: StreamSettings) -> int:
        try:
            np.copyto(slot.frame, frame)
        except BaseException:
            with self.lock:
                self._ring.give_back(slot)
            raise
        with self.lock:
            if self._closed is not None:
                self._ring.give_back(slot)
                self.check_open()
            slot.frame_id, slot.settings, slot.put_ns = self._next_id, settings, self._clock_ns()
            slot.capture_ns = slot.put_ns if capture_ns is None else capture_ns
            self._next_id += 1
            self.tally.put += 1
            while self._ring.full:
                self._drop_slot(self._ring.waiting.popleft(), "replaced" if self.policy == "latest" else "ring_full")
            self._ring.waiting.append(slot)
            self._work.notify_all()
            return slot.frame_id

    @property
    def next_id(self) -> int:
        """The id that the next frame will get. Needs the lock."""
        return self._next_id

    # --- the worker's side ---

    def next_frame(self, timeout: float | None) -> Slot | None:
        """The frame to restore next, or None: nothing came in ``timeout`` seconds, or the stream is closed."""
        with self.lock:
            self._work.wait_for(lambda: self._ring.waiting or self._closed is not None, timeout)
            if self._closed is not None or not self._ring.waiting:
                return None
            self._in_work = self._ring.waiting.popleft()
            self._room.notify_all()
            return self._in_work

    def lend(self, slot: Slot, shape: tuple[int, ...], *, preview: bool) -> Buffer | None:
        """A buffer for the frame in work, or None: it was dropped because consumers hold all of them.

        With the policy "all" it waits for one instead, so that the ring fills and `put` says so.
        """
        with self.lock:
            while (buffer := self._pool.lend()) is None:
                if self._closed is not None:
                    self._finish(slot, "closed")
                    return None
                if self.policy == "all":
                    self._work.wait(GARBAGE_POLL_S)
                elif not self._drop_oldest_result():
                    self._finish(slot, "no_buffer")
                    return None
        buffer.fit(shape, slot.frame.dtype, preview=preview)  # nobody else knows this buffer: no lock is needed
        return buffer

    def hand_over(self, slot: Slot, buffer: Buffer, facts: Facts, times: FrameTimes, *, late: bool) -> None:
        """The frame in work is done: offer it to every consumer."""
        with self.lock:
            self.tally.restored(facts.plan, times, late=late)
            parcel = Parcel(frame_id=slot.frame_id, facts=facts, times=times, buffer=buffer)
            outboxes = [] if self._closed else [*self._subscribed]
            if not self._closed and (self.polled or not outboxes):
                outboxes.append(self.inbox)
            if not outboxes:
                self._pool.let_go(buffer)
                self._finish(slot, "closed")
                return
            parcel.outboxes = len(outboxes)
            self._undelivered += 1
            self._finish(slot, None)
            for outbox in outboxes:
                if self.policy == "latest":
                    while outbox.parcels:
                        self._discard(outbox, outbox.parcels[0], "undelivered")
                outbox.parcels.append(parcel)
                outbox.arrived.notify_all()
            self.waiters.wake()

    def abandon(self, slot: Slot) -> None:
        """The worker dies with this frame in work."""
        with self.lock:
            if self._in_work is slot:
                self._finish(slot, "engine_failed")

    def allocate(self, frame: NDArray[Any], scale: int, *, preview: bool) -> None:
        """Make ring and buffers ready for frames like this one, before the first of them."""
        dtype = frame.dtype.newbyteorder("=")
        height, width = frame.shape
        with self.lock:
            self._ring.give_back(self._ring.reserve(frame.shape, dtype))
            self._pool.fit((height * scale, width * scale), dtype, preview=preview)

    def warmed(self) -> None:
        """The worker has kept itself warm."""
        with self.lock:
            self.tally.kept_warm += 1

    # --- the consumers' side ---

    def take(self, outbox: Outbox, timeout: float | None) -> LiveResult | None:
        """The oldest result of an outbox; None if none comes in ``timeout`` seconds (None: for ever) or it is shut.

        Raises
        ------
        StreamError : the stream is closed or has failed, and the outbox is empty
        """
        with self.lock:
            outbox.arrived.wait_for(lambda: outbox.parcels or self._closed is not None or not outbox.open, timeout)
            return self.take_now(outbox)

    def take_now(self, outbox: Outbox) -> LiveResult | None:
        """`take` without waiting. Needs the lock."""
        if not outbox.parcels:
            self.check_open()
            return None
        parcel = outbox.parcels.popleft()
        outbox.busy = True
        times = replace(parcel.times, delivered_ns=self._clock_ns())
        lease = Lease(self._pool, parcel.buffer)
        if not parcel.taken:
            parcel.taken = True
            self._undelivered -= 1
            self.tally.taken(times)
        self._forget(parcel)
        return LiveResult(
            frame_id=parcel.frame_id, facts=parcel.facts, times=times, lease=lease, returned=self._returned
        )

    def subscribe(self) -> Outbox:
        with self.lock:
            self.check_open()
            outbox = Outbox(self.lock)
            self._subscribed.append(outbox)
            self._pool.grow(BUFFERS_PER_CONSUMER)
            return outbox

    def unsubscribe(self, outbox: Outbox) -> None:
        with self.lock:
            if outbox in self._subscribed:
                self._subscribed.remove(outbox)
                self._shut(outbox, "undelivered")
                self._pool.shrink(BUFFERS_PER_CONSUMER)
                self._room.notify_all()

    def done(self, outbox: Outbox) -> None:
        """A subscriber has done with a result."""
        with self.lock:
            outbox.busy = False
            self._work.notify_all()
            self._room.notify_all()

    def drain(self, timeout: float) -> bool:
        """Wait until no frame waits or is in work and subscribers have theirs; whether that came true in time."""

        def empty() -> bool:
            busy = any(outbox.parcels or outbox.busy for outbox in self._subscribed)
            return self._closed is not None or not (self._ring.waiting or self._in_work or busy)

        with self.lock:
            return bool(self._room.wait_for(empty, timeout))

    # --- the whole ---

    def stop(self, reason: str, cause: BaseException | None = None) -> None:
        """Close: frames that wait and results that nobody took are dropped with a reason, everybody is woken."""
        with self.lock:
            if self._closed is None:
                self._closed, self._cause = reason, cause
                while self._ring.waiting:
                    self._drop_slot(self._ring.waiting.popleft(), reason)
            if reason == "closed":  # a stream that failed still gives out what it has made
                for outbox in (self.inbox, *self._subscribed):
                    self._shut(outbox, reason)
            for outbox in (self.inbox, *self._subscribed):
                outbox.arrived.notify_all()
            self._work.notify_all()
            self._room.notify_all()
            self.waiters.wake()

    @property
    def closed(self) -> bool:
        return self._closed is not None

    @property
    def failed(self) -> bool:
        return self._cause is not None

    def check_open(self) -> None:
        """Raise a StreamError where the stream is closed or has failed. Needs the lock."""
        if self._cause is not None:
            cause = f"{type(self._cause).__name__}: {self._cause}"
            raise StreamError(f"the stream failed ({cause}); close it and open another one") from self._cause
        if self._closed is not None:
            raise StreamError("the stream is closed; open another one with restorer.stream(...)")

    def error(self, message: str) -> None:
        with self.lock:
            self.tally.error(message)

    def stats(self) -> StreamStats:
        with self.lock:
            return self.tally.snapshot(
                now_ns=self._clock_ns(),
                waiting=len(self._ring.waiting) + (self._in_work is not None) + self._undelivered,
                reallocations=self._ring.reallocations,
                buffer_bytes=self._ring.nbytes + self._pool.nbytes,
            )

    # --- with the lock held ---

    def _finish(self, slot: Slot, dropped: str | None) -> None:
        if dropped is None:
            self._ring.give_back(slot)
        else:
            self._drop_slot(slot, dropped)
        self._in_work = None
        self._room.notify_all()

    def _drop_slot(self, slot: Slot, reason: str) -> None:
        self._count_drop(slot.frame_id, reason)
        self._ring.give_back(slot)

    def _count_drop(self, frame_id: int, reason: str) -> None:
        self.tally.dropped[reason] += 1
        if self._on_drop is not None:
            self._on_drop(Drop(frame_id=frame_id, reason=reason))

    def _drop_oldest_result(self) -> bool:
        """Make room by the oldest result that waits in any outbox; False where none does."""
        waiting = [outbox.parcels[0] for outbox in (self.inbox, *self._subscribed) if outbox.parcels]
        if not waiting:
            return False
        oldest = min(waiting, key=lambda parcel: parcel.frame_id)
        for outbox in (self.inbox, *self._subscribed):
            if outbox.parcels and outbox.parcels[0] is oldest:
                self._discard(outbox, oldest, "undelivered")
        return True

    def _discard(self, outbox: Outbox, parcel: Parcel, reason: str) -> None:
        outbox.parcels.remove(parcel)
        if parcel.outboxes == 1 and not parcel.taken:
            self._undelivered -= 1
            self._count_drop(parcel.frame_id, reason)
        self._forget(parcel)

    def _forget(self, parcel: Parcel) -> None:
        """One outbox less holds the parcel."""
        parcel.outboxes -= 1
        if not parcel.outboxes:
            self._pool.let_go(parcel.buffer)

    def _shut(self, outbox: Outbox, reason: str) -> None:
        while outbox.parcels:
            self._discard(outbox, outbox.parcels[0], reason)
        outbox.open = False
        outbox.arrived.notify_all()

    def _returned(self) -> None:
        # never wait: a finaliser may release a result while its own thread holds the lock; `lend` looks again anyway
        if self.lock.acquire(blocking=False):
            try:
                self._work.notify_all()
            finally:
                self.lock.release()
