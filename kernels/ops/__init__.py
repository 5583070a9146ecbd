"""Checked entry points to the per-pixel maths: shapes and dtypes verified before anything runs, float32 work arrays.

One file a family; every function has its formula in `kernels.reference`, where it can be read in one line. They run in
the native library where the package was built with a compiler, otherwise in the reference; see `kernels.native`.
"""

from ..reference import Limits, ResidualStatistics
from .blocks import block_means
from .checks import FRAME_DTYPES, FrameError
from .counts import electrons_of, to_counts, unstabilise, write_counts
from .network_input import network_input
from .noise import Key, content_key, count_at_least, normal, seeded_key
from .noise_level import laplacian_noise
from .percentiles import percentiles
from .preview import preview_u8
from .resample import upsample2
from .residual import lag_products, residual_statistics
from .sampler_row import NextInputs, RowNoise, network_planes, sampler_row
from .similarity import similarity
from .stabilise import stabilise, stabilise_coefficients, stabilise_with
from .temporal import fuse, fused_noise
from .usable import LARGEST_COUNT, usable_pixels

__all__ = [
    "FRAME_DTYPES", "LARGEST_COUNT", "FrameError", "Key", "Limits", "NextInputs", "ResidualStatistics", "RowNoise",
    "block_means", "content_key", "count_at_least", "electrons_of", "fuse", "fused_noise", "lag_products",
    "laplacian_noise", "network_input", "network_planes", "normal", "percentiles", "preview_u8", "residual_statistics",
    "sampler_row", "seeded_key", "similarity", "stabilise", "stabilise_coefficients", "stabilise_with", "to_counts",
    "unstabilise", "upsample2", "usable_pixels", "write_counts",
]  # fmt: skip
