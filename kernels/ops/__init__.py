"""Checked entry points to the per-pixel maths: shapes and dtypes verified before anything runs, float32 work arrays.

One file a family; every function has its formula in `kernels.reference`, where it can be read in one line.
"""

from .blocks import block_means
from .checks import FRAME_DTYPES, FrameError
from .counts import to_counts, unstabilise
from .percentiles import percentiles
from .preview import preview_u8
from .resample import upsample2
from .residual import lag_products
from .stabilise import stabilise
from .usable import LARGEST_COUNT, usable_pixels

__all__ = [
    "FRAME_DTYPES",
    "LARGEST_COUNT",
    "FrameError",
    "block_means",
    "lag_products",
    "percentiles",
    "preview_u8",
    "stabilise",
    "to_counts",
    "unstabilise",
    "upsample2",
    "usable_pixels",
]
