"""Paired real sets (a noisy frame and its reference) and the two protocols that score a restoration against them.

Protocol A (FMD): 8-bit values as they are, data range 255, nothing rescaled.
Protocol B (CARE-style): the reference is scaled so that its 0.1 and 99.9 percentiles become 0 and 1; the candidate is
mapped onto it by least squares; data range 1. For sets whose frame and reference differ by an unknown gain.

Sources: Zhang et al. 2019 (FMD), arXiv:1812.10366; Weigert et al. 2018 (CARE), Nat. Methods 15:1090.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile
from numpy.typing import NDArray

from photonstep import metrics

Protocol = Literal["A", "B"]
Image = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class SetSpec:
    """A paired set on disk.

    Parameters
    ----------
    protocol : "A" or "B", how its restorations are scored
    splits : splits that are measured; "train" never is
    reference_frames : frames averaged into the reference, the noisy one among them; None when it is a slow scan
    """

    protocol: Protocol
    splits: tuple[str, ...]
    reference_frames: int | None


SETS: dict[str, SetSpec] = {
    "w2s8": SetSpec(protocol="B", splits=("val", "test"), reference_frames=400),
    "flim2p": SetSpec(protocol="B", splits=("val", "test"), reference_frames=5),
    "fmd_testmix": SetSpec(protocol="A", splits=("test",), reference_frames=50),
    "fmd_fov1": SetSpec(protocol="A", splits=("val",), reference_frames=50),
    "sem_brain": SetSpec(protocol="A", splits=("test",), reference_frames=None),
}
MODALITIES = ("Confocal", "TwoPhoton", "WideField")


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """One noisy (H, W) frame as published (raw ADU) and the (H, W) reference of the same field.

    ``field`` is the independent unit of a confidence interval: captures and channels of one field share it.
    """

    set_name: str
    split: str
    field: str
    plane: int
    protocol: Protocol
    reference_frames: int | None
    frame: Image
    reference: Image

    @property
    def key(self) -> str:
        """Unique over all sets: ``set/split/field/plane``."""
        return f"{self.set_name}/{self.split}/{self.field}/{self.plane}"

    @property
    def modality(self) -> str | None:
        return modality_of(self.set_name, self.field)


def modality_of(set_name: str, field: str) -> str | None:
    """FMD modality of a field from its name (``Confocal_BPAE_B``); None for the other sets."""
    if not set_name.startswith("fmd_"):
        return None
    return next((m for m in MODALITIES if re.match(m, field, re.IGNORECASE)), None)


def planes_of(set_name: str, stack: Image) -> list[tuple[Image, Image]]:
    """(noisy, reference) planes of a published stack, in the order of the file."""
    if set_name == "w2s8":  # (noisy | reference, channel, y, x)
        return [(stack[0, c], stack[1, c]) for c in range(stack.shape[1])]
    return [(capture, stack[-1]) for capture in stack[:-1]]  # (captures..., reference)


def pairs(data: Path, set_name: str, split: str, limit: int | None = None) -> Iterator[Pair]:
    """Pairs of a set's split, the first plane of every field first.

    Parameters
    ----------
    data : folder that holds ``paired/``
    set_name, split : a key of ``SETS`` and one of its splits
    limit : at most this many pairs, spread evenly over the fields

    Raises
    ------
    FileNotFoundError : the split's folder is absent or empty
    """
    spec = SETS[set_name]
    folder = data / "paired" / set_name / split
    files = sorted(folder.glob("*.tif"))
    if not files:
        raise FileNotFoundError(f"no .tif file in {folder}; expected the paired set there, see docs/training.md#data")
    order = [(plane, path) for plane in range(_plane_count(set_name, files[0])) for path in files]
    if limit is not None and limit < len(files):
        order = [order[i] for i in np.linspace(0, len(files) - 1, limit).round().astype(int)]
    for plane, path in order[:limit]:
        frame, reference = planes_of(set_name, tifffile.imread(path))[plane]
        yield Pair(
            set_name=set_name,
            split=split,
            field=path.stem,
            plane=plane,
            protocol=spec.protocol,
            reference_frames=spec.reference_frames,
            frame=frame,
            reference=reference,
        )


def score(pair: Pair, image: Image) -> tuple[float, float]:
    """PSNR in dB and SSIM of a restored (H, W) image, in frame units, in the pair's protocol."""
    candidate = np.asarray(image, dtype=np.float64)
    if pair.protocol == "A":
        reference = np.asarray(pair.reference, dtype=np.float64)
        return metrics.psnr(reference, candidate, 255.0), metrics.ssim(reference, candidate, 255.0)
    low, high = np.percentile(pair.reference, (0.1, 99.9))
    reference = (np.asarray(pair.reference, dtype=np.float64) - low) / (high - low)
    candidate = metrics.fit_affine(reference, candidate)
    return metrics.psnr(reference, candidate, 1.0), metrics.ssim(reference, candidate, 1.0)


def _plane_count(set_name: str, path: Path) -> int:
    with tifffile.TiffFile(path) as tif:
        shape = tif.series[0].shape
    return int(shape[1]) if set_name == "w2s8" else int(shape[0]) - 1
