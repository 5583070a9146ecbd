"""The live engine's marks, judged from the record: target, measured, passed or missed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .marks import Mark

LEAST_RATE = 0.995  # of the camera's: the last frame is not waited for
MOST_OUTSIDE = 0.10
MOST_P99_OVER_P50 = 1.5
MOST_FIRST_OVER_P50 = 2.0
FLAT_MB_PER_HOUR = 10.0

Record = Mapping[str, Any]


def judge(parts: Mapping[str, Record]) -> list[Mark]:
    """All marks; those whose part is absent are not measured.

    Parameters
    ----------
    parts : what the parts returned, by name
    """
    return [
        _keeps_up(parts.get("paced")),
        *_outside(parts),
        *(_not_stale(name, parts.get(name)) for name in ("stale", "paced")),
        _memory(parts.get("memory")),
        *(_spread(case, title, parts.get("jitter")) for case, title in JITTER_CASES.items()),
        _after_pause(parts.get("pause")),
        _accounts(parts),
    ]


JITTER_CASES = {
    "one_core": "one core, network on one thread, the other core idle",
    "all_cores": "all cores",
}


def _keeps_up(part: Record | None) -> Mark:
    name, target = "a paced camera: every frame is shown", "no drop, and the camera's rate"
    if part is None:
        return _unmeasured(name, target)
    asked, dropped = part["camera"]["asked_fps"], sum(part["dropped"].values())
    fps = part["fps"] or 0.0
    return Mark(
        name=name, target=target, measured=f"{fps:.2f} of {asked:.2f} fps, {dropped} dropped of {part['put']}",
        passed=not dropped and fps >= LEAST_RATE * asked,
    )  # fmt: skip


def _outside(parts: Mapping[str, Record]) -> Iterator[Mark]:
    """Of the work on a frame, preview included where there is one; flat out also of all the time that passed."""
    flat = parts.get("flatout") or {}
    cases = {
        "paced": _share(parts.get("paced")),
        "flat out": _share(flat.get("preview")),
        "flat out, no preview": _share(flat.get("no_preview")),
        "flat out, of the wall clock": _share_of_wall(flat.get("preview")),
    }
    for title, share in cases.items():
        name, target = f"time outside the network, {title}", f"at most {MOST_OUTSIDE:.0%}"
        yield (
            _unmeasured(name, target)
            if share is None
            else Mark(name=name, target=target, measured=f"{share:.1%}", passed=share <= MOST_OUTSIDE)
        )


def _share(run: Record | None) -> float | None:
    return None if run is None else run["outside_network_share"]


def _share_of_wall(run: Record | None) -> float | None:
    inside = None if run is None else run["network_share_of_wall"]
    return None if inside is None else 1.0 - inside


def _not_stale(part_name: str, part: Record | None) -> Mark:
    title = {"stale": "a camera faster than the restoration", "paced": "a paced camera"}[part_name]
    name = f"`latest` shows nothing older than one processing time, {title}"
    target = "work never begins while a newer frame waits"
    if part is None:
        return _unmeasured(name, target)
    found = part["staleness"]
    text = f"{found['violations']} of {found['results']} results, worst {found['worst_ms']:.2f} ms"
    if found["within_race"]:
        text += f", {found['within_race']} within {found['race_ms']:g} ms"
    return Mark(name=name, target=target, measured=text, passed=found["results"] > 0 and not found["violations"])


def _memory(part: Record | None) -> Mark:
    name = "memory flat over an hour"
    target = f"upper end of the 95 % interval at most {FLAT_MB_PER_HOUR:g} MB"
    if part is None or part["mb_per_hour"] is None:
        return _unmeasured(name, target)
    hour = part["mb_per_hour"]
    text = f"{hour['slope']:+.2f} MB ({hour['low']:+.2f} to {hour['high']:+.2f})"
    text += f", from {part['seconds'] / 60:.1f} minutes, {part['settled_mb']:.1f} to {part['last_mb']:.1f} MB"
    return Mark(name=name, target=target, measured=text, passed=hour["high"] <= FLAT_MB_PER_HOUR)


def _spread(case: str, title: str, part: Record | None) -> Mark:
    name, target = f"p99 of capture to consumer, {title}", f"at most {MOST_P99_OVER_P50:g} x p50"
    if part is None or part[case]["stages"]["total"] is None:
        return _unmeasured(name, target)
    total = part[case]["stages"]["total"]
    factor = total["p99"] / total["p50"]
    text = f"{factor:.2f} x ({total['p99']:.1f} and {total['p50']:.1f} ms)"
    return Mark(name=name, target=target, measured=text, passed=factor <= MOST_P99_OVER_P50)


def _after_pause(part: Record | None) -> Mark:
    name, target = "first frame after a pause", f"at most {MOST_FIRST_OVER_P50:g} x p50, the worst of them"
    if part is None:
        return _unmeasured(name, target)
    found = part["kept_warm"]
    factor = found["worst_first_ms"] / found["running_ms"]["p50"]
    text = f"{factor:.2f} x ({found['worst_first_ms']:.1f} and {found['running_ms']['p50']:.1f} ms), "
    text += f"{len(found['first_ms'])} pauses of {found['pause_s']:g} s"
    return Mark(name=name, target=target, measured=text, passed=factor <= MOST_FIRST_OVER_P50)


def _accounts(parts: Mapping[str, Record]) -> Mark:
    """Over all runs that kept accounts."""
    name, target = "no frame lost in silence, none failed", "put = delivered + dropped, no error"
    runs = list(_runs(parts))
    if not runs:
        return _unmeasured(name, target)
    wrong = sum(not run["accounts_balance"] for run in runs)
    failed = sum(sum(run["errors"].values()) for run in runs)
    put = sum(run["put"] for run in runs)
    text = f"{put} frames in {len(runs)} runs: {wrong} accounts wrong, {failed} frames with an error"
    return Mark(name=name, target=target, measured=text, passed=not wrong and not failed)


def _runs(found: Any) -> Iterator[Record]:
    """Every record of a run, wherever it stands."""
    if isinstance(found, Mapping):
        if "accounts_balance" in found:
            yield found
            return
        found = list(found.values())
    if isinstance(found, list | tuple):
        for inner in found:
            yield from _runs(inner)


def _unmeasured(name: str, target: str) -> Mark:
    return Mark(name=name, target=target, measured="not measured", passed=None)
