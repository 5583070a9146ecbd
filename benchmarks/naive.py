"""ONNX Runtime driven by hand: a bundle's networks with default options, and NumPy around them.

What an experienced programmer writes in an afternoon with `docs/bundle.md` open: no fused passes, no kept buffers, no
choice of precision. `FrameGraph` runs the whole restoration as one graph (``frame_1.onnx``); `StepNetwork` runs one
evaluation of the network. The photon balance is left out of the latter: it is not part of the format.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import photonstep as ps
from photonstep.runtime.bundle import Bundle

ANSCOMBE_OFFSET = 3.0 / 8.0


class FrameGraph:
    """``frame_1.onnx``: uint16 frame and camera numbers in, uint16 frame out."""

    def __init__(self, bundle: Bundle) -> None:
        self._session = _session(bundle.read("frame_1.onnx"))

    def __call__(self, frame: NDArray[np.uint16], camera: ps.Camera) -> NDArray[np.uint16]:
        """(H, W) uint16 counts, restored at K = 1."""
        numbers = {
            "offset_adu": camera.offset_adu,
            "gain_e_per_adu": camera.gain_e_per_adu,
            "readout_noise_e": camera.readout_noise_e,
            "noise_correlation": camera.noise_correlation,
        }
        inputs = {name: np.asarray(value, np.float32) for name, value in numbers.items()}
        restored: NDArray[np.uint16] = self._session.run(None, {"frame": frame, **inputs})[0]
        return restored


class StepNetwork:
    """``step_<precision>.onnx``: one evaluation (K = 1), everything else in NumPy."""

    def __init__(self, bundle: Bundle, precision: str) -> None:
        self._manifest = bundle.manifest
        self._session = _session(bundle.network(precision))

    def __call__(self, frame: NDArray[Any], camera: ps.Camera) -> NDArray[Any]:
        """(H, W) counts, restored; of the frame's dtype, rounded where that is an integer one."""
        floor = ANSCOMBE_OFFSET + camera.readout_noise_e**2
        electrons = (frame.astype(np.float32) - camera.offset_adu) * camera.gain_e_per_adu
        z = 2 * np.sqrt(np.maximum(electrons + floor, 0))
        low, span = self._range(z)
        restored_z = self._denoise((z - low) / span, 1 / span, camera) * span + low
        electrons = np.maximum((np.maximum(restored_z, 0) / 2) ** 2 - floor, 0)
        counts = electrons / camera.gain_e_per_adu + camera.offset_adu
        if frame.dtype.kind == "f":
            return np.asarray(counts, np.float32)
        return np.clip(np.rint(counts), 0, np.iinfo(frame.dtype).max).astype(frame.dtype)

    def _range(self, z: NDArray[np.float32]) -> tuple[float, float]:
        """Centre and span of the model's range, from percentiles of block means."""
        s = self._manifest.normalisation
        height, width = (n // s.block_px * s.block_px for n in z.shape)
        blocks = z[:height, :width].reshape(height // s.block_px, s.block_px, width // s.block_px, s.block_px)
        low, high = np.percentile(blocks.mean((1, 3)), (s.low_percent, s.high_percent))
        span = max(high - low, s.minimum_range_z) / (s.high_u - s.low_u)
        return low - s.low_u * span, span

    def _denoise(self, u: NDArray[np.float32], sigma: float, camera: ps.Camera) -> NDArray[np.float32]:
        """``x0 = c_skip x + c_out F(planes)`` of the EDM preconditioning."""
        model = self._manifest.model
        height, width = u.shape
        padding = [(0, -n % model.multiple) for n in u.shape]
        x = np.pad(u, padding, mode="symmetric").astype(np.float32)
        c_in = 1 / np.sqrt(sigma**2 + model.sigma_data**2)
        level = np.log(max(sigma, self._manifest.operating_range.sigma_min)) / 4
        constants = (level, *camera.noise_correlation)
        planes = np.stack([c_in * x, *(np.full_like(x, value) for value in constants)])[None].astype(np.float32)
        residual = self._session.run(None, {model.input_names[0]: planes})[0][0, 0]
        x0 = (model.sigma_data * c_in) ** 2 * x + sigma * model.sigma_data * c_in * residual
        cropped: NDArray[np.float32] = x0[:height, :width]
        return cropped


def _session(network: bytes) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
