"""How the peers' settings were chosen: a grid on the ``val`` splits, each frame with the camera of its ground truth.

    python -m benchmarks.choose --data ../shared/data

Prints PSNR per set and the mean over the sets; the best row of each peer is what ``benchmarks/baselines.py`` uses.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from photonstep import Camera

from . import baselines, datasets, oracle
from .datasets import Pair

VAL_SETS = ("w2s8", "flim2p", "fmd_fov1")


def candidates(threads: int) -> Iterator[tuple[str, Callable[..., baselines.Float]]]:
    for patch, distance in ((5, 6), (7, 11)):
        for h in (0.4, 0.6, 0.8, 1.0):
            settings = baselines.NLM | {"patch_size": patch, "patch_distance": distance, "h": h}
            yield f"nlm patch {patch} distance {distance} h {h}", partial(baselines.non_local_means, settings=settings)
    for weight in (0.7, 0.85, 1.0, 1.2, 1.4, 2.0):
        settings = baselines.TV | {"weight": weight}
        yield f"tv weight {weight}", partial(baselines.total_variation, settings=settings)
    for name in ("db1", "db2", "sym4", "sym8"):
        for shifts in (0, 1, 3):
            settings = baselines.WAVELET | {"wavelet": name}
            yield f"wavelet {name} shifts {shifts}", partial(baselines.wavelet, settings=settings, shifts=shifts)
    for quality in ("fast", "high"):
        for srgb in (True, False):
            for span in (1.0, 0.5, 0.25):
                restore = baselines.OpenImageDenoise(quality, threads, span=span, srgb=srgb)
                yield f"oidn {quality} srgb {srgb} span {span}", restore


def mean_psnr_db(restore: Callable[..., baselines.Float], frames: list[tuple[Pair, Camera]]) -> dict[str, float]:
    """Mean PSNR by set, in each set's protocol."""
    scores: dict[str, list[float]] = {}
    for pair, camera in frames:
        image = restore(pair.frame, camera)
        if pair.frame.dtype.kind == "u":
            image = np.clip(image, 0, np.iinfo(pair.frame.dtype).max)
        scores.setdefault(pair.set_name, []).append(datasets.score(pair, image)[0])
    return {name: float(np.mean(values)) for name, values in scores.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds paired/")
    parser.add_argument("--limit", type=int, default=6, help="frames per set")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    pairs = [pair for name in VAL_SETS for pair in datasets.pairs(options.data, name, "val", options.limit)]
    frames = [(pair, oracle.fit_camera(pair)) for pair in pairs]
    for title, restore in candidates(options.threads):
        means = mean_psnr_db(restore, frames)
        cells = "  ".join(f"{name} {value:.2f}" for name, value in means.items())
        print(f"{title:40s} {cells}  mean {np.mean(list(means.values())):.3f}", flush=True)


if __name__ == "__main__":
    main()
