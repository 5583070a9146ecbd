"""Counts to photoelectrons to unit-variance coordinates.

With photoelectrons ``e`` distributed as Poisson(lambda) + N(0, r^2), the generalised Anscombe transform
``z = 2 sqrt(e + 3/8 + r^2)`` has noise of unit variance to a good approximation.

Source: Starck, Murtagh & Bijaoui 1998 (generalised Anscombe transform); Makitalo & Foi 2013, IEEE TIP 22:91.
"""

from __future__ import annotations

import numpy as np

from .arrays import Floats, Scalar

ANSCOMBE_OFFSET = 0.375


def to_photoelectrons(frame: Floats, offset_adu: Scalar, gain_e_per_adu: Scalar) -> Floats:
    """``e = (frame - offset) * gain``; may be negative."""
    electrons: Floats = (frame - offset_adu) * gain_e_per_adu
    return electrons


def anscombe(electrons: Floats, readout_noise_e: Scalar) -> Floats:
    """``z = 2 sqrt(max(0, e + 3/8 + r^2))``."""
    z: Floats = 2 * np.sqrt(np.maximum(electrons + (ANSCOMBE_OFFSET + readout_noise_e**2), 0))
    return z
