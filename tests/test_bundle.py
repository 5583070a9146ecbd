"""Bundles: what is written is read back, the same bytes every time, and nothing else ever loads."""

import hashlib
import json
import os
import re
import stat
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from photonstep.runtime import archive, onnx_scan, strict_json
from photonstep.runtime import bundle as bundle_module
from photonstep.runtime.bundle import Bundle, write_bundle
from photonstep.runtime.errors import BundleError
from photonstep.runtime.manifest import parse_manifest
from photonstep.runtime.onnx_scan import scan_onnx

TESTS = Path(__file__).resolve().parent
GOLDEN = TESTS / "golden_bundle" / "tiny.photonstep"
GOLDEN_SHA256 = "4cf9b0066d0818d194380e93d48dc368b515d950568a30434f7689e485c5c4af"
GOLDEN_BYTES = GOLDEN.read_bytes()
HOSTILE = TESTS / "hostile_bundles"
CASES = json.loads((HOSTILE / "cases.json").read_text())
NETWORK = "step_fp32.onnx"


def golden_parts():
    """Manifest fields and members of the golden bundle, read by the standard library instead of the project."""
    with zipfile.ZipFile(GOLDEN) as stored:
        members = {name: stored.read(name) for name in stored.namelist()}
    fields = json.loads(members.pop("manifest.json"))
    for computed in ("format", "format_version", "members"):
        del fields[computed]
    return fields, members


@pytest.fixture
def fields():
    return golden_parts()[0]


@pytest.fixture
def members():
    return golden_parts()[1]


# --- reading and writing ---


def test_golden_bundle_is_written_byte_for_byte(tmp_path, fields, members):
    written = write_bundle(tmp_path / "tiny.photonstep", fields, members)
    assert (tmp_path / "tiny.photonstep").read_bytes() == GOLDEN_BYTES
    assert written.sha256 == hashlib.sha256(GOLDEN_BYTES).hexdigest() == GOLDEN_SHA256


def test_golden_bundle_says_what_it_holds(fields, members):
    bundle = Bundle.load(GOLDEN)
    assert (bundle.path, bundle.sha256, bundle.networks) == (GOLDEN, GOLDEN_SHA256, ("fp32",))
    assert bundle.members == ("manifest.json", *sorted(members))
    assert {name: bundle.read(name) for name in members} == members
    assert bundle.network("fp32") == members[NETWORK]
    assert json.loads(bundle.manifest.to_json()) == json.loads(bundle.read("manifest.json"))
    assert bundle.manifest.model.model_dump(mode="json", exclude_none=True) == fields["model"]  # a schedule or a bridge
    assert repr(bundle) == "Bundle(tiny 1.0.0, fp32, tiny.photonstep)"


def test_arrays_are_read_only_frames():
    bundle = Bundle.load(GOLDEN)
    frame = bundle.read_array(bundle.manifest.test_frame.input)
    np.testing.assert_array_equal(frame, np.arange(100, 148, dtype=np.uint16).reshape(6, 8))
    assert frame.dtype == np.uint16
    with pytest.raises(ValueError, match="read-only"):
        frame[0, 0] = 1


def test_order_of_fields_and_members_does_not_matter(tmp_path, fields, members):
    write_bundle(tmp_path / "a.photonstep", dict(reversed(fields.items())), dict(reversed(members.items())))
    assert (tmp_path / "a.photonstep").read_bytes() == GOLDEN_BYTES


def test_optional_fields_may_be_left_out(tmp_path, fields, members):
    for name in ("test_frame", "report", "frame_graphs", "model_card"):
        del fields[name]
    del fields["model"]["alphas_cumprod"], fields["normalisation"]["low_u"]
    bundle = write_bundle(tmp_path / "a.photonstep", fields, {NETWORK: members[NETWORK], "notes.txt": b"hi\n"})
    assert bundle.manifest.test_frame is None
    assert bundle.manifest.normalisation.low_u == 0.0
    assert Bundle.load(tmp_path / "a.photonstep").read("notes.txt") == b"hi\n"


def test_other_zip_tools_read_bundles():
    with zipfile.ZipFile(GOLDEN) as stored:
        assert stored.testzip() is None
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in stored.infolist())
        assert all(stat.S_IMODE(entry.external_attr >> 16) == 0o644 for entry in stored.infolist())


def test_the_documented_example_is_a_manifest():
    text = (TESTS.parent / "docs" / "bundle.md").read_text(encoding="utf-8")
    example = text.split("```json\n")[1].split("```")[0]
    manifest = parse_manifest(example.encode(), "docs")
    assert manifest.members[0].name == manifest.networks[0].member


def test_every_manifest_field_is_documented():
    text = (TESTS.parent / "docs" / "bundle.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`\n]+)`", text))))
    fields = set(re.findall(r'"(\w+)":', Bundle.load(GOLDEN).read("manifest.json").decode()))
    assert fields - documented == set()


def test_manifest_is_frozen():
    bundle = Bundle.load(GOLDEN)
    with pytest.raises(ValueError, match="frozen"):
        bundle.manifest.model.sigma_data = 1.0


def test_what_is_absent_is_an_error_that_lists_what_is_there():
    bundle = Bundle.load(GOLDEN)
    with pytest.raises(BundleError, match=r"no network of precision 'int8'; it has fp32"):
        bundle.network("int8")
    with pytest.raises(BundleError, match=r"no member 'x.json'; it has manifest.json"):
        bundle.read("x.json")


def test_onnx_and_torch_are_not_needed():
    code = (
        "import sys; sys.modules.update(onnx=None, torch=None, onnxruntime=None, openvino=None)\n"
        "from photonstep.runtime.bundle import Bundle\n"
        "print(Bundle.load(sys.argv[1]).sha256)"
    )
    command = [sys.executable, "-c", code, str(GOLDEN)]
    found = subprocess.run(command, check=False, capture_output=True, text=True, cwd=TESTS.parent)
    assert found.stdout.strip() == GOLDEN_SHA256, found.stderr


# --- writing safely ---


def test_an_existing_file_is_kept_unless_overwrite(tmp_path, fields, members, monkeypatch):
    target = tmp_path / "a.photonstep"
    target.write_bytes(b"precious")
    with pytest.raises(BundleError, match=r"a\.photonstep exists; .*overwrite=True"):
        write_bundle(target, fields, members)
    monkeypatch.setattr(bundle_module.os.path, "lexists", lambda path: False)  # it appears after the first look
    with pytest.raises(BundleError, match=r"a\.photonstep exists"):
        write_bundle(target, fields, members)
    assert target.read_bytes() == b"precious"
    write_bundle(target, fields, members, overwrite=True)
    assert target.read_bytes() == GOLDEN_BYTES
    assert [p.name for p in tmp_path.iterdir()] == ["a.photonstep"]


def test_a_file_system_without_hard_links_is_written(tmp_path, fields, members, monkeypatch):
    def no_links(source, target):
        raise OSError("operation not supported")

    monkeypatch.setattr(bundle_module.os, "link", no_links)
    write_bundle(tmp_path / "a.photonstep", fields, members)
    assert (tmp_path / "a.photonstep").read_bytes() == GOLDEN_BYTES
    assert [p.name for p in tmp_path.iterdir()] == ["a.photonstep"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, fields, members, monkeypatch, step):
    def fail(*args):
        raise OSError(28, "No space left on device")

    target = tmp_path / "a.photonstep"
    target.write_bytes(b"old")
    monkeypatch.setattr(bundle_module.os, step, fail)
    with pytest.raises(BundleError, match=r"cannot be written.*No space left"):
        write_bundle(target, fields, members, overwrite=True)
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.photonstep"]


@pytest.mark.parametrize(
    ("path", "change_fields", "change_members", "says"),
    [
        ("a.zip", {}, {}, "does not end in .photonstep"),
        ("no/such/folder.photonstep", {}, {}, "cannot be written"),
        ("a.photonstep", {"format_version": 1}, {}, "'format_version' is given"),
        ("a.photonstep", {"created": np.float32(1)}, {}, "not JSON values"),
        ("a.photonstep", {"scale": float("nan")}, {}, "not JSON values"),
        ("a.photonstep", {"licence": ""}, {}, "field 'licence' is ''"),
        ("a.photonstep", {}, {"manifest.json": b"{}"}, "'manifest.json'"),
        ("a.photonstep", {}, {"notes.txt": "text"}, "'notes.txt' is str; expected bytes"),
        ("a.photonstep", {}, {"weights.pkl": b""}, "weights.pkl"),
        ("a.photonstep", {}, {NETWORK: b"not a network"}, NETWORK),
        ("a.photonstep", {}, {f"m{index}.txt": b"" for index in range(64)}, "members"),
    ],
)
def test_what_would_not_load_is_not_written(tmp_path, fields, members, path, change_fields, change_members, says):
    with pytest.raises(BundleError) as caught:
        write_bundle(tmp_path / path, fields | change_fields, members | change_members)
    assert says in str(caught.value)
    assert list(tmp_path.iterdir()) == []


# --- files that are not bundles ---


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["file"].removesuffix(".photonstep"))
def test_hostile_bundle_is_refused(case):
    path = HOSTILE / case["file"]
    tracemalloc.start()
    try:
        with pytest.raises(BundleError) as caught:
            Bundle.load(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert case["file"] in message
    assert case["names"] in message
    assert case["says"] in message
    assert message.isprintable()
    assert peak < 2**20, f"refusing {path.stat().st_size} bytes took {peak} bytes of memory"


def test_every_hostile_file_has_a_case():
    assert {path.name for path in HOSTILE.glob("*.photonstep")} == {case["file"] for case in CASES}


@pytest.mark.parametrize("name", ["absent.photonstep", "", "a\0b"])
def test_a_path_that_cannot_be_read(tmp_path, name):
    with pytest.raises(BundleError, match=r"cannot be read|not a regular file"):
        Bundle.load(f"{tmp_path}/{name}")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes (POSIX)")
def test_a_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "a.photonstep")
    with pytest.raises(BundleError, match="not a regular file"):
        Bundle.load(tmp_path / "a.photonstep")


def test_a_file_above_the_limit_is_not_read(tmp_path):
    path = tmp_path / "a.photonstep"
    with path.open("wb") as stream:
        stream.truncate(archive.MAX_FILE_BYTES + 1)  # sparse
    with pytest.raises(BundleError, match="expected at most 536870912"):
        Bundle.load(path)


def test_a_manifest_above_the_limit(members):
    content = archive.pack({"manifest.json": b" " * (archive.MAX_MANIFEST_BYTES + 1)})
    with pytest.raises(BundleError, match=r"'manifest.json' is 1048577 bytes"):
        Bundle.from_bytes(content, "a.photonstep")


@pytest.mark.parametrize(
    "text",
    [
        b'"' + b'\\"' * 500_000,
        b"[" * 1_000_000,
        b'{"a":' * 200_000,
        b'{"' + b'","'.join(b"%d" % index for index in range(100_000)),
        b"{" + b",".join(b'"%d":0' % (index % 99_999) for index in range(100_000)) + b"}",
        b"-" + b"1" * 1_000_000,
        b'"\\ud800"x',
    ],
    ids=["escapes", "brackets", "objects", "keys", "late_duplicate", "integer", "surrogate"],
)
def test_expensive_json_is_refused(text):
    """Each would take minutes, the stack or gigabytes with a careless reader."""
    with pytest.raises(BundleError, match="not strict JSON"):
        strict_json.parse_json(text, "a.json")


def test_many_fields_in_onnx_are_refused():
    with pytest.raises(BundleError, match="too many fields"):
        scan_onnx(b"\x08\x01" * (onnx_scan.MAX_FIELDS + 1), "a.onnx")


# --- the look into ONNX ---


def test_scan_reads_what_the_onnx_package_wrote():
    onnx = pytest.importorskip("onnx")
    model = onnx.load_model_from_string(Bundle.load(GOLDEN).network("fp32"))
    onnx.checker.check_model(model)
    summary = scan_onnx(model.SerializeToString(), "a.onnx")
    assert (summary.opset, summary.inputs, summary.outputs) == (17, ("planes",), ("residual",))
    weight = model.graph.initializer[0]
    model.graph.input.append(onnx.helper.make_tensor_value_info("weight", 1, weight.dims))  # as IR version 3 did
    assert scan_onnx(model.SerializeToString(), "a.onnx").inputs == ("planes",)


DTYPES = [
    "FLOAT",
    "UINT8",
    "INT8",
    "UINT16",
    "INT16",
    "INT32",
    "INT64",
    "BOOL",
    "FLOAT16",
    "DOUBLE",
    "UINT32",
    "UINT64",
]


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "typed"])
@pytest.mark.parametrize("dtype", [*DTYPES, "BFLOAT16", "INT4", "UINT4"])
@pytest.mark.parametrize("size", [0, 1, 3])
def test_scan_takes_every_numeric_tensor(dtype, raw, size):
    onnx = pytest.importorskip("onnx")
    data_type = onnx.TensorProto.DataType.Value(dtype)
    values = np.ones(size, onnx.helper.tensor_dtype_to_np_dtype(data_type))
    model = onnx.load_model_from_string(Bundle.load(GOLDEN).network("fp32"))
    if raw:
        tensor = onnx.numpy_helper.from_array(values, "t")
    else:
        tensor = onnx.helper.make_tensor("t", data_type, [size], values)
    model.graph.initializer.append(tensor)
    assert tensor.HasField("raw_data") is raw
    assert scan_onnx(model.SerializeToString(), "a.onnx").opset == 17
    model.graph.initializer[-1].dims[0] = size + 2
    with pytest.raises(BundleError, match=r"tensor 't' has .* for its shape"):
        scan_onnx(model.SerializeToString(), "a.onnx")


def test_an_enum_that_wraps_to_external_is_refused():
    """Protobuf cuts the varint 2**32 + 1 to the 32-bit enum 1, EXTERNAL."""
    wrapped = b"\x70" + b"\x81\x80\x80\x80\x10"
    tensor = b"\x10\x01" + wrapped
    graph = b"\x2a" + bytes([len(tensor)]) + tensor
    with pytest.raises(BundleError, match="external data"):
        scan_onnx(b"\x42\x02\x10\x11" + b"\x3a" + bytes([len(graph)]) + graph, "a.onnx")
