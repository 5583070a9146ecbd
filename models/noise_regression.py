"""Fit the small regression of `runtime/noise_estimate.py` on simulated cameras.

``python -m photonstep.models.noise_regression --data DATA -o runtime/noise_regression.npz``
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..runtime import noise_estimate as estimator
from ..runtime.errors import CameraError
from .data import FieldPool, load_pool
from .noise import CameraRanges, expose

SIDES_PX = (128, 192, 256)
HIDDEN = (48, 24)
RANGES = CameraRanges(correlated_share=0.5, row_noise_share=0.04, dark_photons=(0.003, 10.0))


def simulate_sample(pool: FieldPool, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """Features of one simulated frame and the truth: log of the missed variance, correlation along (y, x)."""
    rng = np.random.default_rng(seed)
    fields, _ = pool.crops(1, int(rng.choice(SIDES_PX)), rng)
    exposure = expose(fields, torch.Generator().manual_seed(seed), RANGES)
    frame = exposure.electrons[0].numpy()
    try:
        slope, intercept = estimator.white_noise_line([frame])
    except CameraError:
        return None
    variance = exposure.photons[0].numpy() + float(exposure.readout_noise_e) ** 2
    seen = np.maximum(slope * exposure.photons[0].numpy() + intercept, 0.0)
    missed = float(np.clip(np.log(variance.mean() / seen.mean()), -0.5, 5.0))
    features = estimator.noise_features(estimator.stabilised(frame, slope, intercept))
    return features, np.array([missed, *exposure.noise_correlation[0].tolist()], np.float32)


def fit(features: NDArray[np.float32], truth: NDArray[np.float32], steps: int = 6000, seed: int = 0) -> nn.Sequential:
    """Least squares with a small network; one in eight samples is held out and its error printed."""
    torch.manual_seed(seed)
    x, y = torch.from_numpy(features), torch.from_numpy(truth)
    held_out = torch.arange(len(x)) % 8 == 0
    network = nn.Sequential(
        nn.Linear(x.shape[1], HIDDEN[0]), nn.ReLU(), nn.Linear(HIDDEN[0], HIDDEN[1]), nn.ReLU(), nn.Linear(HIDDEN[1], 3)
    )
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=2e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    train_x, train_y = x[~held_out], y[~held_out]
    scale = torch.tensor([1.0, 2.0, 2.0])
    for _ in range(steps):
        chosen = torch.randint(len(train_x), (512,))
        loss = nn.functional.smooth_l1_loss(network(train_x[chosen]) * scale, train_y[chosen] * scale, beta=0.2)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        error = (network(x[held_out]) - y[held_out]).abs()
    for name, column in zip(("log variance factor", "correlation y", "correlation x"), error.T, strict=True):
        print(f"{name}: median error {column.median():.3f}, 90 % below {column.quantile(0.9):.3f}")
    return network


def main() -> None:
    parser = argparse.ArgumentParser(description="fit the blind noise estimator on simulated cameras")
    parser.add_argument("--data", type=Path, help="folder that holds clean/")
    parser.add_argument("--samples", type=int, default=14000)
    parser.add_argument("--simulated", type=int, default=2000, help="simulated fields to draw from")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--seed", type=int, default=20261122)
    parser.add_argument("-o", "--output", type=Path, default=estimator.REGRESSION)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pool = load_pool(arguments.data, arguments.cache, simulated=arguments.simulated, seed=arguments.seed)
    pool = pool.at_least(max(SIDES_PX))
    samples = [simulate_sample(pool, arguments.seed + i) for i in range(arguments.samples)]
    features, truth = (np.stack(part) for part in zip(*(s for s in samples if s is not None), strict=True))
    np.savez(arguments.cache / "noise_regression_samples.npz", features=features, truth=truth)
    mean, scale = features.mean(0), features.std(0) + 1e-3
    network = fit(np.clip((features - mean) / scale, -4, 4), truth)
    layers = [m for m in network if isinstance(m, nn.Linear)]
    weights = {
        f"{k}{i + 1}": getattr(m, n).detach().numpy()
        for i, m in enumerate(layers)
        for k, n in (("w", "weight"), ("b", "bias"))
    }
    np.savez(arguments.output, mean=mean, scale=scale, **weights)
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
