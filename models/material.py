"""What a training draws its batches from: a user's recordings, and the built-in pool so that nothing is forgotten.

The pool photographs clean fields with simulated cameras (`models/noise.py`); recordings bring their own noise
(`models/measured.py`). A user's clean recordings join the pool.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..runtime.errors import TrainingError
from .data import MINIMUM_FIELD_PX, PERMISSIVE_SETS, SKIMAGE_SAMPLES, Field, FieldPool, two_scales
from .fingerprint import fingerprint
from .guide import NetworkGuide
from .measured import MeasuredPool, check_agreement
from .noise import Batch, CameraRanges, observe
from .recordings import Scene, Source, check_scenes, find_scenes, read_planes, split_fields

OWN = "recordings"  # name of a user's clean fields in the pool


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How batches are drawn.

    Parameters
    ----------
    recordings_share : of every batch that comes from the user's recordings
    measured_share : of samples that stay at the measured noise level; the others lie on the way to zero
    """

    batch: int
    patch_px: int
    measured_share: float
    recordings_share: float
    seed: int


@dataclass(frozen=True)
class Material:
    """Clean fields for simulated cameras, or measured frames, or both; ``share`` of the samples are measured."""

    pool: FieldPool | None
    measured: MeasuredPool | None
    share: float

    def batch(self, drawing: Drawing, index: int) -> Batch:
        """Batch ``index``, the same whenever it is asked for."""
        rng = np.random.default_rng((drawing.seed, index))
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        own = int(rng.binomial(drawing.batch, self.share)) if self.measured is not None else 0
        parts: list[Batch] = []
        if self.measured is not None and own:
            parts.append(self.measured.batch(own, drawing.patch_px, rng))
        if self.pool is not None and own < drawing.batch:
            fields, low_high = self.pool.crops(drawing.batch - own, drawing.patch_px, rng)
            parts.append(observe(fields, low_high, generator, CameraRanges(measured_share=drawing.measured_share)))
        return parts[0] if len(parts) == 1 else _joined(parts)


@dataclass(frozen=True)
class Recordings:
    """Scenes of all sources on their two sides; ``marks`` are the sources' fingerprints, for the record."""

    train: list[Scene]
    held_out: list[Scene]
    marks: tuple[dict[str, Any], ...] = ()

    @property
    def field_counts(self) -> tuple[int, int]:
        return len({s.field for s in self.train}), len({s.field for s in self.held_out})


def gather(sources: Sequence[Source], held_out_share: float) -> Recordings:
    """Find, check and split the recordings of all sources.

    Raises
    ------
    TrainingError, ImageError, CameraError, ShapeError : see `models.recordings`
    """
    by_source = [(source, find_scenes(source)) for source in sources]
    scenes = [scene for _, found in by_source for scene in found]
    check_scenes(scenes)
    check_agreement(scenes)
    train, held_out = split_fields(scenes, held_out_share)
    if scenes and not held_out:
        warnings.warn(
            f"all recordings show one field of view ({scenes[0].field}): nothing is left to hold out, so nothing tells "
            "when training goes too far; give two fields or more",
            stacklevel=3,
        )
    return Recordings(train, held_out, tuple(fingerprint(source, found) for source, found in by_source))


def training_material(
    scenes: Sequence[Scene], pool: FieldPool, drawing: Drawing, guide: NetworkGuide | None
) -> Material:
    """Recordings and pool in the shares that ``drawing`` asks for."""
    clean, noisy = _sides(scenes)
    total = sum(s.share for s in scenes)
    if not scenes:
        return Material(pool, None, 0.0)
    own_clean = drawing.recordings_share * sum(s.share for s in clean) / total
    own_noisy = drawing.recordings_share - own_clean
    if clean:
        built_in = sum(pool.shares[name] for name in pool.fields)
        kept = 1 - drawing.recordings_share
        shares = {name: share / built_in * kept for name, share in pool.shares.items()} | {OWN: own_clean}
        pool = FieldPool({**pool.fields, OWN: clean_fields(clean)}, shares)
    measured = MeasuredPool(noisy, measured_share=drawing.measured_share, guide=guide) if noisy else None
    return Material(pool, measured, own_noisy)


def held_out_material(scenes: Sequence[Scene], guide: NetworkGuide | None) -> Material:
    """Recordings alone, at their own noise level: what a fine-tuned network is chosen by."""
    clean, noisy = _sides(scenes)
    pool = FieldPool({OWN: clean_fields(clean)}, {OWN: 1.0}) if clean else None
    measured = MeasuredPool(noisy, measured_share=1.0, guide=guide, recorrupted=True) if noisy else None
    return Material(pool, measured, sum(s.share for s in noisy) / sum(s.share for s in scenes))


def clean_fields(scenes: Sequence[Scene]) -> list[Field]:
    """A user's clean frames as fields, at two scales."""
    planes = read_planes([plane for scene in scenes for plane in scene.frames])
    fields = [field for plane in planes for field in two_scales(plane)]
    if not fields:
        raise TrainingError(
            f"clean frames such as {scenes[0].frames[0]} are too small; expected {MINIMUM_FIELD_PX} px or more a side"
        )
    return fields


def training_data(sources: Sequence[Source], scenes: Recordings, pool: FieldPool) -> list[dict[str, str]]:
    """Name, licence and source of everything that the weights will have seen."""
    own = [
        {
            "name": source.path.resolve().name[:200],
            "licence": source.licence,
            "source": f"the user's own recordings; {scenes.field_counts[0]} fields of view trained on in all",
        }
        for source in sources
    ]
    built_in = {
        "simulated": ("simulated structures", "MIT", "photonstep.models.simulate"),
        "samples": ("scikit-image samples", "CC0-1.0 or public domain", ", ".join(SKIMAGE_SAMPLES)),
        **{name: (name, licence, f"clean/{name}") for name, licence in PERMISSIVE_SETS.items()},
    }
    seen = [built_in[name] for name in pool.fields if name in built_in]
    return own + [{"name": name, "licence": licence, "source": source} for name, licence, source in seen]


def _sides(scenes: Sequence[Scene]) -> tuple[list[Scene], list[Scene]]:
    return [s for s in scenes if s.kind == "clean"], [s for s in scenes if s.kind != "clean"]


def _joined(parts: list[Batch]) -> Batch:
    columns: dict[str, list[Tensor]] = {name: [getattr(p, name) for p in parts] for name in vars(parts[0])}
    return Batch(**{name: torch.cat(tensors) for name, tensors in columns.items()})
