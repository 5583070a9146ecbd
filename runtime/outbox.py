"""Results on their way to consumers: one outbox for each, so that a slow consumer holds up nobody else."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

from .lease import Buffer
from .live_result import Facts, FrameTimes


@dataclass(eq=False, kw_only=True)
class Parcel:
    """A finished frame. It keeps its buffer until no outbox holds it any more; consumers have leases of their own."""

    frame_id: int
    facts: Facts
    times: FrameTimes
    buffer: Buffer
    outboxes: int = 0
    taken: bool = False


class Outbox:
    """Results that wait for one consumer, in frame order. The exchange guards it with ``lock``."""

    def __init__(self, lock: threading.Lock) -> None:
        self.parcels: deque[Parcel] = deque()
        self.arrived = threading.Condition(lock)
        self.open = True
        self.busy = False  # its consumer works on a result: `drain` waits for that too
