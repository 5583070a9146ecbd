"""Steps, samplers and what a result holds; then a sampler of your own in ten lines.

    python examples/own_sampler.py

A sampler is a function that returns rows of coefficients, ``x' = a x + b x0_hat + n noise + p x0_hat_prev``; levels are
relative to the measured noise of the frame, from 1 to 0. PSNR is against the mean of 50 frames, data range 255.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

import photonstep as ps
from photonstep.demo import DEMO_FRAME
from photonstep.kernels import ops
from photonstep.metrics import psnr
from photonstep.runtime import samplers, schedule
from photonstep.runtime.denoiser import Denoiser, Scene
from photonstep.runtime.images import open_image
from photonstep.runtime.normalise import RangeTracker
from photonstep.runtime.photon_balance import photon_balance


def dpm_solver_pp_2s(levels: Iterable[float]) -> samplers.Table:
    """DPM-Solver++(2S): a look at the geometric middle of every step, then the whole step with what was seen there.

    The second row starts from the middle; the state before follows from it, as in `samplers.heun`.

    Source: Lu et al. 2022, arXiv:2211.01095, algorithm 1 with r_i = 1/2.
    """
    rows = []
    for sigma, sigma_next in schedule.pairs(levels):
        r = sigma_next / sigma
        half = math.sqrt(r)
        if sigma_next == 0:  # the middle is at zero, too: one whole step
            rows.append(samplers.Row(sigma=sigma, sigma_next=0.0, a=0.0, b=1.0))
            continue
        middle = half * sigma
        rows.append(samplers.Row(sigma=sigma, sigma_next=middle, a=half, b=1 - half))
        rows.append(samplers.Row(sigma=middle, sigma_next=sigma_next, a=half, b=1 - r, p=-half * (1 - half)))
    return tuple(rows)


def main() -> None:
    with open_image(DEMO_FRAME) as reader:
        raw, truth = (plane[128:384, 128:384] for _, plane in reader.planes())
    restorer = ps.load("base")
    camera = ps.Camera.estimate(raw)

    result = restorer.restore(raw, camera=camera, steps=4, output="photoelectrons", report=True)
    print(f"image: {result.image.dtype} {result.image.shape}, mean {result.image.mean():.2f} photoelectrons")
    print(f"sigma: {result.sigma:.3f} (the measured noise level in model units)")
    print(f"latency: {result.latency_ms:.0f} ms, inside the network {result.network_ms:.0f} ms")
    print(f"flags: {', '.join(result.flags) or 'none'}")
    print(f"plan: {result.plan}")
    print(f"camera: {result.camera.summary()}")
    print(f"report: { {name: round(value, 3) for name, value in result.report.items()} }\n")

    print("sampler           K  evaluations  PSNR, dB")
    print(f"{'(raw frame)':34}{psnr(truth, raw, 255):8.2f}")
    for name in ("ddim", "dpm_solver_pp_2m", "heun", "ddpm"):  # ddpm draws one sample; the others are deterministic
        for steps in (1, 2, 4):
            image = restorer.restore(raw, camera=camera, steps=steps, sampler=name).image
            show(name, steps, len(samplers.table(name, schedule.measured(steps))), truth, image)
    for steps in (2, 4):
        rows = dpm_solver_pp_2s(schedule.measured(steps))
        show("own: 2S", steps, len(rows), truth, walk(restorer, raw, camera, rows))
    # levels of your own: stop early, and a fifth of the measured noise stays in the picture
    show("own: ddim to 0.2", 1, 1, truth, walk(restorer, raw, camera, samplers.ddim((1.0, 0.2))))


def show(name: str, steps: int, evaluations: int, truth: NDArray[np.uint8], image: NDArray[np.uint8]) -> None:
    print(f"{name:16}  {steps}  {evaluations:11}  {psnr(truth, image, 255):8.2f}")


def walk(restorer: ps.Restorer, frame: NDArray[Any], camera: ps.Camera, rows: samplers.Table) -> NDArray[Any]:
    """The way of `Restorer.restore`, spelled out, for one frame whose sides fit the network's grid."""
    manifest = restorer.bundle.manifest
    z = camera.stabilise(frame)
    model_range = RangeTracker(manifest.normalisation).update(z)
    scene = Scene(noise_correlation=camera.noise_correlation)
    denoiser = Denoiser(manifest, restorer.choice.session)
    u = denoiser.walk(model_range.to_model(z), rows, scene, sigma_map=model_range.sigma, noise=None)
    electrons = camera.unstabilise(model_range.from_model(u))
    photon_balance(frame, electrons, camera).apply(electrons)
    return ops.to_counts(electrons, frame.dtype, offset_adu=camera.offset_adu, gain_e_per_adu=camera.gain_e_per_adu)


if __name__ == "__main__":
    main()
