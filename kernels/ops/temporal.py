"""Fusion of stabilised frames into buffers that the caller keeps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .. import native, reference
from ..arguments import structure
from ..reference.temporal import LARGE_PX, SMALL_PX, noise_left
from .checks import Float32, FrameError, address, check_writable


def fuse(
    z: Float32,
    mean: Float32,
    variance: Float32,
    *,
    n_max: float,
    limits: reference.Limits,
    emphasis: float,
    noise_correlation: tuple[float, float] = (0.0, 0.0),
    light: tuple[float, float] = (1.0, 0.0),
    out_mean: Float32 | None = None,
    out_variance: Float32 | None = None,
) -> tuple[Float32, Float32]:
    """One stabilised frame into the recursive mean of those before it; `kernels.reference.temporal` has the formulas.

    Parameters
    ----------
    z : (H, W) float32, noise of standard deviation 1
    mean, variance : (H, W) float32, of the frames so far; variance in units of one frame's, 1 where nothing is fused
    n_max : frames that the mean holds at most, 1 or more
    limits : standard deviations from which a difference is no noise: of a pixel, of the mean over 3 x 3 and 7 x 7 px,
        of a least-squares shift over 7 x 7 px; and from which a 3 x 3 mean counts for its neighbours too
    emphasis : factor on the squared error that such a difference speaks for
    noise_correlation : lag-1 correlation of the noise along (y, x)
    light : (gain, shift): the mean is brought to ``mean^2 -> gain mean^2 + shift`` first
    out_mean, out_variance : (H, W) float32 to write into, apart from the inputs; None makes them

    Returns
    -------
    (out_mean, out_variance)

    Raises
    ------
    FrameError : shapes or dtypes differ, or an output shares memory with an input
    """
    out_mean = np.empty_like(mean) if out_mean is None else out_mean
    out_variance = np.empty_like(variance) if out_variance is None else out_variance
    arrays = {"z": z, "mean": mean, "variance": variance, "out_mean": out_mean, "out_variance": out_variance}
    for name, array in arrays.items():
        _check(name, array, z)
    for name in ("out_mean", "out_variance"):  # windows read the neighbours' old values
        check_writable(name, arrays[name])
        for other in arrays:
            if other != name and np.may_share_memory(arrays[name], arrays[other]):
                raise FrameError(f"{name} shares memory with {other}; expected a buffer of its own: keep two and swap")
    lib = native.library()
    if lib is not None and all(a.flags.c_contiguous and a.flags.aligned for a in arrays.values()):
        _fuse_natively(lib, arrays, n_max, limits, emphasis, noise_correlation, light)
        return out_mean, out_variance
    new_mean, new_variance = reference.fuse(
        z, mean, variance, n_max=n_max, limits=limits, emphasis=emphasis, noise_correlation=noise_correlation,
        light=light,
    )  # fmt: skip
    out_mean[...] = new_mean
    out_variance[...] = new_variance
    return out_mean, out_variance


def _fuse_natively(
    lib: native.Library, arrays: dict[str, Float32], n_max: float, limits: reference.Limits, emphasis: float,
    noise_correlation: tuple[float, float], light: tuple[float, float],
) -> None:  # fmt: skip
    small, large = (noise_left(window, noise_correlation) for window in (SMALL_PX, LARGE_PX))
    alike = small * SMALL_PX**2
    height, width = arrays["z"].shape
    lib.call("fuse", structure("Fuse")(
        **{name: address(array) for name, array in arrays.items()}, height=height, width=width,
        light_gain=light[0], light_shift=light[1], emphasis=emphasis, least_gain=2 / (n_max + 1),
        per_point=1 / limits.point**2, per_small=1 / (small * limits.small**2), per_large=1 / (large * limits.large**2),
        per_motion=LARGE_PX**2 / (alike * limits.motion**2), per_spread=1 / (small * limits.spread**2),
    ))  # fmt: skip


def fused_noise(variance: Float32, *, out: Float32 | None = None) -> Float32:
    """Noise of a fused frame around every pixel: the root of the variance's mean over 9 x 9 px.

    Parameters
    ----------
    variance : (H, W) float32, from `fuse`
    out : (H, W) float32 to write into; None makes one

    Returns
    -------
    (H, W) float32, in units of one frame's noise

    Raises
    ------
    FrameError : shapes or dtypes differ
    """
    out = np.empty_like(variance) if out is None else out
    _check("variance", variance, variance)
    _check("out", out, variance)
    check_writable("out", out)
    lib = native.library()
    apart = out.flags.c_contiguous and not np.may_share_memory(out, variance)  # windows read the neighbours
    if lib is not None and variance.flags.c_contiguous and variance.flags.aligned and apart:
        lib.call("fused_noise", structure("FusedNoise")(
            variance=address(variance), height=variance.shape[0], width=variance.shape[1], level=address(out),
        ))  # fmt: skip
        return out
    out[...] = reference.fused_noise(variance)
    return out


def _check(name: str, array: NDArray[np.float32], z: NDArray[np.float32]) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != np.float32:
        kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise FrameError(f"{name} is {kind}; expected a float32 array, see Camera.stabilise")
    if array.ndim != 2 or not array.size or array.shape != z.shape:
        raise FrameError(
            f"{name} has shape {array.shape}, the frame {z.shape}; expected one shape (H, W), neither side 0"
        )
