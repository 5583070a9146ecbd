"""One row of a sampler's table after EDM's preconditioning of the network's output.

Source: Karras et al. 2022, arXiv:2206.00364, table 1.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .arrays import Floats, Number, Scalar


class Edm(NamedTuple):
    """``x0 = c_skip x + c_out F(c_in x)``: numbers, or maps where sigma is a map."""

    c_in: Scalar
    c_skip: Scalar
    c_out: Scalar


def edm(sigma: Scalar, sigma_data: Number) -> Edm:
    """EDM's coefficients at a level."""
    c_in = 1 / np.sqrt(sigma * sigma + sigma_data * sigma_data)
    weight = sigma_data * c_in
    return Edm(c_in=c_in, c_skip=weight * weight, c_out=sigma * weight)


def x0_hat(x: Floats, network: Floats, sigma: Scalar, sigma_data: Number) -> Floats:
    """The clean-image estimate that a network's output means."""
    c = edm(sigma, sigma_data)
    x0: Floats = c.c_out * network + c.c_skip * x
    return x0


def noise_condition(sigma: Scalar, sigma_min: Number) -> Scalar:
    """``log(sigma) / 4``; a level below ``sigma_min`` counts as it."""
    told: Scalar = np.log(np.maximum(sigma, sigma_min)) / 4
    return told
