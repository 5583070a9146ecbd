"""Array types of the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Number = float | np.floating[Any]
Scalar = Number | Floats
