"""The marks against Open Image Denoise: dB on every set and on their mean, how many times as fast, passed or missed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np

from .summary import Row, gain_of, reporting_groups
from .turns import Times, ratio

QUALITIES = ("fast", "high")


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a tier must reach against Open Image Denoise.

    ``gain_db`` is the least PSNR gain, itself included only where ``may_equal``; ``ratio`` how many times as fast.
    """

    tier: str
    gain_db: float
    may_equal: bool
    ratio: float

    @property
    def text(self) -> str:
        quality = f"at least {self.gain_db:+.1f} dB" if self.may_equal else f"more than {self.gain_db:+.1f} dB"
        return f"{quality}, {self.ratio:g} times as fast"

    def reached(self, gain_db: float) -> bool:
        return gain_db >= self.gain_db if self.may_equal else gain_db > self.gain_db


TARGETS = (
    Target(tier="base", gain_db=0.0, may_equal=False, ratio=8.0),
    Target(tier="live", gain_db=-0.3, may_equal=True, ratio=20.0),
)


@dataclass(frozen=True, kw_only=True)
class PeerMark:
    """One tier at one K against one quality of Open Image Denoise; a part that was not measured is None.

    ``gains_db`` are by set (its test split where it has one). ``filter_ratio`` is against the bare filter, which is
    the stricter comparison and decides; ``whole_ratio`` against the peer's whole way from frame to frame.
    """

    tier: str
    steps: int
    quality: str
    target: str
    gains_db: dict[str, float]
    mean_gain_db: float | None
    filter_ratio: dict[str, float] | None
    whole_ratio: dict[str, float] | None
    mean_passed: bool | None
    sets_passed: bool | None
    speed_passed: bool | None

    @property
    def passed(self) -> bool | None:
        """PSNR on the mean over sets, and speed against the bare filter; None where one was not measured."""
        parts = (self.mean_passed, self.speed_passed)
        return None if None in parts else all(parts)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"passed": self.passed}


def judge(rows: Sequence[Row], times: Times) -> list[PeerMark]:
    """Every tier, K = 1 and 2, against both qualities.

    Parameters
    ----------
    rows : scored restorations
    times : milliseconds by rival, see `turns.take_turns`
    """
    return [_mark(target, k, quality, rows, times) for target, k, quality in product(TARGETS, (1, 2), QUALITIES)]


def _mark(target: Target, steps: int, quality: str, rows: Sequence[Row], times: Times) -> PeerMark:
    ours, peer = f"{target.tier}_k{steps}", f"oidn_{quality}"
    gains = gains_by_set(rows, ours, peer)
    complete = bool(gains) and None not in gains.values()
    measured = {name: gain for name, gain in gains.items() if gain is not None}
    mean = float(np.mean(list(measured.values()))) if complete else None
    filter_ratio = _ratio(times, f"{peer}_filter", ours)
    return PeerMark(
        tier=target.tier, steps=steps, quality=quality, target=target.text, gains_db=measured, mean_gain_db=mean,
        filter_ratio=filter_ratio, whole_ratio=_ratio(times, peer, ours),
        mean_passed=None if mean is None else target.reached(mean),
        sets_passed=all(map(target.reached, measured.values())) if complete else None,
        speed_passed=None if filter_ratio is None else filter_ratio["ratio"] >= target.ratio,
    )  # fmt: skip


def gains_by_set(rows: Sequence[Row], ours: str, peer: str) -> dict[str, float | None]:
    """Mean PSNR gain in dB on the same images of every set; None where one of the two did not restore all of it."""
    found: dict[str, float | None] = {}
    for group in reporting_groups(rows):
        gain = gain_of(rows, group, ours, peer)
        found[group.title] = None if gain is None else gain[0]
    return found


def ratios(times: Times, ours: Sequence[str]) -> dict[str, dict[str, dict[str, float]]]:
    """By rival and by our row: how many times as long the rival takes."""
    return {
        rival: {mine: found for mine in ours if (found := _ratio(times, rival, mine)) is not None}
        for rival in times
        if rival not in ours
    }


def _ratio(times: Times, slow: str, fast: str) -> dict[str, float] | None:
    return ratio(times[slow], times[fast]) if times.get(slow) and times.get(fast) else None


def verdict(passed: bool | None) -> str:
    return {True: "passed", False: "**missed**", None: "not measured"}[passed]


def marks_lines(marks: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Cells of a table, its head first; ``marks`` as they stand in the record."""
    sets = list(dict.fromkeys(name for mark in marks for name in mark["gains_db"]))
    head = ["ours", "against", "target", *sets, "mean over sets", "every set", "filter alone", "whole way", "mark"]
    lines = [head]
    for mark in marks:
        gains = [_db(mark["gains_db"].get(name)) for name in sets]
        lines.append([
            f"{mark['tier']}, K = {mark['steps']}", f"Open Image Denoise, {mark['quality']}", mark["target"], *gains,
            f"{_db(mark['mean_gain_db'])} {verdict(mark['mean_passed'])}", verdict(mark["sets_passed"]),
            f"{_times(mark['filter_ratio'])} {verdict(mark['speed_passed'])}", _times(mark["whole_ratio"]),
            verdict(mark["passed"]),
        ])  # fmt: skip
    return lines


def _db(gain: float | None) -> str:
    return "" if gain is None else f"{gain:+.2f} dB"


def _times(found: Mapping[str, float] | None) -> str:
    return "" if found is None else f"{found['ratio']:.1f} x ({found['low']:.1f} to {found['high']:.1f})"
