"""Samplers as tables of coefficients: each one is a short function, one loop walks any table.

In variance-exploding coordinates (see `runtime.schedule`) every few-step sampler is a list of rows

    x' = a x + b x0_hat + n noise + y measurement + p x0_hat_prev

with ``x0_hat = denoise(x, sigma)``, one network evaluation per row. A deterministic sampler has ``n = 0`` in all rows.

    rows = table("ddim", schedule.measured(steps=4))             # relative levels, 1 -> 0
    restored = sample(frame, rows, denoise, sigma_map=sigma)     # sigma: float or per-pixel map, model units

`apply_row` is plain NumPy, for any network and dtype. `runtime.denoiser` walks photonstep's own networks with the fused
kernel `kernels.ops.sampler_row`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass, replace
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..kernels import ops
from .errors import PlanError, ShapeError
from .schedule import FloatArray, level_like, pairs


@dataclass(frozen=True, kw_only=True)
class Row:
    """One network evaluation at ``sigma`` and the update that takes the state to ``sigma_next``.

    Rows are homogeneous in sigma: ``a, b, y, p`` depend on ratios of levels only, and ``sigma, sigma_next, n`` are
    proportional to them. So a table made from relative levels (1 -> 0), applied with a sigma map, equals at every pixel
    the table made from that pixel's absolute levels.

    Parameters
    ----------
    sigma, sigma_next : noise level before and after, sigma > 0 and 0 <= sigma_next <= sigma
    a, b, p, y : weights of the state, x0_hat, the previous row's x0_hat and the measurement; they sum to 1
    n : standard deviation of the added noise, in the units of sigma
    """

    sigma: float
    sigma_next: float
    a: float
    b: float
    n: float = 0.0
    y: float = 0.0
    p: float = 0.0

    def __post_init__(self) -> None:
        if not all(math.isfinite(value) for value in astuple(self)):
            raise PlanError(f"{self}; expected finite coefficients")
        if not (self.sigma > 0 and 0 <= self.sigma_next <= self.sigma and self.n >= 0):
            raise PlanError(f"{self}; expected sigma > 0, 0 <= sigma_next <= sigma and n >= 0")

    def scaled(self, factor: float) -> Row:
        """The same row where all noise levels are ``factor`` times as high."""
        return replace(self, sigma=self.sigma * factor, sigma_next=self.sigma_next * factor, n=self.n * factor)


Table = tuple[Row, ...]
Denoise = Callable[[FloatArray, float | FloatArray], FloatArray]
Noise = Callable[[int], FloatArray]


def ddim(levels: Iterable[float], *, eta: float = 0.0) -> Table:
    """DDIM; ``eta`` = 0 is deterministic (also EDM's Euler and first-order DPM-Solver++), 1 is DDPM.

    Source: Song et al. 2021, arXiv:2010.02502, eq. 12 and 16.
    """
    if not 0 <= eta <= 1:
        raise PlanError(f"eta is {eta}; expected 0 (deterministic) to 1 (DDPM)")
    rows = []
    for sigma, sigma_next in pairs(levels):
        r = sigma_next / sigma
        added = eta * sigma_next * math.sqrt(1 - r**2)
        kept = math.sqrt(sigma_next**2 - added**2) / sigma
        rows.append(Row(sigma=sigma, sigma_next=sigma_next, a=kept, b=1 - kept, n=added))
    return tuple(rows)


def ddpm(levels: Iterable[float]) -> Table:
    """DDPM's posterior between any two levels (ancestral Euler; the posterior of I2SB and ResShift). Stochastic.

    Source: Ho et al. 2020, arXiv:2006.11239, eq. 6 and 7.
    """
    rows = []
    for sigma, sigma_next in pairs(levels):
        r = sigma_next / sigma
        added = sigma_next * math.sqrt(1 - r**2)
        rows.append(Row(sigma=sigma, sigma_next=sigma_next, a=r**2, b=1 - r**2, n=added))
    return tuple(rows)


def ot_ode(levels: Iterable[float]) -> Table:
    """The mean of `ddpm`'s posterior, without its noise: a deterministic walk along a bridge.

    Where the state is a blend of the clean and the degraded image, this follows the straight path between them.

    Source: Liu et al. 2023 (I2SB), arXiv:2302.05872, section 3.3.
    """
    return tuple(replace(row, n=0.0) for row in ddpm(levels))


def dpm_solver_pp_2m(levels: Iterable[float]) -> Table:
    """DPM-Solver++(2M): second order from the previous x0_hat, one evaluation per step.

    The first row has no previous x0_hat, and a row to sigma 0 has an infinite step in lambda: both are first order.

    Source: Lu et al. 2022, arXiv:2211.01095, algorithm 2.
    """
    rows = []
    h_prev = 0.0
    for index, (sigma, sigma_next) in enumerate(pairs(levels)):
        r = sigma_next / sigma
        h = math.log(sigma / sigma_next) if sigma_next > 0 else math.inf
        extrapolated = h / (2 * h_prev) if index > 0 and sigma_next > 0 else 0.0
        b, p = (1 - r) * (1 + extrapolated), -(1 - r) * extrapolated
        rows.append(Row(sigma=sigma, sigma_next=sigma_next, a=r, b=b, p=p))
        h_prev = h
    return tuple(rows)


def heun(levels: Iterable[float]) -> Table:
    """EDM's deterministic Heun: a predictor row and a corrector row per step; 2K - 1 evaluations down to sigma 0.

    The corrector averages the slopes at both ends. It is written with the predicted state and the predictor's x0_hat,
    because the state before is known from them: ``x = (x' - (1 - r) x0_hat_prev) / r``. The step to 0 has no corrector.

    Source: Karras et al. 2022, arXiv:2206.00364, algorithm 1.
    """
    rows = []
    for sigma, sigma_next in pairs(levels):
        r = sigma_next / sigma
        rows.append(Row(sigma=sigma, sigma_next=sigma_next, a=r, b=1 - r))
        if sigma_next > 0:
            half = (1 - r) / (2 * r)
            rows.append(Row(sigma=sigma_next, sigma_next=sigma_next, a=1.0, b=half, p=-half))
    return tuple(rows)


def consistency(levels: Iterable[float], *, sigma_min: float = 0.0) -> Table:
    """Multistep consistency sampling: jump to x0_hat, add noise of the next level. Stochastic from two steps on.

    ``sigma_min`` is the level that the consistency model was trained to map to (epsilon in the paper), in the units of
    the levels.

    Source: Song et al. 2023, arXiv:2303.01469, algorithm 1.
    """
    steps = pairs(levels)
    lowest = min(level for step in steps for level in step if level > 0)
    if not 0 <= sigma_min <= lowest:
        raise PlanError(f"sigma_min is {sigma_min}; expected 0 to the lowest positive level, {lowest}")
    rows = []
    for sigma, sigma_next in steps:
        added = math.sqrt(sigma_next**2 - sigma_min**2) if sigma_next > 0 else 0.0
        rows.append(Row(sigma=sigma, sigma_next=sigma_next, a=0.0, b=1.0, n=added))
    return tuple(rows)


def bridge(levels: Iterable[float], *, anchor: float = 0.0) -> Table:
    """Walk from a degraded start y (super-resolution: the upsampled frame) to the clean image; levels are times t.

    ``anchor`` = 0 is InDI, which trusts the state; 1 is cold diffusion, which blends x0_hat with the measurement afresh
    at every step. Time is taken relative to the first level, where the state is the measurement.

    Source: Delbracio & Milanfar 2023, arXiv:2303.11435; Bansal et al. 2022, arXiv:2208.09392, algorithm 1.
    """
    if not 0 <= anchor <= 1:
        raise PlanError(f"anchor is {anchor}; expected 0 (InDI) to 1 (cold diffusion)")
    steps = pairs(levels)
    start = steps[0][0]
    rows = []
    for t, t_next in steps:
        a, y = (1 - anchor) * t_next / t, anchor * t_next / start
        rows.append(Row(sigma=t, sigma_next=t_next, a=a, b=1 - a - y, y=y))
    return tuple(rows)


SAMPLERS: Final[dict[str, Callable[..., Table]]] = {
    "ddim": ddim,
    "ddpm": ddpm,
    "ot_ode": ot_ode,
    "dpm_solver_pp_2m": dpm_solver_pp_2m,
    "heun": heun,
    "consistency": consistency,
    "bridge": bridge,
}


def table(name: str, levels: Iterable[float], **settings: float) -> Table:
    """The rows of a sampler, by name.

    Parameters
    ----------
    name : a key of `SAMPLERS`
    levels : descending sigmas, absolute or relative (see `runtime.schedule`)
    settings : the sampler's own: ``eta`` (ddim), ``sigma_min`` (consistency), ``anchor`` (bridge)

    Raises
    ------
    PlanError : an unknown sampler, a setting that it does not take, or a value out of range
    """
    return _table(name, tuple(levels), tuple(sorted(settings.items())))


@lru_cache(maxsize=64)  # a live stream asks for the same table for every frame
def _table(name: str, levels: tuple[float, ...], chosen: tuple[tuple[str, float], ...]) -> Table:
    settings = dict(chosen)
    if name not in SAMPLERS:
        raise PlanError(f"sampler is {name!r}; choose one of {', '.join(SAMPLERS)}")
    taken = [key for key in inspect.signature(SAMPLERS[name]).parameters if key != "levels"]
    unknown = [key for key in settings if key not in taken]
    if unknown:
        raise PlanError(f"{name} got settings {', '.join(unknown)}; it takes {', '.join(taken) or 'none'}")
    return SAMPLERS[name](levels, **settings)


def is_stochastic(rows: Table) -> bool:
    """Whether the table adds noise, so that `sample` needs a noise source."""
    return any(row.n != 0 for row in rows)


def seeded_noise(seed: int, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> Noise:
    """Unit normal noise for `sample`: same seed and row index, same array, in whatever order they are asked.

    For tiles, make it once for the whole frame and cut each tile's part: tiled then equals whole.
    """
    width = np.dtype(dtype)
    if width not in (np.float32, np.float64):
        raise ShapeError(f"noise dtype is {width}; expected float32 or float64")

    def noise(index: int) -> FloatArray:
        rng = np.random.default_rng((seed, index))
        if width == np.float32:
            return rng.standard_normal(shape, dtype=np.float32)
        return rng.standard_normal(shape, dtype=np.float64)

    return noise


@dataclass(frozen=True, kw_only=True)
class FrameNoise:
    """Unit normal noise of a frame's window, as a noise source for `sample`: row index -> (H, W) float32.

    It depends on the frame's content, the seed, the row and the pixel's place in the frame, on nothing else: the tiles
    of a frame get the parts of the whole frame's noise.
    """

    key: ops.Key
    shape: tuple[int, int]
    origin: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, frame: NDArray[Any], shape: tuple[int, int], seed: int = 0) -> FrameNoise:
        """The noise of one frame and seed on a grid of ``shape``."""
        return cls(key=ops.seeded_key(ops.content_key(frame), seed), shape=shape)

    def __call__(self, index: int) -> FloatArray:
        return ops.normal(self.shape, key=self.key, row=index, origin=self.origin)

    def window(self, read: tuple[slice, slice]) -> FrameNoise:
        """A tile's part of it; ``read`` are (rows, columns) of this window."""
        (y0, y1, _), (x0, x1, _) = (s.indices(n) for s, n in zip(read, self.shape, strict=True))
        return replace(self, shape=(y1 - y0, x1 - x0), origin=(self.origin[0] + y0, self.origin[1] + x0))

    def row(self, index: int) -> ops.RowNoise:
        """What a kernel is told."""
        return ops.RowNoise(key=self.key, row=index, origin=self.origin)


def sample(
    x: FloatArray,
    rows: Table,
    denoise: Denoise,
    *,
    sigma_map: float | FloatArray = 1.0,
    noise: Noise | None = None,
    measurement: FloatArray | None = None,
) -> FloatArray:
    """Walk a table from the state ``x`` and return the last state. ``x`` is not modified.

    Parameters
    ----------
    x : float32 or float64, any shape; the measured frame in model units, at the level of the first row
    rows : from `table` or a sampler
    denoise : ``denoise(x, sigma) -> x0_hat``, sigma a float or a map, x0_hat of x's shape and dtype
    sigma_map : multiplies the levels of the table: the measured level of a table of relative levels, as a float or a
        map that broadcasts to ``x``; 1 for a table of absolute levels
    noise : row index -> unit normal array like ``x`` (`seeded_noise`); needed by stochastic tables
    measurement : array like ``x``; needed by an anchored bridge

    Raises
    ------
    PlanError : the table is empty or needs noise or a measurement that was not given
    ShapeError : arrays differ in shape or dtype
    """
    if not rows:
        raise PlanError("the table has no rows; expected at least one step")
    scale = level_like(sigma_map, x)
    x0_prev: FloatArray | None = None
    for index, row in enumerate(rows):
        if row.n and noise is None:
            raise PlanError(f"row {index} adds noise, but none was given; pass noise=seeded_noise(seed, shape)")
        x0 = denoise(x, row.sigma * scale)
        fresh = noise(index) if row.n and noise is not None else None
        x = apply_row(row, x, x0, x0_prev=x0_prev, noise=fresh, measurement=measurement, sigma_map=scale)
        x0_prev = x0
    return x


def apply_row(
    row: Row,
    x: FloatArray,
    x0: FloatArray,
    *,
    x0_prev: FloatArray | None = None,
    noise: FloatArray | None = None,
    measurement: FloatArray | None = None,
    sigma_map: float | FloatArray = 1.0,
) -> FloatArray:
    """``a x + b x0 + n sigma_map noise + y measurement + p x0_prev`` as a new array of x's dtype.

    Parameters
    ----------
    x, x0, x0_prev, noise, measurement : same shape, all float32 or all float64; the last three only where the row's
        coefficient is not 0
    sigma_map : float, or a map that broadcasts to ``x``

    Raises
    ------
    PlanError : the row needs an array that was not given
    ShapeError : an array differs from ``x`` in shape or dtype
    """
    if x.dtype not in (np.float32, np.float64):
        raise ShapeError(f"the state is {x.dtype}; expected float32 or float64")
    _check_like(x, x0, "x0_hat")
    out = row.b * x0
    if row.a:
        out += row.a * x
    for coefficient, array, name in (
        (row.p, x0_prev, "the previous x0_hat"),
        (row.y, measurement, "the measurement"),
        (row.n, noise, "noise"),
    ):
        if not coefficient:
            continue
        if array is None:
            raise PlanError(f"{row} weighs {name} by {coefficient}, but it was not given; pass it")
        _check_like(x, array, name)
        out += coefficient * (level_like(sigma_map, x) * array if name == "noise" else array)
    return out


def _check_like(x: FloatArray, array: FloatArray, name: str) -> None:
    if array.shape != x.shape or array.dtype != x.dtype:
        raise ShapeError(f"{name} is {array.shape} {array.dtype}, the state is {x.shape} {x.dtype}; they must agree")
