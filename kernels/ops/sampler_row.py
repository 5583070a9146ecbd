"""One row of a sampler, fused with EDM's preconditioning before and after it: one pass over the frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import native, reference
from ..arguments import structure
from .checks import Float32, FrameError, address, check_writable, float_image
from .noise import Key, check_place, normal


@dataclass(frozen=True, kw_only=True)
class RowNoise:
    """Where a row's noise comes from: key of frame and seed, row index, (y, x) of the window in the frame."""

    key: Key
    row: int
    origin: tuple[int, int] = (0, 0)


@dataclass(frozen=True, kw_only=True)
class NextInputs:
    """The network's inputs for the next row, written in the same pass.

    Parameters
    ----------
    plane : (H, W) float32, becomes ``c_in(sigma_next) x'``
    condition : (H, W) float32, becomes ``log(sigma_next) / 4``; None leaves it out
    """

    plane: Float32
    condition: Float32 | None = None


def sampler_row(
    x: Float32,
    network: Float32,
    *,
    a: float,
    b: float,
    sigma: float,
    sigma_next: float,
    sigma_data: float,
    sigma_min: float = 0.002,
    n: float = 0.0,
    y: float = 0.0,
    p: float = 0.0,
    sigma_map: Float32 | None = None,
    x0_before: Float32 | None = None,
    measurement: Float32 | None = None,
    noise: RowNoise | None = None,
    out: Float32,
    x0: Float32 | None = None,
    following: NextInputs | None = None,
) -> None:
    """``x0 = c_skip x + c_out F``, then ``out = a x + b x0 + p x0_before + y measurement + n sigma_map noise``.

    Parameters
    ----------
    x, network : (H, W) float32: the state at level ``sigma``, and the network's output F for it
    a, b, n, y, p : the row, see `runtime.samplers.Row`; arrays with a weight of 0 may be left out
    sigma, sigma_next : levels before and after, in units of ``sigma_map`` where there is one
    sigma_data, sigma_min : of the network, model units
    sigma_map : (H, W) float32, multiplies all levels
    out : (H, W) float32, C order, written; may be ``x``
    x0 : (H, W) float32, C order, becomes x0_hat; may be ``x0_before``; None leaves it out
    following : what the next row's network is fed

    Raises
    ------
    FrameError : an array that the row needs is missing or of another shape or dtype
    """
    x, network = float_image("x", x), float_image("network", network, x.shape)
    needed = {"x0_before": (p, x0_before), "measurement": (y, measurement), "noise": (n, noise)}
    for name, (weight, given) in needed.items():
        if weight and given is None:
            raise FrameError(f"the row weighs {name} by {weight}, but it was not given; pass it")
    if noise is not None:
        check_place(x.shape, noise.key, noise.row, noise.origin)
    before, seen, levels = (
        None if image is None else float_image(name, image, x.shape)
        for name, image in (("x0_before", x0_before), ("measurement", measurement), ("sigma_map", sigma_map))
    )
    _check_written(x.shape, out, x0, *([following.plane, following.condition] if following else []))
    lib = native.library()
    numbers = {"a": a, "b": b, "n": n, "y": y, "p": p, "sigma": sigma, "sigma_next": sigma_next,
               "sigma_data": sigma_data, "sigma_min": sigma_min}  # fmt: skip
    if lib is None:
        _by_reference(x, network, numbers, levels, before, seen, noise, out, x0, following)
        return
    place = noise or RowNoise(key=(0, 0), row=0)
    lib.call("sampler_row", structure("SamplerRow")(
        x=address(x), network=address(network), x0_before=address(before), measurement=address(seen),
        sigma_map=address(levels), height=x.shape[0], width=x.shape[1], **numbers, row=place.row,
        key_low=place.key[0], key_high=place.key[1], origin_y=place.origin[0], origin_x=place.origin[1],
        next=address(out), x0=address(x0), plane=address(following.plane) if following else None,
        condition=address(following.condition) if following else None,
    ))  # fmt: skip


def network_planes(
    x: Float32, *, sigma: float, sigma_data: float, sigma_min: float = 0.002, sigma_map: Float32 | None = None,
    inputs: NextInputs,
) -> None:  # fmt: skip
    """What the network is fed at the state ``x`` of level ``sigma`` (times ``sigma_map``), written into ``inputs``.

    Raises
    ------
    FrameError : an array of another shape or dtype
    """
    x = float_image("x", x)
    levels = None if sigma_map is None else float_image("sigma_map", sigma_map, x.shape)
    _check_written(x.shape, inputs.plane, inputs.condition)
    lib = native.library()
    if lib is None:
        level: Any = np.float32(sigma) * (np.float32(1) if levels is None else levels)
        inputs.plane[...] = reference.edm(level, np.float32(sigma_data)).c_in * x
        if inputs.condition is not None:
            inputs.condition[...] = reference.noise_condition(level, np.float32(sigma_min))
        return
    lib.call("sampler_row", structure("SamplerRow")(
        x=address(x), sigma_map=address(levels), height=x.shape[0], width=x.shape[1], sigma_next=sigma,
        sigma_data=sigma_data, sigma_min=sigma_min, plane=address(inputs.plane), condition=address(inputs.condition),
    ))  # fmt: skip


def _check_written(shape: tuple[int, ...], *written: Float32 | None) -> None:
    if any(w is not None and (w.shape != shape or w.dtype != np.float32 or not w.flags.c_contiguous) for w in written):
        raise FrameError(f"an output is not (H, W) float32 of shape {shape} in C order; allocate it so")
    for array in written:
        if array is not None:
            check_writable("an output", array)


def _by_reference(
    x: Float32, network: Float32, row: dict[str, float], levels: Float32 | None, before: Float32 | None,
    seen: Float32 | None, noise: RowNoise | None, out: Float32, x0: Float32 | None, following: NextInputs | None,
) -> None:  # fmt: skip
    single: dict[str, Any] = {name: np.float32(value) for name, value in row.items()}
    scale: Any = np.float32(1) if levels is None else levels
    estimate = reference.x0_hat(x, network, single["sigma"] * scale, single["sigma_data"])
    following_state = single["b"] * estimate + single["a"] * x
    if row["p"]:
        following_state += single["p"] * before
    if row["y"]:
        following_state += single["y"] * seen
    if row["n"] and noise is not None:
        drawn = normal((x.shape[0], x.shape[1]), key=noise.key, row=noise.row, origin=noise.origin)
        following_state += single["n"] * (scale * drawn)
    out[...] = following_state
    if x0 is not None:
        x0[...] = estimate
    if following:
        level = single["sigma_next"] * scale
        following.plane[...] = reference.edm(level, single["sigma_data"]).c_in * following_state
        if following.condition is not None:
            following.condition[...] = reference.noise_condition(level, single["sigma_min"])
