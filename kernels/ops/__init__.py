"""Checked entry points to the per-pixel maths: shapes and dtypes verified before anything runs, float32 work arrays.

One file a family; every function has its formula in `kernels.reference`, where it can be read in one line.
"""

from ..reference import Limits
from .blocks import block_means
from .checks import FRAME_DTYPES, FrameError
from .counts import to_counts, unstabilise
from .percentiles import percentiles
from .preview import preview_u8
from .resample import upsample2
from .residual import lag_products
from .similarity import similarity
from .stabilise import stabilise
from .temporal import fuse, noise_level
from .usable import LARGEST_COUNT, usable_pixels

__all__ = [
    "FRAME_DTYPES",
    "LARGEST_COUNT",
    "FrameError",
    "Limits",
    "block_means",
    "fuse",
    "lag_products",
    "noise_level",
    "percentiles",
    "preview_u8",
    "similarity",
    "stabilise",
    "to_counts",
    "unstabilise",
    "upsample2",
    "usable_pixels",
]
