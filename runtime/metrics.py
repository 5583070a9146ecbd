"""How near a restored image is to a reference: PSNR, SSIM, and the affine fit for frames in other units.

NumPy only, so that the command line can print them on a machine that has nothing else; checked against scikit-image.
"""

import numpy as np
import numpy.typing as npt

from .errors import ShapeError

SSIM_SIGMA = 1.5
SSIM_RADIUS = 5  # the window is cut off at 3.5 sigma


def _pair(reference: npt.ArrayLike, image: npt.ArrayLike) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    reference, image = (
        np.asarray(reference, dtype=np.float64),
        np.asarray(image, dtype=np.float64),
    )
    if reference.shape != image.shape or reference.size == 0:
        raise ShapeError(
            f"reference is {reference.shape}, image is {image.shape}; expected two equal shapes with pixels"
        )
    return reference, image


def psnr(reference: npt.ArrayLike, image: npt.ArrayLike, data_range: float) -> float:
    """Return the peak signal-to-noise ratio ``10 log10(data_range^2 / MSE)`` in dB; infinite for equal images.

    Parameters
    ----------
    reference, image : arrays of one shape and unit
    data_range : span of the values: 255 for 8-bit images as they are
    """
    reference, image = _pair(reference, image)
    mean_square_error = float(np.mean((reference - image) ** 2))
    return float("inf") if mean_square_error == 0 else 10 * float(np.log10(data_range**2 / mean_square_error))


def ssim(reference: npt.ArrayLike, image: npt.ArrayLike, data_range: float) -> float:
    """Return the mean structural similarity: Gaussian window of sigma 1.5, population covariance, borders left out.

    Parameters
    ----------
    reference, image : (H, W) arrays of one unit, H and W at least 11
    data_range : span of the values

    Raises
    ------
    ShapeError : shapes differ, or an image is smaller than the 11 x 11 window

    Source: Wang et al. 2004, IEEE TIP 13:600; equal to scikit-image's ``structural_similarity(gaussian_weights=True,
    sigma=1.5, use_sample_covariance=False)``.
    """
    reference, image = _pair(reference, image)
    if reference.ndim != 2 or min(reference.shape) <= 2 * SSIM_RADIUS:
        raise ShapeError(f"images are {reference.shape}, expected (H, W) of at least 11 x 11 pixels")
    mean_r, mean_i = _window_mean(reference), _window_mean(image)
    variance_r = _window_mean(reference * reference) - mean_r * mean_r
    variance_i = _window_mean(image * image) - mean_i * mean_i
    covariance = _window_mean(reference * image) - mean_r * mean_i
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    similarity = (2 * mean_r * mean_i + c1) * (2 * covariance + c2)
    similarity /= (mean_r**2 + mean_i**2 + c1) * (variance_r + variance_i + c2)
    return float(similarity.mean())


def _window_mean(image: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the Gaussian-weighted mean around every pixel whose whole window lies inside the image."""
    distance = np.arange(-SSIM_RADIUS, SSIM_RADIUS + 1)
    weights = np.exp(-0.5 * (distance / SSIM_SIGMA) ** 2)
    weights /= weights.sum()
    height, width = (n - 2 * SSIM_RADIUS for n in image.shape)
    rows = np.sum([weight * image[k : k + height] for k, weight in enumerate(weights)], axis=0)
    means: npt.NDArray[np.float64] = np.sum([w * rows[:, k : k + width] for k, w in enumerate(weights)], axis=0)
    return means


def fit_affine(reference: npt.ArrayLike, image: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return ``a * image + b`` with the scalars that bring it nearest to ``reference`` in the least-squares sense.

    Parameters
    ----------
    reference, image : arrays of one shape; their units may differ

    Returns
    -------
    float64 array in the reference's unit; a constant image becomes the reference's mean

    Source: the CARE evaluation, Weigert et al. 2018, Nat. Methods 15:1090.
    """
    reference, image = _pair(reference, image)
    deviation = image - image.mean()
    variance = float(np.mean(deviation**2))
    slope = float(np.mean(deviation * (reference - reference.mean()))) / variance if variance > 0 else 0.0
    fitted: npt.NDArray[np.float64] = slope * deviation + reference.mean()
    return fitted
