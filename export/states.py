"""States that a denoiser meets: what it sees, at which noise level, and, where it is known, the truth.

They calibrate a quantised network and judge it. Calibration sees simulated frames of every noise level, real frames and
the states that the float network itself walks through on its way to zero noise (K = 4): later steps look unlike the
first. Judging takes held-out simulated frames, whose truth is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from ..models.data import BLOCK_PX, HIGH_PERCENT, LOW_PERCENT, load_pool
from ..models.network import INPUT_PLANES, Denoiser, NetworkConfig
from ..models.noise import Batch, CameraRanges
from ..models.train import TrainConfig, make_batch, network_planes
from ..runtime import samplers, schedule
from ..runtime.camera import Camera
from ..runtime.images import open_image
from ..runtime.manifest import Normalisation
from ..runtime.normalise import RangeTracker
from ..runtime.prediction import edm_coefficients

SIGMA_BINS: Final = (0.0, 0.01, 0.03, 0.07, 0.15, np.inf)  # edges, in model units
WALK_STEPS: Final = 4
SIDE_PX: Final = 128
SIMULATED_FIELDS = 64
MOST_DRAWS: Final = 60  # of 16 states: the lowest and the highest levels are rare
FloatArray = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class State:
    """One state in model units.

    Parameters
    ----------
    planes : (1, P, H, W) float32, what the network sees
    x, sigma : (H, W) float32, the noisy image and its noise level
    x0 : (H, W) float32, the truth; None for real frames
    """

    planes: FloatArray
    x: FloatArray
    sigma: FloatArray
    x0: FloatArray | None = None

    @property
    def level(self) -> float:
        return float(self.sigma.mean())

    def restored(self, residual: FloatArray, sigma_data: float) -> FloatArray:
        """x0 as the network's output says, (H, W): ``c_skip x + c_out F``."""
        c = edm_coefficients(self.sigma, sigma_data)
        restored: FloatArray = c.c_skip * self.x + c.c_out * residual[0, 0]
        return restored


def bin_of(level: float) -> int:
    """Index of the noise-level bin."""
    return int(np.searchsorted(SIGMA_BINS, level, side="right")) - 1


def bin_name(index: int) -> str:
    return f"{SIGMA_BINS[index]:g} to {SIGMA_BINS[index + 1]:g}"


def batches_of(task: str, data: Path | None, *, split: str, seed: int) -> Callable[[int], Batch]:
    """Batches as training saw them, by index.

    Parameters
    ----------
    task : "denoise" or "super_resolution"
    data : folder that holds ``clean/``; None leaves simulated fields and samples
    """
    with TemporaryDirectory() as cache:
        pool = load_pool(data, Path(cache), simulated=SIMULATED_FIELDS, seed=seed, split=split).at_least(SIDE_PX)
    if task == "super_resolution":
        from ..models import super_resolution

        settings = super_resolution.SuperResolutionConfig(steps=0, seed=seed)
        coarse = super_resolution.coarse_levels(pool)
        return lambda index: super_resolution.make_batch(coarse, settings, index)
    config = TrainConfig(tier="base", steps=0, seed=seed, patch_px=SIDE_PX)
    return lambda index: make_batch(pool, config, index)


def simulated_states(batch: Callable[[int], Batch], config: NetworkConfig, *, per_bin: int, seed: int) -> list[State]:
    """Clean fields photographed by simulated cameras, ``per_bin`` states of every noise level that they reach."""
    rng = np.random.default_rng(seed)
    found: dict[int, list[State]] = {index: [] for index in range(len(SIGMA_BINS) - 1)}
    for index in range(MOST_DRAWS):
        for state in _states(batch(index), config, rng):
            group = found[bin_of(state.level)]
            if len(group) < per_bin:
                group.append(state)
        if all(len(group) == per_bin for group in found.values()):
            break
    return [state for group in found.values() for state in group]


def frame_states(frames: Iterable[Path], config: NetworkConfig) -> list[State]:
    """Real frames as the runtime sees them, tiles of ``SIDE_PX``, at most 16 of each file's first plane."""
    found: list[State] = []
    for path in frames:
        with open_image(path) as reader:
            frame = next(plane for _, plane in reader.planes())
        camera = Camera.estimate(frame)
        z = camera.stabilise(frame)
        model_range = RangeTracker(_NORMALISATION).update(z)
        u = torch.from_numpy(model_range.to_model(z))
        tiles = [
            u[y : y + SIDE_PX, x : x + SIDE_PX]
            for y in range(0, u.shape[0] - SIDE_PX + 1, SIDE_PX)
            for x in range(0, u.shape[1] - SIDE_PX + 1, SIDE_PX)
        ][:16]
        if tiles:
            x = torch.stack(tiles)[:, None]
            correlation = torch.tensor([camera.noise_correlation] * len(tiles), dtype=torch.float32)
            batch = Batch(x=x, x0=x, sigma=torch.full_like(x, model_range.sigma), noise_correlation=correlation)
            found += [
                State(planes=s.planes, x=s.x, sigma=s.sigma) for s in _states(batch, config, np.random.default_rng(0))
            ]
    return found


@torch.no_grad()
def walked_states(network: Denoiser, starts: Sequence[State]) -> Iterator[State]:
    """The states after the first that the float network walks through from each start, K = 4."""
    rows = samplers.table("ddim", schedule.measured(WALK_STEPS))
    sigma_data = network.config.sigma_data
    for start in starts:
        seen: list[State] = []

        def denoise(x: Any, sigma: Any, start: State = start, seen: list[State] = seen) -> Any:
            level = np.broadcast_to(np.asarray(sigma, np.float32), x.shape)
            planes = start.planes.copy()
            planes[0, 0] = x * edm_coefficients(level, sigma_data).c_in
            planes[0, 1] = np.log(level) / 4
            seen.append(State(planes=planes, x=x, sigma=level))
            return seen[-1].restored(network(torch.from_numpy(planes)).numpy(), sigma_data)

        samplers.sample(start.x, rows, denoise, sigma_map=start.sigma)
        yield from seen[1:]


def _states(batch: Batch, config: NetworkConfig, rng: np.random.Generator) -> Iterator[State]:
    planes = network_planes(batch, config.sigma_data)
    for index in range(planes.shape[0]):
        own = planes[index : index + 1].numpy()
        if config.planes > INPUT_PLANES:  # the detail knob, anywhere on its way
            extra = np.full((1, config.planes - INPUT_PLANES, *own.shape[2:]), rng.choice([0.0, 0.5, 1.0]), np.float32)
            own = np.concatenate([own, extra], 1)
        x, sigma, x0 = (t[index, 0].numpy() for t in (batch.x, batch.sigma, batch.x0))
        yield State(planes=np.ascontiguousarray(own), x=x, sigma=np.ascontiguousarray(sigma), x0=x0)


_NORMALISATION: Final = Normalisation(
    method="block_percentile", block_px=BLOCK_PX, low_percent=LOW_PERCENT, high_percent=HIGH_PERCENT,
    minimum_range_z=CameraRanges().minimum_range_z, low_u=-0.5, high_u=0.5,
)  # fmt: skip
