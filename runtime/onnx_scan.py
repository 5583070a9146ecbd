"""A bounded look into an ONNX file, without the onnx package: what is in there that a bundle must not carry?

ONNX is protobuf. This walks the wire format only as far as the questions need: operator sets, operator domains (nested
subgraphs included), where tensors keep their data, and whether floats are finite. It is stricter than protobuf: a field
of the wrong wire type, or a single-valued field given twice, is refused, because parsers differ on what they mean.
It does not check that the graph computes anything sensible or cheap; the backend that compiles it does.

Source: github.com/onnx/onnx onnx/onnx.proto (field numbers), protobuf.dev/programming-guides/encoding (wire format).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .errors import BundleError

MIN_OPSET = 13  # per-channel QuantizeLinear
MAX_OPSET = 23  # newest that the backends were measured with
MAX_FIELDS = 200_000
MAX_SUBGRAPH_DEPTH = 8
STANDARD_DOMAINS = ("", "ai.onnx")

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class _Field(NamedTuple):
    """What a known field must look like: its wire types, and whether it may come more than once."""

    wires: tuple[int, ...]
    repeated: bool = False


_MODEL = {7: _Field((_BYTES,)), 8: _Field((_BYTES,), True), 20: _Field((_BYTES,), True), 25: _Field((_BYTES,), True)}
_OPSET = {1: _Field((_BYTES,)), 2: _Field((_VARINT,))}
_GRAPH = {number: _Field((_BYTES,), True) for number in (1, 5, 11, 12, 15)}
_VALUE_INFO = {1: _Field((_BYTES,))}
_NODE = {4: _Field((_BYTES,)), 5: _Field((_BYTES,), True), 7: _Field((_BYTES,))}
_ATTRIBUTE = {2: _Field((_FIXED32,)), 5: _Field((_BYTES,)), 6: _Field((_BYTES,)), 7: _Field((_FIXED32, _BYTES), True)}
_ATTRIBUTE |= {number: _Field((_BYTES,), True) for number in (10, 11, 22, 23)}
_TENSOR = {1: _Field((_VARINT, _BYTES), True), 2: _Field((_VARINT,)), 8: _Field((_BYTES,)), 9: _Field((_BYTES,))}
_TENSOR |= {4: _Field((_FIXED32, _BYTES), True), 10: _Field((_FIXED64, _BYTES), True), 14: _Field((_VARINT,))}
_TENSOR |= {number: _Field((_VARINT, _BYTES), True) for number in (5, 7, 11)}
_TENSOR |= {number: _Field((_BYTES,), True) for number in (3, 6, 13)}

# data_type: (bits per element, field that holds it when raw_data does not)
_DTYPES = {1: (32, 4), 2: (8, 5), 3: (8, 5), 4: (16, 5), 5: (16, 5), 6: (32, 5), 7: (64, 7), 9: (8, 5), 10: (16, 5)}
_DTYPES |= {11: (64, 10), 12: (32, 11), 13: (64, 11), 16: (16, 5), 21: (4, 5), 22: (4, 5)}
_FLOAT, _FLOAT16, _DOUBLE, _BFLOAT16 = 1, 10, 11, 16
_TYPED_FIELDS = (4, 5, 7, 10, 11)


@dataclass(frozen=True, kw_only=True)
class OnnxSummary:
    """The operator set of a graph and the names of its inputs (initialisers left out) and outputs."""

    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def scan_onnx(content: bytes | memoryview, where: str) -> OnnxSummary:
    """Check an ONNX model and return what its graph expects.

    Parameters
    ----------
    content : a serialised ``ModelProto``
    where : which file and member, for messages

    Raises
    ------
    BundleError : damaged protobuf; an operator set outside ``MIN_OPSET`` to ``MAX_OPSET``; operators, functions or
        imports outside the standard domain; external data; a tensor whose data does not fit its shape, or with NaN or
        infinity; more than ``MAX_FIELDS`` fields or ``MAX_SUBGRAPH_DEPTH`` nested graphs
    """
    return _Scan(where).model(memoryview(content))


class _Scan:
    """One walk; counts the fields seen so that no file can make it long."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._fields_left = MAX_FIELDS

    def model(self, message: memoryview) -> OnnxSummary:
        opsets: list[int] = []
        graph: memoryview | None = None
        for number, value in self._fields(message, _MODEL, "model"):
            if number == 7:
                graph = self._bytes(value)
            elif number == 8:
                opsets.append(self._opset(self._bytes(value)))
            elif number == 20:
                raise self._error(
                    "the model carries training information", "an inference graph only", "export it for inference"
                )
            elif number == 25:
                raise self._error(
                    "the model defines functions of its own", "standard operators only", "inline them and export again"
                )
        if len(opsets) != 1:
            raise self._error(
                f"the model imports {len(opsets)} standard operator sets", "exactly one", "export it again"
            )
        if graph is None:
            raise self._error("the model holds no graph", "an ONNX model", "export it again")
        inputs, outputs = self._graph(graph, 0)
        return OnnxSummary(opset=opsets[0], inputs=inputs, outputs=outputs)

    def _opset(self, message: memoryview) -> int:
        domain, version = "", 0
        for number, value in self._fields(message, _OPSET, "opset_import"):
            if number == 1:
                domain = self._text(value)
            elif number == 2:
                version = self._integer(value)
        self._check_domain(domain, "operator set")
        if not MIN_OPSET <= version <= MAX_OPSET:
            raise self._error(
                f"the model has opset {version}", f"{MIN_OPSET} to {MAX_OPSET}", "convert the model's opset"
            )
        return version

    def _graph(self, message: memoryview, depth: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Walk a graph; return the names of its inputs and outputs."""
        if depth > MAX_SUBGRAPH_DEPTH:
            raise self._error(
                "the model nests its subgraphs too deep",
                f"at most {MAX_SUBGRAPH_DEPTH} levels",
                "do not trust this file",
            )
        inputs: list[str] = []
        outputs: list[str] = []
        initialisers: set[str] = set()
        for number, value in self._fields(message, _GRAPH, "graph"):
            if number == 1:
                self._node(self._bytes(value), depth)
            elif number == 5:
                initialisers.add(self._tensor(self._bytes(value)))
            elif number == 11:
                inputs.append(self._value_name(value))
            elif number == 12:
                outputs.append(self._value_name(value))
            elif number == 15:
                raise self._error("the graph holds a sparse initialiser", "dense tensors", "store it dense")
        return tuple(name for name in inputs if name not in initialisers), tuple(outputs)

    def _value_name(self, value: int | memoryview) -> str:
        name = ""
        for number, inner in self._fields(self._bytes(value), _VALUE_INFO, "value_info"):
            if number == 1:
                name = self._text(inner)
        return name

    def _node(self, message: memoryview, depth: int) -> None:
        operator, domain = "", ""
        for number, value in self._fields(message, _NODE, "node"):
            if number == 4:
                operator = self._text(value)
            elif number == 5:
                self._attribute(self._bytes(value), depth)
            elif number == 7:
                domain = self._text(value)
        self._check_domain(domain, f"operator {operator[:80]!r}")

    def _attribute(self, message: memoryview, depth: int) -> None:
        for number, value in self._fields(message, _ATTRIBUTE, "attribute"):
            if number in (5, 10):
                self._tensor(self._bytes(value))
            elif number in (6, 11):
                self._graph(self._bytes(value), depth + 1)
            elif number in (2, 7):
                self._check_finite(self._array(self._bytes(value), "<f4"), "an attribute")
            elif number in (22, 23):
                raise self._error("an attribute holds a sparse tensor", "dense tensors", "store it dense")

    def _tensor(self, message: memoryview) -> str:
        """Check one tensor; return its name."""
        dims: list[int] = []
        dtype, name, raw = 0, "", None
        typed: dict[int, list[memoryview | int]] = {}
        for number, value in self._fields(message, _TENSOR, "tensor"):
            if number == 1:
                dims += [value] if isinstance(value, int) else self._varints(value)
            elif number == 2:
                dtype = self._integer(value)
            elif number == 8:
                name = self._text(value)
            elif number == 9:
                raw = self._bytes(value)
            elif number in _TYPED_FIELDS:
                typed.setdefault(number, []).append(value)
            elif number == 13 or (number == 14 and value != 0):
                raise self._error(
                    f"tensor {name[:80]!r} keeps its data in another file (external data)",
                    "all data inside",
                    "embed it",
                )
            elif number in (3, 6):
                raise self._error(
                    f"tensor {name[:80]!r} is segmented or holds strings", "plain numbers", "export it again"
                )
        what = f"tensor {name[:80]!r}"
        if dtype not in _DTYPES:
            raise self._error(f"{what} has data type {dtype}", f"one of {sorted(_DTYPES)}", "export it again")
        if len(dims) > 8 or any(size >= 2**31 for size in dims):
            raise self._error(
                f"{what} has the shape {dims[:9]}", "at most 8 sizes below 2**31", "do not trust this file"
            )
        self._check_data(what, dtype, math.prod(dims), raw, typed)
        return name

    def _check_data(
        self, what: str, dtype: int, count: int, raw: memoryview | None, typed: dict[int, list[memoryview | int]]
    ) -> None:
        bits, field = _DTYPES[dtype]
        if len(typed) + (raw is not None) > 1 or any(number != field for number in typed):
            raise self._error(f"{what} has data in several or wrong fields", "one place", "export it again")
        if raw is not None:
            if len(raw) != (count * bits + 7) // 8:
                raise self._error(
                    f"{what} has {len(raw)} bytes", f"{(count * bits + 7) // 8} for its shape", "export it again"
                )
            self._check_finite(_as_floats(raw, dtype), what)
            return
        stored = 0
        for chunk in typed.get(field, []):
            stored += self._check_typed(what, dtype, field, chunk)
        expected = (count + 1) // 2 if bits == 4 else count  # two 4-bit values share one entry
        if stored != expected:
            raise self._error(f"{what} has {stored} values", f"{expected} for its shape", "export it again")

    def _check_typed(self, what: str, dtype: int, field: int, chunk: memoryview | int) -> int:
        """Check values outside ``raw_data``; return how many there are."""
        if field in (4, 10):
            values = self._array(self._bytes(chunk), "<f4" if field == 4 else "<f8")
            self._check_finite(values, what)
            return values.size
        if dtype in (_FLOAT16, _BFLOAT16):  # bit patterns, as integers
            numbers = [chunk] if isinstance(chunk, int) else self._varints(chunk)
            patterns = np.array([number & 0xFFFF for number in numbers], dtype="<u2")
            self._check_finite(_as_floats(memoryview(patterns.tobytes()), dtype), what)
            return len(numbers)
        if isinstance(chunk, int):
            return 1
        octets = np.frombuffer(chunk, dtype=np.uint8)
        if octets.size and octets[-1] >= 0x80:
            raise self._error(f"{what} breaks off inside a number", "whole numbers", "export it again")
        return int(np.count_nonzero(octets < 0x80))

    def _check_finite(self, values: np.ndarray, what: str) -> None:
        if not np.isfinite(values).all():
            raise self._error(f"{what} holds NaN or infinity", "finite numbers", "train or export again")

    def _check_domain(self, domain: str, what: str) -> None:
        if domain not in STANDARD_DOMAINS:
            raise self._error(
                f"{what} is of the custom domain {domain[:80]!r}", "standard ONNX only", "rewrite and export again"
            )

    def _fields(
        self, message: memoryview, known: dict[int, _Field], what: str
    ) -> Iterator[tuple[int, int | memoryview]]:
        """Yield (number, value) of every known field: an int for a varint, bytes for everything else."""
        at, seen = 0, set()
        while at < len(message):
            self._spend()
            tag, at = self._varint(message, at)
            number, wire = tag >> 3, tag & 7
            value: int | memoryview
            if wire == _VARINT:
                value, at = self._varint(message, at)
            else:
                size, at = self._size(message, at, wire, what)
                value = message[at : at + size]
                at += size
            if not 1 <= number < 2**29 or at > len(message):
                raise self._error(f"the {what} is truncated or not protobuf", "an ONNX model", "export it again")
            field = known.get(number)
            if field is None:
                continue
            if wire not in field.wires or (number in seen and not field.repeated):
                raise self._error(
                    f"field {number} of a {what} is there twice or mistyped", "valid ONNX", "export it again"
                )
            seen.add(number)
            yield number, value

    def _size(self, message: memoryview, at: int, wire: int, what: str) -> tuple[int, int]:
        if wire == _BYTES:
            return self._varint(message, at)
        if wire in (_FIXED32, _FIXED64):
            return (4 if wire == _FIXED32 else 8), at
        raise self._error(f"a {what} has wire type {wire}", "an ONNX model", "export it again")

    def _varint(self, message: memoryview, at: int) -> tuple[int, int]:
        value = 0
        for shift, octet in enumerate(message[at : at + 10]):
            value |= (octet & 0x7F) << 7 * shift
            if octet < 0x80:
                return value & (2**64 - 1), at + shift + 1
        raise self._error("a number is truncated or the file is not protobuf", "an ONNX model", "export it again")

    def _varints(self, packed: memoryview) -> list[int]:
        values: list[int] = []
        at = 0
        while at < len(packed):
            self._spend()
            value, at = self._varint(packed, at)
            values.append(value)
        return values

    def _spend(self) -> None:
        self._fields_left -= 1
        if self._fields_left < 0:
            raise self._error("the model has too many fields", f"at most {MAX_FIELDS}", "store tensors as raw_data")

    def _array(self, data: memoryview, dtype: str) -> np.ndarray:
        if len(data) % np.dtype(dtype).itemsize:
            raise self._error("a tensor breaks off inside a number", "whole numbers", "export it again")
        return np.frombuffer(data, dtype=dtype)

    def _text(self, value: int | memoryview) -> str:
        return str(self._bytes(value), "utf-8", errors="backslashreplace")

    def _bytes(self, value: int | memoryview) -> memoryview:
        if isinstance(value, int):
            raise self._error("a field holds a number where bytes belong", "an ONNX model", "export it again")
        return value

    def _integer(self, value: int | memoryview) -> int:
        if not isinstance(value, int):
            raise self._error("a field holds bytes where a number belongs", "an ONNX model", "export it again")
        return value

    def _error(self, found: str, expected: str, advice: str) -> BundleError:
        return BundleError(f"{self._where}: {found}; expected {expected}; {advice}")


def _as_floats(raw: memoryview, dtype: int) -> np.ndarray:
    """Return raw bytes as floats whose finiteness is that of the tensor; integers as an empty array."""
    if dtype == _BFLOAT16:  # the upper half of a float32
        return (np.frombuffer(raw, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
    floats = {_FLOAT: "<f4", _FLOAT16: "<f2", _DOUBLE: "<f8"}
    return np.frombuffer(raw, dtype=floats[dtype]) if dtype in floats else np.empty(0, np.float32)
