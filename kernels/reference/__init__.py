"""The per-pixel maths as plain NumPy formulas in the dtype of their input: the oracle for every faster version.

One file a family, with the same stem as in `kernels.ops` (the checked entry points) and in ``kernels/csrc``.
"""

from .arrays import Floats, Scalar
from .blocks import block_means
from .counts import balanced, inverse_anscombe, round_and_clip, to_adu, unbiased_inverse
from .network_input import bfloat16_bits, from_model, pixel_unshuffle, to_model
from .noise_level import MEDIAN_OF_NORMAL, laplacian, laplacian_noise
from .percentiles import percentiles
from .philox import content_key, normal, philox4x32
from .preview import preview_u8
from .resample import UPSAMPLE_TAPS, upsample2
from .residual import ResidualStatistics, lag_products, residual_statistics
from .sampler_row import edm, noise_condition, x0_hat
from .similarity import similarity
from .stabilise import ANSCOMBE_OFFSET, anscombe, to_photoelectrons
from .temporal import Limits, fuse, fused_noise

__all__ = [
    "ANSCOMBE_OFFSET", "MEDIAN_OF_NORMAL", "UPSAMPLE_TAPS", "Floats", "Limits", "ResidualStatistics", "Scalar",
    "anscombe", "balanced", "bfloat16_bits", "block_means", "content_key", "edm", "from_model", "fuse", "fused_noise",
    "inverse_anscombe", "lag_products", "laplacian", "laplacian_noise", "noise_condition", "normal", "percentiles",
    "philox4x32", "pixel_unshuffle", "preview_u8", "residual_statistics", "round_and_clip", "similarity", "to_adu",
    "to_model", "to_photoelectrons", "unbiased_inverse", "upsample2", "x0_hat",
]  # fmt: skip
