"""The noise level of a frame from its Laplacian."""

from __future__ import annotations

import numpy as np

from .. import native, reference
from ..arguments import structure
from .checks import Float32, FrameError, address, float_image
from .percentiles import percentiles


def laplacian_noise(image: Float32) -> float:
    """Standard deviation of white noise, from the median of the Laplacian's magnitude; a smooth scene hardly counts.

    Parameters
    ----------
    image : (H, W) float32, finite, at least 3x3; noise alike everywhere (stabilised)

    Raises
    ------
    FrameError : another dtype or too small

    Source: Immerkaer 1996, Computer Vision and Image Understanding 64:300 (the operator).
    """
    image = float_image("image", image)
    height, width = image.shape
    if height < 3 or width < 3:
        raise FrameError(f"image is {image.shape}; expected at least 3x3 pixels")
    lib = native.library()
    if lib is None:
        return reference.laplacian_noise(image)
    magnitude = np.empty((height - 2, width - 2), np.float32)
    lib.call("laplacian", structure("Laplacian")(
        image=address(image), image_stride=image.strides[0], height=height, width=width, magnitude=address(magnitude),
    ))  # fmt: skip
    return percentiles(magnitude, (50.0,))[0] / (6 * reference.MEDIAN_OF_NORMAL)
