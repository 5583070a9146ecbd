"""Clean fields for training: permissively licensed microscope frames, scikit-image's own samples, simulated structures.

A field is a 2-D frame scaled so that its background is about 0 and its 99.9 percentile 1. Shipped weights see the
sets of ``PERMISSIVE_SETS``, the CC0 and public-domain images of ``SKIMAGE_SAMPLES`` and the simulator, nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from ..runtime.manifest import Normalisation
from .noise import CameraRanges
from .simulate import simulate_field

PERMISSIVE_SETS = {
    "dsb2018": "CC0-1.0",
    "cellprofiler": "BSD-3-Clause",
    "kromp_nuclei": "CC0-1.0",
    "lysosome16": "MIT",
    "bsd_misc": "BSD-3-Clause",
    "vem_demo": "MIT",
}
SKIMAGE_SAMPLES = (  # CC0 or public domain, by scikit-image's own documentation
    "astronaut", "brick", "camera", "cell", "chelsea", "coffee", "grass", "gravel",
    "hubble_deep_field", "moon", "retina", "rocket",
)  # fmt: skip
BLOCK_PX = 4
LOW_PERCENT, HIGH_PERCENT = 0.5, 99.8
MINIMUM_FIELD_PX = 128
NORMALISATION = Normalisation(
    method="block_percentile", block_px=BLOCK_PX, low_percent=LOW_PERCENT, high_percent=HIGH_PERCENT,
    minimum_range_z=CameraRanges.minimum_range_z, low_u=-0.5, high_u=0.5,
)  # fmt: skip


@dataclass(frozen=True)
class Field:
    """A clean frame: (H, W) float16 relative brightness, and (2,) float32 percentiles of its 4x4 block means."""

    brightness: Tensor
    low_high: Tensor

    @classmethod
    def of(cls, brightness: NDArray[np.floating], block_px: int = BLOCK_PX) -> Field:
        blocks = torch.nn.functional.avg_pool2d(torch.from_numpy(brightness).float()[None, None], block_px)
        percentiles = torch.tensor([LOW_PERCENT / 100, HIGH_PERCENT / 100])
        return cls(torch.from_numpy(brightness).half(), torch.quantile(blocks.flatten(), percentiles))


@dataclass(frozen=True)
class FieldPool:
    """Fields by origin, with the share of every batch that each origin gets."""

    fields: dict[str, list[Field]]
    shares: dict[str, float]

    def at_least(self, side_px: int) -> FieldPool:
        """The pool without fields smaller than ``side_px``."""
        large = {n: [f for f in group if min(f.brightness.shape) >= side_px] for n, group in self.fields.items()}
        return FieldPool({n: group for n, group in large.items() if group}, self.shares)

    def crops(self, count: int, size_px: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Cut random patches, flipped and turned.

        Returns
        -------
        (count, size_px, size_px) float32 and (count, 2) float32, the low and high percentile of each patch's field
        """
        names = list(self.fields)
        weights = np.array([self.shares[n] for n in names])
        patches, levels = [], []
        for name in rng.choice(names, size=count, p=weights / weights.sum()):
            group = self.fields[name]
            field = group[int(rng.integers(len(group)))]
            y, x = (int(rng.integers(n - size_px + 1)) for n in field.brightness.shape)
            patch = torch.rot90(field.brightness[y : y + size_px, x : x + size_px].float(), int(rng.integers(4)))
            patches.append(patch.flip(0) if rng.random() < 0.5 else patch)
            levels.append(field.low_high)
        return torch.stack(patches), torch.stack(levels)


def load_pool(data: Path | None, cache: Path, *, simulated: int, seed: int, split: str = "train") -> FieldPool:
    """Gather every source; ``data`` is the folder that holds ``clean/``, or None for simulated and samples only."""
    fields = {"simulated": simulated_fields(cache, simulated, seed if split == "train" else seed + 1)}
    shares = {"simulated": 0.5}
    if split == "train":
        fields["samples"], shares["samples"] = list(sample_fields()), 0.12
    if data is not None:
        for name in PERMISSIVE_SETS:
            group = list(clean_fields(data / "clean" / name / split))
            if group:
                fields[name] = group
                shares[name] = {"dsb2018": 0.12, "cellprofiler": 0.1, "lysosome16": 0.06}.get(name, 0.04)
    return FieldPool(fields, shares)


def clean_fields(folder: Path) -> Iterator[Field]:
    """Fields of one folder of TIFF files: lightly smoothed, and again at half size, where their own noise is lower."""
    for path in sorted(folder.glob("*.tif")):
        image = tifffile.imread(path)
        for plane in [image] if image.ndim == 2 else image[::6]:  # neighbouring frames of a time-lapse are alike
            yield from two_scales(plane)


def sample_fields() -> Iterator[Field]:
    """Natural and scientific images that ship inside scikit-image, as grey fields."""
    from skimage import data

    for name in SKIMAGE_SAMPLES:
        image = getattr(data, name)()
        yield from two_scales(image if image.ndim == 2 else image[..., :3].mean(-1))


def simulated_fields(cache: Path, count: int, seed: int, size_px: int = 256) -> list[Field]:
    """Draw ``count`` fields, or read them from the cache that an earlier run with the same numbers left."""
    path = cache / f"simulated-{size_px}-{count}-{seed}.npy"
    if not path.exists():
        rng = np.random.default_rng(seed)
        stack = np.stack([simulate_field(rng, size_px).astype(np.float16) for _ in range(count)])
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npy")
        np.save(partial, stack)
        partial.rename(path)
    return [Field.of(f) for f in np.load(path)]


def two_scales(plane: NDArray[np.generic]) -> Iterator[Field]:
    smooth = ndimage.gaussian_filter(plane.astype(np.float32), 0.6)
    height, width = (n // 2 * 2 for n in plane.shape)
    halved = plane[:height, :width].astype(np.float32).reshape(height // 2, 2, width // 2, 2).mean((1, 3))
    for field in (smooth, halved):
        if min(field.shape) >= MINIMUM_FIELD_PX:
            low, high = np.percentile(field, [0.5, 99.9])
            yield Field.of(np.clip((field - low) / max(high - low, 1e-6), 0, 4))
