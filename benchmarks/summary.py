"""From per-image figures to a table's cells: groups, means, confidence intervals over fields, the oracle's Gaussian."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .datasets import MODALITIES

RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Row:
    """One restored image, scored. ``psnr_db`` and ``ssim`` are None where the method failed and ``error`` says why."""

    frame: str
    set_name: str
    split: str
    field: str
    modality: str | None
    method: str
    psnr_db: float | None
    ssim: float | None
    seconds: float
    fingerprint: str
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Group:
    """A set's split, or one FMD modality of it."""

    set_name: str
    split: str
    modality: str | None = None

    @property
    def title(self) -> str:
        return " ".join(filter(None, (self.set_name, self.split, self.modality)))

    def __contains__(self, row: Row) -> bool:
        same_split = (row.set_name, row.split) == (self.set_name, self.split)
        return same_split and self.modality in (None, row.modality)

    def rows(self, rows: Iterable[Row], method: str) -> list[Row]:
        """Rows of one method on this group."""
        return [row for row in rows if row.method == method and row in self]


@dataclass(frozen=True, kw_only=True)
class Mean:
    """Mean over the images of a group; ``psnr_95`` is the interval over fields, None with a single field."""

    psnr_db: float
    ssim: float
    psnr_95: tuple[float, float] | None
    images: int
    fields: int


def groups(rows: Sequence[Row]) -> list[Group]:
    """Groups that the rows cover, in the order of the rows; modalities follow their set where it has several."""
    found: dict[Group, set[str]] = {}
    for row in rows:
        present = found.setdefault(Group(set_name=row.set_name, split=row.split), set())
        if row.modality is not None:
            present.add(row.modality)
    result: list[Group] = []
    for group, present in found.items():
        result.append(group)
        if len(present) > 1:
            named = [m for m in MODALITIES if m in present]
            result += [Group(set_name=group.set_name, split=group.split, modality=m) for m in named]
    return result


def mean_of(rows: Sequence[Row], group: Group, method: str) -> Mean | None:
    """Mean of a method over a group; None when it was not measured on all of its images."""
    chosen = group.rows(rows, method)
    images = {row.frame for row in rows if row in group}
    if not chosen or len(chosen) < len(images) or any(row.psnr_db is None for row in chosen):
        return None
    psnr = np.array([row.psnr_db for row in chosen], dtype=np.float64)
    ssim = np.array([row.ssim for row in chosen], dtype=np.float64)
    fields = [row.field for row in chosen]
    return Mean(
        psnr_db=float(psnr.mean()),
        ssim=float(ssim.mean()),
        psnr_95=interval_95(psnr, fields),
        images=len(chosen),
        fields=len(set(fields)),
    )


def gain_of(
    rows: Sequence[Row], group: Group, method: str, over: str
) -> tuple[float, tuple[float, float] | None] | None:
    """Mean PSNR gain in dB of a method over another on the same images, with its interval over fields."""
    pairs = paired(rows, group, method, over)
    if pairs is None:
        return None
    gains, fields = pairs
    return float(gains.mean()), interval_95(gains, fields)


def paired(rows: Sequence[Row], group: Group, method: str, over: str) -> tuple[NDArray[np.float64], list[str]] | None:
    """PSNR differences in dB image by image, and each image's field; None unless both methods cover the group."""
    if mean_of(rows, group, method) is None or mean_of(rows, group, over) is None:
        return None
    other = {row.frame: row.psnr_db for row in group.rows(rows, over)}
    chosen = group.rows(rows, method)
    gains = np.array([row.psnr_db for row in chosen], dtype=np.float64)
    return gains - np.array([other[row.frame] for row in chosen], dtype=np.float64), [row.field for row in chosen]


def best_gaussian(rows: Sequence[Row], group: Group) -> str | None:
    """The Gaussian method with the highest mean PSNR on a group: an oracle, no user could pick it."""
    candidates = dict.fromkeys(row.method for row in rows if row.method.startswith("gaussian_"))
    means = {method: mean_of(rows, group, method) for method in candidates}
    measured = {method: mean.psnr_db for method, mean in means.items() if mean is not None}
    return max(measured, key=measured.__getitem__) if measured else None


def interval_95(values: NDArray[np.float64], fields: Sequence[str]) -> tuple[float, float] | None:
    """Percentile bootstrap interval of the mean, resampling whole fields: their captures are not independent."""
    names = sorted(set(fields))
    if len(names) < 2:
        return None
    index = np.array([names.index(field) for field in fields])
    total = np.bincount(index, values)
    count = np.bincount(index).astype(np.float64)
    picks = np.random.default_rng(0).integers(0, len(names), (RESAMPLES, len(names)))
    means = total[picks].sum(1) / count[picks].sum(1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def reporting_groups(rows: Sequence[Row]) -> list[Group]:
    """One group for each set, for means over sets: its ``test`` split where it has one, else ``val``."""
    chosen: dict[str, Group] = {}
    for group in groups(rows):
        if group.modality is None and (group.split == "test" or group.set_name not in chosen):
            chosen[group.set_name] = group
    return list(chosen.values())
