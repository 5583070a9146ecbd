"""A whole restoration as one ONNX graph: uint16 frame and camera numbers in, uint16 frame out, for any ONNX runtime.

    counts -> stabilise -> model range -> padding -> K x (planes, network, sampler row) -> inverse -> balance -> counts

The graph computes what `photonstep.runtime.restore` computes for one frame on its own, within one count. The steps are
unrolled and share their weights; there is no Loop, If or Scan, no noise, and no operator that knows where a pixel lies,
so a frame of any size gives the pixels that the runtime gives. What is one number for the frame (camera, percentiles,
balance) is computed in float64, pixels in float32.

Its operator set is that of the network it holds (`export.onnx.OPSET`, 20): a graph has one, and every operator here is
the same from opset 18 on. ONNX Runtime reads it since 1.17. TensorRT-RTX parses the network (TensorRT 11 documents
opsets 9 to 25), but no TensorRT has uint16 tensors: there the networks are built, and the runtime does the rest.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from ..kernels.reference import ANSCOMBE_OFFSET, UPSAMPLE_TAPS
from ..runtime import photon_balance as balance
from ..runtime import samplers, schedule
from ..runtime.bundle import FRAME_INPUTS, FRAME_OUTPUT, Bundle
from ..runtime.errors import BundleError, PlanError
from ..runtime.manifest import Defaults, Manifest, ModelSpec, Normalisation, OperatingRange
from ..runtime.plan import MINIMUM_SIDE_PX
from .graph_builder import GraphBuilder, finished

FULL_COUNT = 65535.0
_SMALLEST = np.float64(0.05)  # photoelectrons, of the balance's weights


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What of a manifest a frame graph needs."""

    model: ModelSpec
    normalisation: Normalisation
    operating_range: OperatingRange
    defaults: Defaults
    scale: int = 1

    @classmethod
    def of(cls, manifest: Manifest) -> Recipe:
        return cls(
            model=manifest.model, normalisation=manifest.normalisation, operating_range=manifest.operating_range,
            defaults=manifest.defaults, scale=manifest.scale,
        )  # fmt: skip

    @classmethod
    def of_fields(cls, fields: Mapping[str, Any]) -> Recipe:
        """The same from a manifest's plain JSON values, before it is complete."""
        kinds = {"model": ModelSpec, "normalisation": Normalisation}
        kinds |= {"operating_range": OperatingRange, "defaults": Defaults}
        parts = {name: kind.model_validate_json(json.dumps(fields[name])) for name, kind in kinds.items()}
        return cls(**parts, scale=fields["scale"])


def add_frame_graphs(
    fields: dict[str, Any], members: dict[str, bytes], steps: Iterable[int] = (1, 4), *, detail: float = 0.0
) -> None:
    """Put ``frame_K.onnx`` into a bundle that is being made: into ``members``, and ``fields["frame_graphs"]``.

    Parameters
    ----------
    fields : the manifest as plain JSON values; ``members`` holds its fp32 network
    steps, detail : as in `frame_graph`
    """
    [step] = [members[n["member"]] for n in fields["networks"] if n["precision"] == "fp32"]
    fields["frame_graphs"] = []
    for count in steps:
        name, graph = f"frame_{count}.onnx", frame_graph(step, Recipe.of_fields(fields), count, detail=detail)
        members[name] = graph
        opset = onnx.load_model_from_string(graph).opset_import[0].version
        fields["frame_graphs"].append({"steps": count, "member": name, "opset": opset})


def frame_graph_of(bundle: Bundle, steps: int, *, detail: float = 0.0) -> bytes:
    """The frame graph of a bundle's fp32 network, for any number of steps; see `frame_graph`."""
    return frame_graph(bundle.network("fp32"), Recipe.of(bundle.manifest), steps, detail=detail)


def frame_graph(step: bytes, recipe: Recipe, steps: int, *, detail: float = 0.0) -> bytes:
    """Build the graph of a K-step restoration around one evaluation of the network.

    Parameters
    ----------
    step : ONNX of one evaluation, planes in and EDM residual out (`export.onnx.to_onnx`)
    recipe : how the bundle feeds and reads it, and its default sampler
    steps : K, network evaluations
    detail : where the detail knob stands, 0 (mean) to 1; of networks that have one

    Returns
    -------
    ONNX bytes, checked; the same for the same arguments. Inputs ``frame`` uint16 (H, W), 16 px a side or more,
    ``offset_adu``, ``gain_e_per_adu``, ``readout_noise_e`` float32 scalars, ``noise_correlation`` float32 (2,) along
    (y, x). Output ``restored`` uint16, (H, W) times the scale. A pixel is full at 65535 counts

    Raises
    ------
    BundleError : a network that is fed or read in another way
    PlanError : steps out of range, or a default sampler that adds noise or looks back at the measurement
    """
    _check(recipe, detail)
    rows = samplers.table(recipe.defaults.sampler, schedule.measured(steps))
    if any(row.n or row.y for row in rows):
        raise PlanError(
            f"{recipe.defaults.sampler} adds noise or an anchor; a frame graph is made for ddim and the like"
        )
    network = onnx.load_model_from_string(step)
    g = GraphBuilder(network.graph)
    camera = _Camera.of_inputs(g)
    pixels = g("Unsqueeze", g("Cast", "frame", to=TensorProto.FLOAT), [0, 1])
    z = camera.stabilise(g, pixels)
    scope = _model_range(g, z, recipe.normalisation)
    u = _upsampled(g, scope.to_model(g, z)) if recipe.scale == 2 else scope.to_model(g, z)
    size = _Size.of(g, g("Shape", u))
    padded = size.padded(g, u, recipe.model.multiple)
    restored = size.cropped(g, _walk(g, padded, scope.sigma, rows, recipe, detail))
    electrons = camera.unstabilise(g, scope.from_model(g, restored))
    seen = _means(g, electrons, recipe.scale) if recipe.scale > 1 else electrons
    balanced = _balance(g, pixels, seen, electrons, camera)
    g("Squeeze", camera.to_counts(g, balanced), [0, 1], output=FRAME_OUTPUT)
    sides = ["height", "width"]
    fine_sides = sides if recipe.scale == 1 else [f"fine_{side}" for side in sides]
    shapes = {"frame": (TensorProto.UINT16, sides), "noise_correlation": (TensorProto.FLOAT, [2])}
    inputs = [helper.make_tensor_value_info(n, *shapes.get(n, (TensorProto.FLOAT, []))) for n in FRAME_INPUTS]
    output = helper.make_tensor_value_info(FRAME_OUTPUT, TensorProto.UINT16, fine_sides)
    return finished(g, f"restore_{steps}", inputs, [output], network)


def _check(recipe: Recipe, detail: float) -> None:
    model = recipe.model
    speaks = (model.prediction, model.conditioning, model.input_scaling or "edm", len(model.input_names))
    starts = (model.start, model.measurement_input, model.clip_x0)
    if (speaks, starts) != (("edm_f", "sigma_map", "edm", 1), ("measured", False, None)):
        raise BundleError(
            f"the network is of prediction {model.prediction}, conditioning {model.conditioning}, start {model.start} "
            f"and inputs {', '.join(model.input_names)}; a frame graph is made for EDM residuals with one tensor "
            "of planes, starting at the measured frame"
        )
    if recipe.scale not in (1, 2):
        raise BundleError(f"the bundle's scale is {recipe.scale}; a frame graph is made for scale 1 or 2")
    if recipe.normalisation.block_px > MINIMUM_SIDE_PX:
        raise BundleError(
            f"normalisation.block_px is {recipe.normalisation.block_px}; a frame graph takes {MINIMUM_SIDE_PX} or less"
        )
    if not 0 <= detail <= 1 or (detail and not model.detail_input):
        raise PlanError(f"detail is {detail}; expected 0 to 1, and 0 for a network without a detail knob")


@dataclass(frozen=True)
class _Camera:
    """Names of the camera's numbers in float64, and what follows from them."""

    offset: str
    gain: str
    readout: str
    correlation: str
    floor: str  # 3/8 + r^2

    @classmethod
    def of_inputs(cls, g: GraphBuilder) -> _Camera:
        numbers = [g("Cast", name, to=TensorProto.DOUBLE) for name in FRAME_INPUTS[1:]]
        floor = g("Add", g("Mul", numbers[2], numbers[2]), np.float64(ANSCOMBE_OFFSET))
        return cls(*numbers, floor)

    def stabilise(self, g: GraphBuilder, pixels: str) -> str:
        """``2 sqrt((f - o) g + 3/8 + r^2)`` with one multiply and one add per pixel, as `ops.stabilise`."""
        scale = g("Mul", self.gain, np.float64(4))
        shift = g("Mul", g("Sub", self.floor, g("Mul", self.offset, self.gain)), np.float64(4))
        return g("Sqrt", g("Relu", _line(g, pixels, scale, shift)))

    def unstabilise(self, g: GraphBuilder, z: str) -> str:
        above = g("Relu", z)
        return g("Sub", g("Mul", g("Mul", above, above), np.float32(0.25)), _single(g, self.floor))

    def to_counts(self, g: GraphBuilder, electrons: str) -> str:
        counts = _line(g, electrons, g("Div", np.float64(1), self.gain), self.offset)
        clipped = g("Clip", g("Round", counts), np.float32(0), np.float32(FULL_COUNT))  # Round is half to even
        return g("Cast", clipped, to=TensorProto.UINT16)


@dataclass(frozen=True)
class _Size:
    """Names of an image's height and width, int64 scalars."""

    height: str
    width: str

    @classmethod
    def of(cls, g: GraphBuilder, shape: str) -> _Size:
        return cls(g("Gather", shape, np.int64(2)), g("Gather", shape, np.int64(3)))

    def padded(self, g: GraphBuilder, u: str, multiple: int) -> str:
        """Rows below and columns to the right, mirrored with the edge pixel repeated, up to multiples."""
        for axis, length in ((2, self.height), (3, self.width)):
            cells = g("Div", g("Add", length, np.int64(multiple - 1)), np.int64(multiple))
            places = g("Range", length, g("Mul", cells, np.int64(multiple)), np.int64(1))
            period = g("Mul", length, np.int64(2))
            place = g("Mod", places, period)
            mirrored = g("Min", place, g("Sub", g("Sub", period, np.int64(1)), place))
            u = g("Concat", u, g("Gather", u, mirrored, axis=axis), axis=axis)
        return u

    def cropped(self, g: GraphBuilder, u: str) -> str:
        ends = [g("Unsqueeze", length, [0]) for length in (self.height, self.width)]
        return g("Slice", u, [0, 0], g("Concat", *ends, axis=0), [2, 3])


@dataclass(frozen=True)
class _Range:
    """Names of the model range's numbers, float64 scalars; see `runtime.normalise.ModelRange`."""

    centre: str
    span: str
    sigma: str

    def to_model(self, g: GraphBuilder, z: str) -> str:
        return g("Sub", g("Mul", z, _single(g, self.sigma)), _single(g, g("Div", self.centre, self.span)))

    def from_model(self, g: GraphBuilder, u: str) -> str:
        return _line(g, u, self.span, self.centre)


def _model_range(g: GraphBuilder, z: str, settings: Normalisation) -> _Range:
    """Percentiles of the block means."""
    means = g("Reshape", _means(g, z, settings.block_px), [-1])
    count = g("Size", means)
    low = _percentile(g, means, count, settings.low_percent, from_top=False)
    high = _percentile(g, means, count, settings.high_percent, from_top=True)
    reach = g("Max", g("Sub", high, low), np.float64(settings.minimum_range_z))
    span = g("Div", reach, np.float64(settings.high_u - settings.low_u))
    centre = g("Sub", low, g("Mul", span, np.float64(settings.low_u)))
    return _Range(centre, span, g("Div", np.float64(1), span))


def _percentile(g: GraphBuilder, values: str, count: str, percent: float, *, from_top: bool) -> str:
    """As np.percentile: linear between the two nearest values, of which only one end of the sorted list is made."""
    last = g("Sub", count, np.int64(1))
    place = g("Mul", g("Cast", last, to=TensorProto.DOUBLE), np.float64(percent / 100))
    below = g("Cast", place, to=TensorProto.INT64)
    above = g("Min", g("Add", below, np.int64(1)), last)
    needed = g("Sub", count, below) if from_top else g("Add", above, np.int64(1))
    ends, _ = g.two_outputs("TopK", values, g("Unsqueeze", needed, [0]), largest=int(from_top))
    if from_top:  # the largest value comes first
        below_at, above_at = g("Sub", last, below), g("Sub", last, above)
    else:
        below_at, above_at = below, above
    a, b = (g("Cast", g("Gather", ends, at), to=TensorProto.DOUBLE) for at in (below_at, above_at))
    share = g("Sub", place, g("Cast", below, to=TensorProto.DOUBLE))
    return g("Add", a, g("Mul", g("Sub", b, a), share))


def _walk(g: GraphBuilder, u: str, sigma: str, rows: samplers.Table, recipe: Recipe, detail: float) -> str:
    """The sampler's rows, one evaluation each, from the measured level ``sigma`` to zero."""
    told = [g("Cast", "noise_correlation", to=TensorProto.FLOAT)] if recipe.model.noise_correlation_input else []
    if recipe.model.detail_input:
        told.append(g("Reshape", np.float32(detail), [1]))
    if recipe.model.degradation_sigma:  # an upsampled frame lies off the truth by more than its noise
        more = np.float64(recipe.model.degradation_sigma**2)
        sigma = g("Sqrt", g("Add", g("Mul", sigma, sigma), more))
    area = g("Slice", g("Shape", u), [2], [4])
    x, previous = u, ""
    for row in rows:
        level = g("Mul", sigma, np.float64(row.sigma))
        x0 = _denoised(g, x, level, told, area, recipe)
        weighted = [(row.b, x0), (row.a, x), (row.p, previous)]
        terms = [g("Mul", state, np.float32(weight)) if weight != 1 else state for weight, state in weighted if weight]
        for term in terms[1:]:
            terms[0] = g("Add", terms[0], term)
        x, previous = terms[0], x0
    return x


def _denoised(g: GraphBuilder, x: str, level: str, told: list[str], area: str, recipe: Recipe) -> str:
    """``x0 = c_skip x + c_out F(c_in x, log(sigma) / 4, what else the network is told)``, as `runtime.prediction`."""
    data = np.float64(recipe.model.sigma_data)
    variance = g("Add", g("Mul", level, level), data * data)
    c_in = g("Div", np.float64(1), g("Sqrt", variance))
    weight = g("Mul", c_in, data)
    lowest = np.float64(recipe.operating_range.sigma_min)
    c_noise = _single(g, g("Mul", g("Log", g("Max", level, lowest)), np.float64(0.25)))
    numbers = g("Concat", g("Unsqueeze", c_noise, [0]), *told, axis=0)
    column = g("Reshape", numbers, [1, -1, 1, 1])
    constants = g("Expand", column, g("Concat", [1, 1], area, axis=0))
    planes = g("Concat", g("Mul", x, _single(g, c_in)), constants, axis=1)
    c_skip, c_out = g("Mul", weight, weight), g("Mul", weight, level)
    residual = g.evaluate(planes)
    return g("Add", g("Mul", residual, _single(g, c_out)), g("Mul", x, _single(g, c_skip)))


def _balance(g: GraphBuilder, pixels: str, seen: str, electrons: str, camera: _Camera) -> str:
    """`runtime.photon_balance`: the line that brings restored block means to the measured ones; never negative.

    ``seen`` are the restored photoelectrons in the frame's pixels, ``electrons`` those to correct.
    """
    side = [balance.BLOCK_PX] * 2
    brightest = g("MaxPool", pixels, kernel_shape=side, strides=side)
    kept = g("Cast", g("Less", brightest, np.float32(FULL_COUNT)), to=TensorProto.DOUBLE)
    above = g("Sub", _means(g, pixels, balance.BLOCK_PX), _single(g, camera.offset))
    measured = g("Cast", g("Mul", above, _single(g, camera.gain)), to=TensorProto.DOUBLE)
    restored = g("Cast", _means(g, seen, balance.BLOCK_PX), to=TensorProto.DOUBLE)
    positive = g("Max", camera.correlation, np.float64(0))
    ratios = g("Div", g("Add", positive, np.float64(1)), g("Sub", np.float64(1), positive))
    alike = g("Mul", *(g("Gather", ratios, np.int64(axis)) for axis in (0, 1)))
    noise = g("Add", g("Max", restored, _SMALLEST), g("Mul", camera.readout, camera.readout))
    weight = g("Mul", g("Div", np.float64(balance.BLOCK_PX**2), g("Mul", noise, alike)), kept)
    missing = g("Sub", measured, restored)

    def total(*factors: str) -> str:
        product = factors[0]
        for factor in factors[1:]:
            product = g("Mul", product, factor)
        return g("ReduceSum", product, keepdims=0)

    a = g("Add", total(weight, restored, restored), np.float64(1 / balance.PRIOR_GAIN**2))
    b = total(weight, restored)
    c = g("Add", total(weight), np.float64(1 / balance.PRIOR_SHIFT_E**2))
    p, q = total(weight, restored, missing), total(weight, missing)
    determinant = g("Sub", g("Mul", a, c), g("Mul", b, b))
    change = g("Div", g("Sub", g("Mul", c, p), g("Mul", b, q)), determinant)
    most = np.float64(balance.LARGEST_GAIN_CHANGE)
    change = g("Max", g("Min", change, most), -most)
    shift = g("Div", g("Sub", q, g("Mul", b, change)), c)
    return g("Relu", _line(g, electrons, g("Add", change, np.float64(1)), shift))


def _upsampled(g: GraphBuilder, u: str) -> str:
    """Twice the side as `ops.upsample2`: two fine pixels a side out of five coarse ones, in one convolution."""
    phases = np.zeros((2, 5))
    phases[0, :4], phases[1, 1:] = UPSAMPLE_TAPS, UPSAMPLE_TAPS[::-1]
    kernels = np.einsum("ai,bj->abij", phases, phases).reshape(4, 1, 5, 5).astype(np.float32)
    padded = g("Pad", u, [0, 0, 2, 2, 0, 0, 2, 2], mode="edge")
    return g("DepthToSpace", g("Conv", padded, kernels), blocksize=2)


def _means(g: GraphBuilder, image: str, block_px: int) -> str:
    """Means of whole blocks; a ragged edge is left out."""
    side = [block_px] * 2
    return g("AveragePool", image, kernel_shape=side, strides=side)


def _line(g: GraphBuilder, image: str, scale: str, shift: str) -> str:
    """``image * scale + shift`` in float32; the two numbers are float64 scalars."""
    return g("Add", g("Mul", image, _single(g, scale)), _single(g, shift))


def _single(g: GraphBuilder, number: str) -> str:
    return g("Cast", number, to=TensorProto.FLOAT)
