"""The peers: each a function ``(frame, camera) -> restored frame``, float32 in the frame's units.

All but the Gaussian filter work on the stabilised frame, where the noise has standard deviation 1, and return through
the closed-form exact unbiased inverse, so that they get the same camera and the same care as photonstep. Their settings
are the best on the ``val`` splits, never on ``test``: ``python -m benchmarks.choose`` prints the grid they were picked
from. A filter imports its package when it is called, so that an absent one costs only its own row.

Sources: exact unbiased inverse, Makitalo & Foi 2013, IEEE TIP 22:91; non-local means, Darbon et al. 2008; total
variation, Chambolle 2004; BayesShrink, Chang et al. 2000, with cycle spinning, Coifman & Donoho 1995; BM3D, Makinen et
al. 2020; Intel Open Image Denoise 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from photonstep import Camera

if TYPE_CHECKING:
    import pyoidn

Float = NDArray[np.float32]

GAUSSIAN_SIGMAS = (0.7, 1.0, 1.5, 2.0, 3.0)
NLM: dict[str, Any] = {"patch_size": 5, "patch_distance": 6, "h": 0.6, "fast_mode": True}
TV: dict[str, Any] = {"weight": 1.0, "max_num_iter": 200}
WAVELET: dict[str, Any] = {"wavelet": "sym4", "method": "BayesShrink", "mode": "soft"}
WAVELET_SHIFTS = 3  # cycle spinning over 4 x 4 shifts
OIDN_SPAN = 0.25  # the frame fills [0, 0.25]: 0.4 dB better than all of [0, 1] on the mean over the val sets
OIDN_SRGB = False  # 0.4 dB better than True, though the stabilised frame is a square root of the light


def from_stabilised(z: NDArray[Any], camera: Camera) -> Float:
    """Exact unbiased inverse of an estimate of ``E[z]``, back in frame units: (H, W) float32.

    What a classical filter returns averages ``z``, not the photoelectrons: the algebraic inverse of such a mean is a
    quarter of an electron low. Source: Makitalo & Foi 2013, equation 9.
    """
    d = np.maximum(np.asarray(z, dtype=np.float64), 2.0 * np.sqrt(3.0 / 8.0))  # E[z] at no light: where lambda is 0
    root = np.sqrt(1.5)
    photoelectrons = d**2 / 4 + root / (4 * d) - 11 / (8 * d**2) + 5 * root / (8 * d**3) - 1 / 8
    photoelectrons -= np.square(camera.readout_noise_e)
    return np.asarray(photoelectrons / camera.gain_e_per_adu + camera.offset_adu, dtype=np.float32)


def gaussian(frame: NDArray[Any], camera: Camera, *, sigma_px: float) -> Float:
    """Gaussian filter of the frame as it is; needs no camera."""
    from scipy import ndimage

    del camera
    return np.asarray(ndimage.gaussian_filter(np.asarray(frame, dtype=np.float32), sigma_px), dtype=np.float32)


def non_local_means(frame: NDArray[Any], camera: Camera, settings: Mapping[str, Any] = NLM) -> Float:
    from skimage.restoration import denoise_nl_means

    return from_stabilised(denoise_nl_means(camera.stabilise(frame), sigma=1.0, **settings), camera)


def total_variation(frame: NDArray[Any], camera: Camera, settings: Mapping[str, Any] = TV) -> Float:
    from skimage.restoration import denoise_tv_chambolle

    return from_stabilised(denoise_tv_chambolle(camera.stabilise(frame), **settings), camera)


def wavelet(
    frame: NDArray[Any], camera: Camera, settings: Mapping[str, Any] = WAVELET, shifts: int = WAVELET_SHIFTS
) -> Float:
    import pywt  # noqa: F401 - scikit-image asks for it only when it computes
    from skimage.restoration import cycle_spin, denoise_wavelet

    z = camera.stabilise(frame)
    z = cycle_spin(z, func=denoise_wavelet, max_shifts=shifts, func_kw={"sigma": 1.0, **settings}, workers=1)
    return from_stabilised(z, camera)


def bm3d(frame: NDArray[Any], camera: Camera) -> Float:
    from bm3d import bm3d as block_matching

    return from_stabilised(block_matching(camera.stabilise(frame), sigma_psd=1.0), camera)


class OpenImageDenoise:
    """Intel Open Image Denoise, low dynamic range, the stabilised frame scaled to [0, span] in all three channels.

    The filter and its buffers are kept between frames of one shape, as a live program would.

    Parameters
    ----------
    quality : "fast" or "high"
    threads : CPU threads
    span : top of the scaled frame; at most 1, where low dynamic range clips
    srgb : whether the filter shall take the values as sRGB-encoded
    """

    def __init__(self, quality: str, threads: int, *, span: float = OIDN_SPAN, srgb: bool = OIDN_SRGB) -> None:
        import pyoidn

        self._pyoidn = pyoidn
        self._quality = {"fast": pyoidn.OIDN_QUALITY_FAST, "high": pyoidn.OIDN_QUALITY_HIGH}[quality]
        self._span, self._srgb = span, srgb
        self._device = pyoidn.Device(pyoidn.OIDN_DEVICE_TYPE_CPU)
        self._device.set_int("numThreads", threads)
        self._device.commit()
        self._filter: pyoidn.Filter | None = None
        self._color: Float = np.empty((0, 0, 3), dtype=np.float32)
        self._output: Float = self._color

    def __call__(self, frame: NDArray[Any], camera: Camera) -> Float:
        z = camera.stabilise(frame)
        low, high = float(z.min()), float(z.max())
        scale = max(high - low, float(np.finfo(np.float32).tiny)) / self._span
        self.execute((z - low) / scale)
        return from_stabilised(self._output[..., 1] * scale + low, camera)

    def execute(self, image: Float) -> None:
        """Run the filter on an (H, W) float32 image within [0, 1]; the result stays in the output buffer."""
        if image.shape != self._color.shape[:2]:
            self._bind(image.shape)
        self._color[...] = image[..., None]
        if self._filter is not None:
            self._filter.execute()
        if (error := self._device.get_error()) is not None:
            raise RuntimeError(f"Open Image Denoise failed on a {image.shape} frame: {error}")

    def _bind(self, shape: tuple[int, ...]) -> None:
        if self._filter is not None:
            self._filter.release()
        self._color, self._output = (np.zeros((*shape, 3), dtype=np.float32) for _ in range(2))
        self._filter = self._pyoidn.Filter(self._device, self._pyoidn.OIDN_FILTER_TYPE_RT)
        self._filter.set_image(self._pyoidn.OIDN_IMAGE_COLOR, self._color, self._pyoidn.OIDN_FORMAT_FLOAT3)
        self._filter.set_image(self._pyoidn.OIDN_IMAGE_OUTPUT, self._output, self._pyoidn.OIDN_FORMAT_FLOAT3)
        self._filter.set_bool("hdr", False)
        self._filter.set_bool("srgb", self._srgb)
        self._filter.set_quality(self._quality)
        self._filter.commit()
