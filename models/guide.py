"""A network as the guide of training without references: what a frame shows, and how strong its noise really is."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from ..kernels import reference
from ..runtime.camera import Camera
from ..runtime.normalise import RangeTracker
from ..runtime.prediction import edm_coefficients
from ..runtime.tiling import pad_to_multiple
from .data import NORMALISATION
from .network import Denoiser
from .recorrupt import Image, correlated_noise

PROBE: Final = 0.1  # of the noise, to see how the network follows it
FACTOR_LIMITS: Final = (0.5, 2.0)


class NetworkGuide:
    """Calls of it give a frame's clean photoelectrons and the factor on its noise variance, see `recorrupt.Guide`.

    An estimated camera is several per cent wrong, and recorruption leaves that share of the noise in the network's
    answer. A restoration knows better: by Stein's identity the residual of a posterior mean has the variance
    ``v (1 - d)``, where ``d`` is how far the restoration follows the noise, measured with a small probe.
    Measured cameras are believed.
    """

    def __init__(self, network: Denoiser) -> None:
        self.network = network.eval()

    def __call__(self, frame: NDArray[Any], camera: Camera) -> tuple[Image, float]:
        clean = restore_frame(self.network, frame, camera)
        if camera.source != "estimated":
            return clean, 1.0
        counts = np.asarray(frame, np.float32)
        electrons = (counts - camera.offset_adu) * camera.gain_e_per_adu
        spread = np.sqrt(np.maximum(clean, 0) + np.square(camera.readout_noise_e) + 1e-3)
        noise = correlated_noise(frame.shape, camera.noise_correlation, np.random.default_rng(0))
        moved = restore_frame(
            self.network, np.asarray(counts + PROBE * spread * noise / camera.gain_e_per_adu, np.float32), camera
        )
        # sums over the frame, not means of ratios: the darkest pixels have next to no noise to divide by
        variance = float(np.mean(np.square(spread)))
        follows = float(np.mean(spread * noise * (moved - clean))) / (PROBE * variance)
        factor = float(np.mean(np.square(electrons - clean))) / (variance * max(1.0 - follows, 0.1))
        return clean, float(np.clip(factor, *FACTOR_LIMITS))


@torch.no_grad()
def restore_frame(network: Denoiser, frame: NDArray[Any], camera: Camera) -> Image:
    """One evaluation on the runtime's way: (H, W) counts in, (H, W) float32 photoelectrons out."""
    z = camera.stabilise(frame)
    model_range = RangeTracker(NORMALISATION).update(z)
    u = pad_to_multiple(model_range.to_model(z), network.config.multiple)
    edm = edm_coefficients(model_range.sigma, network.config.sigma_data)
    told = np.array([np.log(model_range.sigma) / 4, *camera.noise_correlation, 0.0], np.float32)
    planes = np.empty((1, network.config.planes, *u.shape), np.float32)
    planes[0, 0] = np.float32(edm.c_in) * u
    planes[0, 1:] = told[: network.config.planes - 1, None, None]
    residual = network(torch.from_numpy(planes))[0, 0].numpy()
    x0 = np.float32(edm.c_skip) * u + np.float32(edm.c_out) * residual
    clean = camera.unstabilise(model_range.from_model(x0[: z.shape[0], : z.shape[1]]))
    lowest = -float(reference.ANSCOMBE_OFFSET) - np.square(camera.readout_noise_e)
    return np.maximum(clean, lowest).astype(np.float32)
