"""Whether what a live stream shows was the newest frame when the work on it began.

A result is *outdated* from the moment at which a newer frame was in the stream. With the policy ``latest`` the work
begins on the newest frame there is; then a result is never outdated for longer than its own processing took. A result
that is has been begun although a newer frame had already come: that is a violation.

When a frame came is known to lie between the camera's call of ``put`` and its return. Counted is what is certain: the
newer frame's ``put`` had returned before the work began. The worker reads its clock a moment after it has taken the
frame; a frame that comes within that moment is counted apart (``within_race``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .paced import DeliveryLog

RACE_MS = 0.1


def staleness(
    ids: NDArray[np.int64],
    started_ns: NDArray[np.int64],
    restored_ns: NDArray[np.int64],
    delivered_ns: NDArray[np.int64],
    log: DeliveryLog,
) -> dict[str, Any]:
    """Violations, and how old what is shown is.

    Parameters
    ----------
    ids, started_ns, restored_ns, delivered_ns : (N,) of the results, in the order of ids
    log : of the camera that put all frames of the stream

    Returns
    -------
    violations : results whose work began more than `RACE_MS` after a newer frame's put had returned
    within_race : those where it was less
    worst_ms : by how much the worst was begun too late; 0 where none was
    age_ms : from the shown frame's put to its result, p50, p99 and largest
    outdated_ms : for how long a newer frame had been there when the result was done
    age_at_consumer_ms : from the shown frame's put until the consumer had it
    """
    order = np.argsort(log.ids)
    known, returned_ns, called_ns = log.ids[order], log.returned_ns[order], log.called_ns[order]
    newer = np.searchsorted(known, ids, side="right")  # place of the first frame after each result's
    has_newer = newer < len(known)
    next_returned = returned_ns[np.minimum(newer, len(known) - 1)]
    excess_ms = np.where(has_newer, (started_ns - next_returned) / 1e6, -np.inf)
    outdated_ms = np.where(has_newer, np.maximum(restored_ns - next_returned, 0) / 1e6, 0.0)
    own = called_ns[np.searchsorted(known, ids)]
    return {
        "results": len(ids),
        "race_ms": RACE_MS,
        "violations": int(np.sum(excess_ms > RACE_MS)),
        "within_race": int(np.sum((excess_ms > 0) & (excess_ms <= RACE_MS))),
        "worst_ms": float(max(excess_ms.max(initial=0.0), 0.0)),
        "age_ms": _spread((restored_ns - own) / 1e6),
        "outdated_ms": _spread(outdated_ms),
        "age_at_consumer_ms": _spread((delivered_ns - own) / 1e6),
    }


def _spread(values: NDArray[np.float64]) -> dict[str, float] | None:
    if not len(values):
        return None
    p50, p99 = np.percentile(values, (50, 99))
    return {"p50": float(p50), "p99": float(p99), "max": float(values.max())}
