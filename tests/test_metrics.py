"""Metrics against scikit-image, which the command line must do without."""

import numpy as np
import pytest
import tifffile
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from photonstep import metrics
from photonstep.demo import DEMO_FRAME
from photonstep.runtime.errors import ShapeError


@pytest.fixture(scope="module")
def pair():
    raw, truth = tifffile.imread(DEMO_FRAME)
    return truth, raw


def test_psnr_and_ssim_equal_scikit_image(pair):
    truth, raw = pair
    assert metrics.psnr(truth, raw, 255) == pytest.approx(peak_signal_noise_ratio(truth, raw, data_range=255), abs=1e-9)
    expected = structural_similarity(
        truth.astype(float),
        raw.astype(float),
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert metrics.ssim(truth, raw, 255) == pytest.approx(expected, abs=1e-9)


def test_equal_images(pair):
    truth, _ = pair
    assert metrics.psnr(truth, truth, 255) == float("inf")
    assert metrics.ssim(truth, truth, 255) == pytest.approx(1)


def test_fit_affine_is_the_least_squares_fit(pair):
    truth, raw = pair
    slope, intercept = np.polyfit(raw.ravel().astype(float), truth.ravel().astype(float), 1)
    np.testing.assert_allclose(metrics.fit_affine(truth, raw), slope * raw + intercept, atol=1e-9)
    np.testing.assert_allclose(metrics.fit_affine(truth, 3 * truth.astype(float) - 7), truth, atol=1e-9)
    np.testing.assert_allclose(metrics.fit_affine(truth, np.full_like(truth, 9)), truth.mean())


def test_shapes_are_checked():
    with pytest.raises(ShapeError, match=r"\(3, 4\).*\(4, 3\)"):
        metrics.psnr(np.zeros((3, 4)), np.zeros((4, 3)), 1)
    with pytest.raises(ShapeError, match="at least 11 x 11"):
        metrics.ssim(np.zeros((10, 40)), np.zeros((10, 40)), 1)
