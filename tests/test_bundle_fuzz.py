"""The targets of fuzz_bundle.py on hypothesis' mutations of the golden bundle: the same ones in every run."""

import copy
import json
import struct

import numpy as np
import pytest
from fuzz_bundle import GOLDEN, fuzz_archive, fuzz_manifest, fuzz_onnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from photonstep.runtime.bundle import Bundle

GOLDEN_BYTES = GOLDEN.read_bytes()
FUZZ = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)

edits = st.lists(
    st.tuples(
        st.sampled_from(["overwrite", "insert", "delete", "copy"]),
        st.integers(0, 2**16),
        st.integers(0, 300),
        st.binary(max_size=8) | st.integers(0, 2**32 - 1).map(lambda value: struct.pack("<I", value)),
    ),
    min_size=1,
    max_size=6,
)


def mutate(content, changes):
    for kind, where, length, data in changes:
        at = where % (len(content) + 1)
        if kind == "overwrite":
            content = content[:at] + data + content[at + len(data) :]
        elif kind == "insert":
            content = content[:at] + data + content[at:]
        elif kind == "delete":
            content = content[:at] + content[at + length :]
        else:
            content = content[:at] + content[at // 2 : at // 2 + length] + content[at:]
    return content


@settings(FUZZ, max_examples=1500)
@given(edits)
def test_fuzz_archive(changes):
    content = mutate(GOLDEN_BYTES, changes)
    assert (fuzz_archive(content) is not None) == (content == GOLDEN_BYTES)


def test_every_single_byte_and_every_length_is_covered():
    """Not one byte of a bundle can change, and no end can be cut, without an error."""
    for at in range(len(GOLDEN_BYTES)):
        assert fuzz_archive(GOLDEN_BYTES[:at]) is None, at
        assert (
            fuzz_archive(GOLDEN_BYTES[:at] + bytes([GOLDEN_BYTES[at] ^ 1 << at % 8]) + GOLDEN_BYTES[at + 1 :]) is None
        ), at


@settings(FUZZ, max_examples=300)
@given(edits)
def test_fuzz_manifest_text(changes):
    fuzz_manifest(mutate(Bundle.load(GOLDEN).read("manifest.json"), changes))


def paths_of(value, path=()):
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from paths_of(child, (*path, key))


MANIFEST = json.loads(Bundle.load(GOLDEN).read("manifest.json"))
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=30)
)
odd_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)


@settings(FUZZ, max_examples=500)
@given(st.sampled_from([path for path in paths_of(MANIFEST) if path]), odd_values)
def test_fuzz_manifest_values(path, value):
    changed = copy.deepcopy(MANIFEST)
    parent = changed
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    fuzz_manifest(json.dumps(changed).encode())


@settings(FUZZ, max_examples=1500)
@given(edits)
def test_fuzz_onnx(changes):
    """What the scan lets pass must be clean in the eyes of the onnx package too, where that can read it at all."""
    onnx = pytest.importorskip("onnx")
    decode_error = pytest.importorskip("google.protobuf.message").DecodeError
    content = mutate(Bundle.load(GOLDEN).network("fp32"), changes)
    summary = fuzz_onnx(content)
    if summary is None:
        return
    try:
        model = onnx.load_model_from_string(content)
    except decode_error:
        return
    assert [entry.version for entry in model.opset_import] == [summary.opset]
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    for tensor in model.graph.initializer:
        assert not onnx.external_data_helper.uses_external_data(tensor)
        assert np.isfinite(onnx.numpy_helper.to_array(tensor).astype(np.float64)).all()
