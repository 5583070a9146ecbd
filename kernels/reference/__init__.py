"""The per-pixel maths as plain NumPy formulas in the dtype of their input: the oracle for every faster version.

One file a family, with the same stem as in `kernels.ops` (the checked entry points) and in ``kernels/csrc`` .
"""

from .arrays import Floats, Scalar
from .blocks import block_means
from .counts import inverse_anscombe, round_and_clip, to_adu
from .percentiles import percentiles
from .preview import preview_u8
from .resample import UPSAMPLE_TAPS, upsample2
from .residual import lag_products
from .stabilise import ANSCOMBE_OFFSET, anscombe, to_photoelectrons

__all__ = [
    "ANSCOMBE_OFFSET",
    "UPSAMPLE_TAPS",
    "Floats",
    "Scalar",
    "anscombe",
    "block_means",
    "inverse_anscombe",
    "lag_products",
    "percentiles",
    "preview_u8",
    "round_and_clip",
    "to_adu",
    "to_photoelectrons",
    "upsample2",
]
