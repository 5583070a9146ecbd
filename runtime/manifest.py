"""``manifest.json``: everything that a bundle says about itself, as strict and frozen models.

An unknown field, a missing field, a wrong type or a number that is not finite is an error that names the field. The
table of fields with their units is in ``docs/bundle.md``.
"""

from __future__ import annotations

import json
from datetime import date
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .archive import MANIFEST_MEMBER, MAX_FILE_BYTES, MEMBER_NAME_PATTERN
from .errors import BundleError
from .prediction import Conditioning, InputScaling, Prediction
from .strict_json import parse_json

FORMAT = "photonstep-bundle"
FORMAT_VERSION = 1
MAX_SIDE_PX = 8192

Start = Literal["measured", "noise", "degraded", "noisy_degraded"]
End = Literal["zero", "first_level"]
Precision = Literal["fp32", "bf16", "fp16", "int8", "int8_symmetric"]
Line = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]+$")]
Text = Annotated[str, Field(min_length=1, max_length=20_000)]
Identifier = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
TensorName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.:/-]{0,99}$")]
MemberName = Annotated[str, Field(pattern=MEMBER_NAME_PATTERN)]
SpdxExpression = Annotated[str, Field(pattern=r"^[A-Za-z0-9.+()-]+( [A-Za-z0-9.+()-]+)*$", max_length=200)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE_PX)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class MemberRecord(_Strict):
    """One member of the archive: size in bytes and SHA-256 of its content."""

    name: MemberName
    size_bytes: Annotated[int, Field(ge=0, le=MAX_FILE_BYTES)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class TrainingData(_Strict):
    """A data set that the weights were trained on, with its own licence and where it came from."""

    name: Line
    licence: Line
    source: Line


class ModelSpec(_Strict):
    """What the network computes: conventions of its inputs and output, shared by all precisions.

    ``sigma_data`` is the standard deviation of clean frames in model units. ``noise_correlation_input`` says that two
    constant planes follow the noise level: the lag-1 autocorrelation of the noise along y, then along x. H and W must
    be multiples of ``multiple``; an output pixel sees ``receptive_radius_px`` input pixels to each side.
    ``detail_input`` says that one more constant plane follows: the detail knob, 0 (mean) to 1. ``degradation_sigma`` is
    how far, in model units, an upsampled frame lies from the truth beside its noise (super-resolution); it is added in
    quadrature to the measured noise level.
    ``measurement_input`` says that the frame itself, in model units, follows them: what a conditional model looks at.
    ``start`` is the state that sampling begins with and ``end`` where it stops (`runtime.start`). ``sigmas`` is the
    noise level per timestep of a bridge, which has no alphas_cumprod. x0_hat is clipped to ``clip_x0``.
    ``prediction``, ``conditioning``, ``input_scaling`` and ``integer_timestep`` mean what ``runtime.prediction`` says.
    """

    prediction: Prediction
    conditioning: Conditioning
    input_scaling: InputScaling | None = None
    integer_timestep: bool = True
    sigma_data: Positive
    noise_correlation_input: bool
    detail_input: bool = False
    degradation_sigma: NonNegative = 0.0
    measurement_input: bool = False
    start: Start = "measured"
    end: End = "zero"
    input_names: Annotated[tuple[TensorName, ...], Field(min_length=1, max_length=4)]
    output_name: TensorName
    channels: Literal[1]
    multiple: Annotated[int, Field(ge=1, le=256)]
    receptive_radius_px: Annotated[int, Field(ge=0, le=MAX_SIDE_PX)]
    alphas_cumprod: Annotated[tuple[float, ...], Field(min_length=2, max_length=10_000)] | None = None
    sigmas: Annotated[tuple[Positive, ...], Field(min_length=2, max_length=10_000)] | None = None
    clip_x0: tuple[float, float] | None = None
    parameters: Annotated[int, Field(ge=1)]
    kmac_per_px: Positive

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.input_names)) != len(self.input_names):
            raise ValueError(f"input_names {list(self.input_names)} repeat a name; name every input once")
        if self.conditioning == "timestep" and self.alphas_cumprod is None and self.sigmas is None:
            raise ValueError("conditioning is 'timestep' but alphas_cumprod is missing; give one value per timestep")
        alphas = self.alphas_cumprod or ()
        if any(not 0 < a < 1 for a in alphas) or any(a <= b for a, b in pairwise(alphas)):
            raise ValueError("alphas_cumprod must fall strictly, between 1 and 0, both excluded")
        if any(a >= b for a, b in pairwise(self.sigmas or ())):
            raise ValueError("sigmas must rise strictly")
        if self.clip_x0 is not None:
            _check_range("clip_x0 low", self.clip_x0[0], "clip_x0 high", self.clip_x0[1])
        self._check_start()
        return self

    def _check_start(self) -> None:
        bridge = self.start in ("degraded", "noisy_degraded")
        if bridge != (self.sigmas is not None):
            raise ValueError(f"start is {self.start!r} {'without' if bridge else 'with'} sigmas; a bridge has both")
        if bridge and (self.conditioning != "timestep" or self.alphas_cumprod is not None):
            raise ValueError("sigmas go with conditioning 'timestep' and without alphas_cumprod")
        if self.end == "first_level" and not bridge:
            raise ValueError(f"end is 'first_level' with start {self.start!r}; only a bridge may end there")
        if self.start == "noise" and self.conditioning == "gamma" and self.alphas_cumprod is None:
            raise ValueError("start is 'noise' but alphas_cumprod is missing; give one value per timestep")


class Normalisation(_Strict):
    """How a stabilised frame z becomes model units, ``u = (z - c) / s``.

    z is averaged over blocks of ``block_px`` squared; z_low and z_high are the two percentiles of the block means.
    ``s = max(z_high - z_low, minimum_range_z) / (high_u - low_u)`` and ``c = z_low - low_u * s``: the low percentile
    lands on ``low_u``, the high one on ``high_u`` or below. The noise level in model units is ``1 / s``.
    """

    method: Literal["block_percentile"]
    block_px: Annotated[int, Field(ge=1, le=64)]
    low_percent: Annotated[float, Field(ge=0, le=100)]
    high_percent: Annotated[float, Field(ge=0, le=100)]
    minimum_range_z: Positive
    low_u: float = 0.0
    high_u: float = 1.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_range("low_percent", self.low_percent, "high_percent", self.high_percent)
        _check_range("low_u", self.low_u, "high_u", self.high_u)
        return self


class NetworkRecord(_Strict):
    """An ONNX network of one precision. Its graph has the inputs and the output that ``ModelSpec`` names.

    ``int8`` is quantised for CPUs (unsigned activations), ``int8_symmetric`` for TensorRT; ``fp16`` is strongly typed.
    """

    precision: Precision
    member: MemberName
    opset: Annotated[int, Field(ge=1)]


class FrameGraph(_Strict):
    """A whole restoration of ``steps`` evaluations as one ONNX graph: uint16 frame, camera numbers in; uint16 out."""

    steps: Annotated[int, Field(ge=1, le=64)]
    member: MemberName
    opset: Annotated[int, Field(ge=1)]


class Defaults(_Strict):
    """The plan that runs when the caller names none, and the largest number of steps that was validated."""

    steps: Annotated[int, Field(ge=1)]
    sampler: Identifier
    max_steps: Annotated[int, Field(ge=1, le=1000)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.steps > self.max_steps:
            raise ValueError(f"steps is {self.steps}, max_steps is {self.max_steps}; steps must not exceed it")
        return self


class OperatingRange(_Strict):
    """Where the model was trained and validated: sigma in model units, photons in photoelectrons per pixel."""

    sigma_min: Positive
    sigma_max: Positive
    photons_min: NonNegative
    photons_max: NonNegative
    max_noise_correlation: Annotated[float, Field(ge=0, le=1)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_range("sigma_min", self.sigma_min, "sigma_max", self.sigma_max)
        _check_range("photons_min", self.photons_min, "photons_max", self.photons_max)
        return self


class RawArray(_Strict):
    """A member that holds one (H, W) frame, little-endian, row by row, without a header."""

    member: MemberName
    shape: tuple[Side, Side]
    dtype: Literal["uint16"]

    @property
    def size_bytes(self) -> int:
        return 2 * self.shape[0] * self.shape[1]


class TestCamera(_Strict):
    """The camera of the test frame: ADU, photoelectrons per ADU, rms photoelectrons, lag-1 (y, x) correlation."""

    __test__ = False  # pytest collects classes called Test...

    offset_adu: float
    gain_e_per_adu: Positive
    readout_noise_e: NonNegative
    saturation_adu: float | None = None
    noise_correlation: tuple[Annotated[float, Field(ge=-1, le=1)], Annotated[float, Field(ge=-1, le=1)]] = (0.0, 0.0)


class TestFrame(_Strict):
    """A real frame and what the fp32 network makes of it with the default plan.

    ``tolerance_counts`` is the largest absolute difference per pixel, in ADU, that any backend may show.
    """

    __test__ = False

    input: RawArray
    expected: RawArray
    camera: TestCamera
    tolerance_counts: NonNegative

    @model_validator(mode="after")
    def _check(self) -> Self:
        ratios = {e / i for i, e in zip(self.input.shape, self.expected.shape, strict=True)}
        if len(ratios) != 1 or not min(ratios).is_integer():
            raise ValueError(
                f"input is {self.input.shape}, expected is {self.expected.shape}; expected one shape, or twice the side"
            )
        return self


class Report(_Strict):
    """The validation report: a JSON member and, if there are any, its pictures."""

    member: MemberName
    pictures: Annotated[tuple[MemberName, ...], Field(max_length=32)] = ()


class Manifest(_Strict):
    """The manifest of a bundle, format version 1."""

    format: Literal["photonstep-bundle"]
    format_version: Literal[1]
    name: Identifier
    version: Annotated[str, Field(pattern=r"^[0-9]+\.[0-9]+\.[0-9]+([-+][0-9A-Za-z.-]{1,60})?$", max_length=100)]
    created: date
    task: Literal["denoise", "super_resolution"]
    scale: Annotated[int, Field(ge=1, le=8)]
    licence: SpdxExpression
    authors: Annotated[tuple[Line, ...], Field(min_length=1, max_length=64)]
    provenance: Text
    training_data: Annotated[tuple[TrainingData, ...], Field(max_length=256)]
    model: ModelSpec
    normalisation: Normalisation
    networks: Annotated[tuple[NetworkRecord, ...], Field(min_length=1, max_length=8)]
    frame_graphs: Annotated[tuple[FrameGraph, ...], Field(max_length=8)] = ()
    defaults: Defaults
    operating_range: OperatingRange
    test_frame: TestFrame | None = None
    report: Report | None = None
    model_card: MemberName | None = None
    members: Annotated[tuple[MemberRecord, ...], Field(min_length=1, max_length=63)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        wanted = {"denoise": 1, "super_resolution": 2}[self.task]
        if self.scale != wanted:
            raise ValueError(f"scale is {self.scale}; task {self.task!r} has scale {wanted}")
        counts = [graph.steps for graph in self.frame_graphs]
        if len(set(counts)) != len(counts):
            raise ValueError(f"frame_graphs have the steps {counts}; expected every number of steps once")
        precisions = [network.precision for network in self.networks]
        if len(set(precisions)) != len(precisions) or "fp32" not in precisions:
            raise ValueError(f"networks have the precisions {precisions}; expected fp32, and every precision once")
        names = [record.name for record in self.members]
        if names != sorted(set(names)) or MANIFEST_MEMBER in names:
            raise ValueError(f"members must be sorted by name, each once, without {MANIFEST_MEMBER}")
        for name, suffix, role in self._references():
            if not name.endswith(suffix):
                raise ValueError(f"{role} is member {name!r}; expected a name ending in {suffix}")
            if name not in names:
                raise ValueError(f"{role} is member {name!r}, which members does not list; add it")
        return self

    def _references(self) -> list[tuple[str, str, str]]:
        """Every member that a field names, as (member, suffix, field)."""
        found = [(network.member, ".onnx", f"network {network.precision}") for network in self.networks]
        found += [(graph.member, ".onnx", f"frame graph of {graph.steps} steps") for graph in self.frame_graphs]
        if self.model_card is not None:
            found.append((self.model_card, ".md", "model_card"))
        if self.test_frame is not None:
            found.append((self.test_frame.input.member, ".raw", "test_frame.input"))
            found.append((self.test_frame.expected.member, ".raw", "test_frame.expected"))
        if self.report is not None:
            found.append((self.report.member, ".json", "report"))
            found += [(picture, ".png", "report.pictures") for picture in self.report.pictures]
        return found

    def to_json(self) -> bytes:
        """Return the manifest as UTF-8 JSON: fields in the order of this class, absent optional fields left out."""
        fields = self.model_dump(mode="json", exclude_none=True)
        return (json.dumps(fields, indent=1, allow_nan=False) + "\n").encode("ascii")


def parse_manifest(content: bytes, where: str) -> Manifest:
    """Return the checked manifest.

    Parameters
    ----------
    content : the member's bytes, UTF-8 JSON
    where : the bundle's file name, for messages

    Raises
    ------
    BundleError : not JSON, a newer format version, or a field that is unknown, missing or impossible
    """
    place = f"{where}: member {MANIFEST_MEMBER!r}"
    fields = parse_json(content, place)
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise BundleError(
            f"{place} is not a photonstep manifest; expected an object with format {FORMAT!r}; check the path"
        )
    version = fields.get("format_version")
    if type(version) is int and version > FORMAT_VERSION:
        raise BundleError(
            f"{place} has format_version {version}; this photonstep reads up to {FORMAT_VERSION}; upgrade photonstep"
        )
    try:
        return Manifest.model_validate_json(json.dumps(fields))
    except ValidationError as error:
        raise BundleError(_explain(error, place)) from None


def _explain(error: ValidationError, place: str) -> str:
    problems = error.errors(include_url=False, include_context=False)
    first = problems[0]
    message = first["msg"].removeprefix("Value error, ")
    field = f"field {_shorten('.'.join(map(str, first['loc'])))!r}"
    if first["type"] == "missing":
        found = f"{field} is missing: {message}"
    elif first["type"] == "value_error":  # its message already carries the values
        found = f"{field}: {message}" if first["loc"] else message
    else:
        found = f"{field} is {_shorten(repr(first['input']))}: {message}"
    more = f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else ""
    return f"{place}: {found}{more}; docs/bundle.md describes every field; correct it and export the bundle again"


def _shorten(text: str) -> str:
    return text if len(text) <= 120 else text[:117] + "..."


def _check_range(low_name: str, low: float, high_name: str, high: float) -> None:
    if not low < high:
        raise ValueError(f"{low_name} is {low}, {high_name} is {high}; {low_name} must be the smaller one")
