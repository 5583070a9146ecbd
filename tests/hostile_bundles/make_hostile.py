"""Make the hostile bundles, their expected messages (cases.json) and the golden bundle. Needs the onnx package.

    python tests/hostile_bundles/make_hostile.py

Every hostile file differs from a valid one in one thing. A new case is one ``case(...)`` line below.
"""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import onnx
from onnx import TensorProto, helper
from tiny_bundle import (
    FRAME_GRAPH,
    FRAME_INPUTS,
    MANIFEST,
    NETWORK,
    Member,
    archive,
    frame_graph,
    golden,
    golden_fields,
    golden_members,
    manifest_bytes,
    network,
    to_members,
)

HERE = Path(__file__).resolve().parent
GOLDEN = HERE.parent / "golden_bundle" / "tiny.photonstep"
CASES: list[tuple[str, str, str, Callable[[], bytes]]] = []


def small_fields() -> dict:
    fields = golden_fields()
    for name in ("test_frame", "report", "frame_graphs", "model_card"):
        del fields[name]
    del fields["model"]["alphas_cumprod"]
    return fields


def small(extra: dict[str, bytes] | None = None, edit: Callable[[dict], None] = lambda fields: None) -> list[Member]:
    """A valid small bundle with more members, after ``edit`` of its manifest (hashes are computed before it)."""
    contents = {NETWORK: network()} | (extra or {})
    complete = json.loads(manifest_bytes(small_fields(), contents))
    edit(complete)
    return to_members({MANIFEST: (json.dumps(complete) + "\n").encode()} | contents)


def case(file: str, names: str, says: str) -> Callable[[Callable[[], bytes]], Callable[[], bytes]]:
    """Register a hostile file: the message must name ``names`` and contain ``says``."""

    def register(make: Callable[[], bytes]) -> Callable[[], bytes]:
        CASES.append((file, names, says, make))
        return make

    return register


def at(members: list[Member], name: str) -> Member:
    return next(member for member in members if member.name == name)


def with_member(**changes: object) -> bytes:
    """A small bundle whose network member has other headers or content."""
    members = small()
    for key, value in changes.items():
        setattr(at(members, NETWORK), key, value)
    return archive(members)


def with_manifest(edit: Callable[[dict], None]) -> bytes:
    return archive(small(edit=edit))


def with_manifest_text(edit: Callable[[str], str]) -> bytes:
    members = small()
    members[0].content = edit(members[0].content.decode()).encode()
    return archive(members)


def with_network(edit: Callable[[onnx.ModelProto], None]) -> bytes:
    return archive(small({NETWORK: network(edit)}))


def replace_weight(**fields: object) -> bytes:
    """The weight tensor with other fields; its shape and name stay."""

    def edit(made: onnx.ModelProto) -> None:
        tensor = TensorProto(dims=[1, 4, 1, 1], name="weight")
        for key, value in ({"data_type": TensorProto.FLOAT} | fields).items():
            if isinstance(value, list):
                getattr(tensor, key).extend(value)
            else:
                setattr(tensor, key, value)
        made.graph.initializer[0].CopyFrom(tensor)

    return with_network(edit)


def add_nodes(*nodes: onnx.NodeProto) -> bytes:
    return with_network(lambda made: made.graph.node.extend(nodes))


def in_branch(node: onnx.NodeProto) -> onnx.NodeProto:
    """An If whose branches hold the node."""
    graph = helper.make_graph([node], "branch", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])])
    other = copy.deepcopy(graph)
    return helper.make_node("If", ["bias"], ["branch_out"], then_branch=other, else_branch=graph)


def constant(value: float) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["y"], value=helper.make_tensor("c", TensorProto.FLOAT, [1], [value]))


def main() -> None:
    for stale in HERE.glob("*.photonstep"):
        stale.unlink()
    GOLDEN.write_bytes(golden())
    records = []
    for file, names, says, make in sorted(CASES, key=lambda entry: entry[0]):
        name = f"{file}.photonstep"
        (HERE / name).write_bytes(make())
        records.append({"file": name, "names": names or name, "says": says})
    (HERE / "cases.json").write_text(json.dumps(records, indent=1) + "\n")
    print(f"{len(records)} hostile bundles; golden SHA-256 {hashlib.sha256(GOLDEN.read_bytes()).hexdigest()}")


# --- the hostile ones: damage to the file ---

case("file_empty", "", "not a zip")(lambda: b"")
case("file_not_a_zip", "", "not a zip")(lambda: b"GIF89a" + bytes(60))
case("file_truncated", "", "truncated")(lambda: archive(small())[:900])
case("file_truncated_end", "", "truncated")(lambda: archive(small())[:-9])
case("file_truncated_middle", "", "truncated")(lambda: (a := archive(small()))[:200] + a[300:])
case("file_prepended_junk", "", "unaccounted bytes")(lambda: archive(small(), before=b"#!/bin/sh\n"))
case("file_trailing_junk", "", "trailing bytes")(lambda: archive(small(), after=b"PK-less tail"))
case("file_comment", "", "trailing bytes")(lambda: archive(small(), comment=b"a comment"))
case("file_two_archives", "", "unaccounted bytes")(lambda: archive(small()) + archive(small()))
case("file_no_manifest", "", "no member 'manifest.json'")(lambda: archive(small()[1:]))
case("file_no_members", "", "declares 0 members")(lambda: archive([]))


@case("file_too_many_members", "", "declares 65 members")
def _() -> bytes:
    return archive([Member(name=f"m{index:02}.txt", content=b"") for index in range(65)])


@case("file_zip64", "", "declares 65535 members")
def _() -> bytes:
    good = archive(small())
    return good[:-22] + struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 2**32 - 1, 2**32 - 1, 0)


@case("file_directory_padding", "", "4 unlisted bytes in the central directory")
def _() -> bytes:
    good = archive(small())
    size, start = struct.unpack("<II", good[-10:-2])
    return good[:-22] + b"evil" + good[-22:-10] + struct.pack("<IIH", size + 4, start, 0)


@case("file_spanned", "", "not canonical")
def _() -> bytes:
    good = archive(small())
    return good[:-18] + struct.pack("<H", 1) + good[-16:]


# --- names ---

for file, name in {
    "name_traversal": "../evil.json",
    "name_absolute": "/etc/evil.json",
    "name_backslash": "..\\evil.json",
    "name_drive": "c:evil.json",
    "name_folder": "extra/evil.json",
    "name_directory": "extra/",
    "name_case_collision": "Step_fp32.onnx",
    "name_newline": "evil.json\n",
    "name_device": "nul",
    "name_too_long": "a" * 70 + ".txt",
}.items():
    case(file, repr(name), "is not allowed")(lambda name=name: archive([*small(), Member(name=name, content=b"{}")]))

case("name_not_ascii", "evil", "is not allowed")(
    lambda: archive([*small(), Member(name="evil\u202e.txt", content=b"")])
)
case("name_with_nul", "evil.txt", "is not allowed")(
    lambda: archive([*small(), Member(name="evil.txt\0.png", content=b"")])
)
case("name_twice", NETWORK, "is there twice")(lambda: archive([*(m := small()), copy.copy(m[-1])]))
case("name_manifest_twice", MANIFEST, "is there twice")(lambda: archive([(m := small())[0], *m]))
case("name_order", "step_fp32.onnx", "stands where")(lambda: archive(small({"notes.txt": b"x"})[::-1]))
case("name_pickle", "weights.pkl", "is not allowed")(
    lambda: archive([*small(), Member(name="weights.pkl", content=pickle.dumps({"w": 1}, protocol=2))])
)

# --- headers ---

case("header_encrypted", NETWORK, "is encrypted")(lambda: with_member(flags=1))
case("header_data_descriptor", NETWORK, "data descriptor")(lambda: with_member(flags=8))
case("header_unknown_flag", NETWORK, "not canonical")(lambda: with_member(flags=0x0800))
case("header_symlink", NETWORK, "symbolic link")(lambda: with_member(mode=0o120777))
case("header_fifo", NETWORK, "not a regular file")(lambda: with_member(mode=0o010644))
case("header_executable", NETWORK, "not canonical")(lambda: with_member(mode=0o100755))
case("header_extra_field", NETWORK, "extra field")(lambda: with_member(extra=b"up\4\0abcd"))
case("header_wrong_crc", NETWORK, "CRC-32")(lambda: with_member(crc=1))
case("header_local_name", NETWORK, "local header differs")(lambda: with_member(local={"name": b"step_evil.onnx"}))
case("header_local_size", NETWORK, "local header differs")(lambda: with_member(local={"size": 3}))
case("header_local_method", NETWORK, "local header differs")(lambda: with_member(local={"method": 8}))
case("header_local_flags", NETWORK, "local header differs")(lambda: with_member(local={"flags": 1}))
case("header_gap", NETWORK, "leaves a gap")(lambda: with_member(gap=b"hidden"))
case("header_overlap", NETWORK, "overlaps")(lambda: with_member(offset=0))
case("header_size_4_gib", NETWORK, "the central directory starts")(lambda: with_member(size=2**32 - 2))
case("header_size_short", NETWORK, "the central directory starts")(lambda: with_member(size=10))


@case("header_deflate_bomb", NETWORK, "is compressed")
def _() -> bytes:
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = deflate.compress(bytes(2**22)) + deflate.flush()
    return with_member(method=8, content=packed, size=2**22)


@case("header_sizes_differ", NETWORK, "stored size is")
def _() -> bytes:
    good = archive(small())
    directory = good.rindex(b"PK\1\2")
    return good[: directory + 24] + struct.pack("<I", 2**30) + good[directory + 28 :]


# --- the manifest ---

case("manifest_not_json", MANIFEST, "not strict JSON")(lambda: with_manifest_text(lambda text: text[:-3]))
case("manifest_not_utf8", MANIFEST, "not strict JSON")(lambda: archive(to_members({MANIFEST: b'{"\xff": 1}'})))
case("manifest_pickle", MANIFEST, "not strict JSON")(lambda: archive(to_members({MANIFEST: pickle.dumps({"a": 1})})))
case("manifest_not_an_object", MANIFEST, "not a photonstep manifest")(lambda: archive(to_members({MANIFEST: b"[1]"})))
case("manifest_nested", MANIFEST, "nested more than")(
    lambda: archive(to_members({MANIFEST: b"[" * 2000 + b"]" * 2000}))
)
case("manifest_nan", MANIFEST, "not a finite number")(
    lambda: with_manifest_text(lambda text: text.replace('"sigma_data": 0.25', '"sigma_data": NaN'))
)
case("manifest_infinity", MANIFEST, "not strict JSON")(
    lambda: with_manifest_text(lambda text: text.replace('"sigma_data": 0.25', '"sigma_data": 1e999'))
)
case("manifest_huge_integer", MANIFEST, "400 digits")(
    lambda: with_manifest_text(lambda text: text.replace('"scale": 1', '"scale": ' + "9" * 400))
)
case("manifest_key_twice", MANIFEST, "'licence' is there twice")(
    lambda: with_manifest_text(
        lambda text: text.replace('"licence": "MIT"', '"licence": "MIT", "licence": "CC0-1.0"', 1)
    )
)


@case("manifest_too_big", MANIFEST, "expected at most 1048576")
def _() -> bytes:
    members = small()
    members[0].size = 2**20 + 1
    return archive(members)


MANIFEST_EDITS: dict[str, tuple[str, Callable[[dict], object]]] = {
    "unknown_field": ("'model.weights_url'", lambda m: m["model"].update(weights_url="http://example.org")),
    "missing_field": ("'licence' is missing", lambda m: m.pop("licence")),
    "newer_version": ("upgrade photonstep", lambda m: m.update(format_version=2)),
    "version_zero": ("'format_version' is 0", lambda m: m.update(format_version=0)),
    "version_text": ("'format_version' is '1'", lambda m: m.update(format_version="1")),
    "other_format": ("not a photonstep manifest", lambda m: m.update(format="safetensors")),
    "wrong_type": ("'model.sigma_data' is '0.25'", lambda m: m["model"].update(sigma_data="0.25")),
    "bool_as_number": ("'defaults.steps' is True", lambda m: m["defaults"].update(steps=True)),
    "out_of_range": ("'model.multiple' is 0", lambda m: m["model"].update(multiple=0)),
    "empty_range": ("sigma_min must be the smaller", lambda m: m["operating_range"].update(sigma_min=3.0)),
    "wrong_scale": ("task 'super_resolution' has scale 2", lambda m: m.update(task="super_resolution", scale=1)),
    "no_timesteps": ("alphas_cumprod is missing", lambda m: m["model"].update(conditioning="timestep")),
    "bridge_without_levels": ("without sigmas", lambda m: m["model"].update(start="degraded")),
    "levels_without_bridge": ("with sigmas", lambda m: m["model"].update(sigmas=[0.1, 0.2])),
    "levels_fall": ("sigmas must rise", lambda m: m["model"].update(start="degraded", sigmas=[0.2, 0.1])),
    "no_fp32": ("expected fp32", lambda m: m["networks"][0].update(precision="int8")),
    "absent_reference": ("which members does not list", lambda m: m["networks"][0].update(member="other.onnx")),
    "wrong_suffix": ("expected a name ending in .onnx", lambda m: m["networks"][0].update(member="network.raw")),
    "name_escape": ("'name' is '\\x1b[31mred'", lambda m: m.update(name="\x1b[31mred")),
}
for file, (says, edit) in MANIFEST_EDITS.items():
    case(f"manifest_{file}", MANIFEST, says)(lambda edit=edit: with_manifest(edit))

case("member_unlisted", "notes.txt", "not listed")(
    lambda: archive(to_members({m.name: m.content for m in small()} | {"notes.txt": b"hello"}))
)
case("member_missing", "notes.txt", "missing")(
    lambda: archive([m for m in small({"notes.txt": b""}) if m.name != "notes.txt"])
)
case("member_wrong_hash", NETWORK, "has SHA-256")(lambda: with_member(content=network()[:-1] + b"\x12"))
case("member_wrong_size", NETWORK, "the manifest says")(lambda: with_member(content=network() + b"\0\0"))
case("member_json_pickle", "report.json", "not strict JSON")(
    lambda: archive(small({"report.json": pickle.dumps({"psnr": 1}, protocol=2)}))
)
case("member_text_binary", "notes.txt", "not text")(lambda: archive(small({"notes.txt": b"\x7fELF\0\0"})))
case("member_png_script", "report.png", "not a whole PNG")(lambda: archive(small({"report.png": b"#!/bin/sh\n"})))


@case("member_raw_size", "test_input.raw", "expected 96")
def _() -> bytes:
    contents = golden_members() | {"test_input.raw": bytes(90)}
    return archive(to_members({MANIFEST: manifest_bytes(golden_fields(), contents)} | contents))


# --- networks ---

NAN = struct.pack("<4f", 1, 2, float("nan"), 4)
ELSEWHERE = onnx.StringStringEntryProto(key="location", value="../../etc/passwd")

case("onnx_pickle", NETWORK, "imports 0")(lambda: archive(small({NETWORK: pickle.dumps([1, 2], protocol=2)})))
case("onnx_truncated", NETWORK, "the model is truncated")(lambda: archive(small({NETWORK: network()[:-20]})))
case("onnx_empty", NETWORK, "imports 0")(lambda: archive(small({NETWORK: b""})))
case("onnx_group_wire_type", NETWORK, "wire type 3")(lambda: archive(small({NETWORK: network() + b"\x0b\x0c"})))
case("onnx_two_graphs", NETWORK, "twice")(lambda: archive(small({NETWORK: network() + network()})))
case("onnx_nan_weight", NETWORK, "'weight' holds NaN")(lambda: replace_weight(raw_data=NAN))
case("onnx_infinite_typed", NETWORK, "'weight' holds NaN")(
    lambda: replace_weight(float_data=[1.0, 2.0, 3.0, float("inf")])
)
case("onnx_nan_half", NETWORK, "'weight' holds NaN")(
    lambda: replace_weight(data_type=TensorProto.FLOAT16, int32_data=[0x3C00, 0x3C00, 0x7E00, 0x3C00])
)
case("onnx_nan_bfloat16", NETWORK, "'weight' holds NaN")(
    lambda: replace_weight(data_type=TensorProto.BFLOAT16, raw_data=b"\x80\x3f\x80\x3f\xc0\x7f\x80\x3f")
)
case("onnx_nan_double", NETWORK, "'weight' holds NaN")(
    lambda: replace_weight(data_type=TensorProto.DOUBLE, double_data=[1.0, 2.0, float("nan"), 4.0])
)
case("onnx_nan_constant", NETWORK, "'c' holds NaN")(lambda: add_nodes(constant(float("nan"))))
case("onnx_nan_in_subgraph", NETWORK, "'c' holds NaN")(lambda: add_nodes(in_branch(constant(float("nan")))))
case("onnx_nan_attribute", NETWORK, "an attribute holds NaN")(
    lambda: add_nodes(helper.make_node("Constant", [], ["y"], value_float=float("nan")))
)
case("onnx_short_tensor", NETWORK, "has 8 bytes")(lambda: replace_weight(raw_data=bytes(8)))
case("onnx_two_places", NETWORK, "several or wrong fields")(
    lambda: replace_weight(raw_data=bytes(16), float_data=[1.0] * 4)
)
case("onnx_string_tensor", NETWORK, "strings")(
    lambda: replace_weight(data_type=TensorProto.STRING, string_data=[b"a"] * 4)
)
case("onnx_complex_tensor", NETWORK, "data type 14")(
    lambda: replace_weight(data_type=TensorProto.COMPLEX64, raw_data=bytes(32))
)
case("onnx_external_data", NETWORK, "external data")(
    lambda: replace_weight(data_location=TensorProto.EXTERNAL, external_data=[ELSEWHERE])
)
case("onnx_external_location_only", NETWORK, "external data")(
    lambda: replace_weight(data_location=TensorProto.EXTERNAL)
)
case("onnx_external_entry_only", NETWORK, "external data")(
    lambda: replace_weight(raw_data=bytes(16), external_data=[ELSEWHERE])
)
case("onnx_custom_domain", NETWORK, "custom domain 'evil.ops'")(
    lambda: add_nodes(helper.make_node("Shell", ["bias"], ["y"], domain="evil.ops"))
)
case("onnx_custom_domain_in_subgraph", NETWORK, "custom domain 'com.microsoft'")(
    lambda: add_nodes(in_branch(helper.make_node("Gelu", ["bias"], ["y"], domain="com.microsoft")))
)
case("onnx_custom_import", NETWORK, "custom domain 'evil.ops'")(
    lambda: with_network(lambda made: made.opset_import.append(helper.make_opsetid("evil.ops", 1)))
)
case("onnx_opset_mismatch", NETWORK, "opset 18")(
    lambda: with_network(lambda made: setattr(made.opset_import[0], "version", 18))
)
case("onnx_opset_old", NETWORK, "has opset 11")(
    lambda: with_network(lambda made: setattr(made.opset_import[0], "version", 11))
)
case("onnx_opset_new", NETWORK, "has opset 99")(
    lambda: with_network(lambda made: setattr(made.opset_import[0], "version", 99))
)
case("onnx_other_input", NETWORK, "inputs ('frame',)")(
    lambda: with_network(lambda made: setattr(made.graph.input[0], "name", "frame"))
)
case("onnx_sparse", NETWORK, "sparse initialiser")(
    lambda: with_network(lambda made: made.graph.sparse_initializer.append(onnx.SparseTensorProto(dims=[4])))
)
case("onnx_training", NETWORK, "training information")(
    lambda: with_network(lambda made: made.training_info.append(onnx.TrainingInfoProto()))
)
case("onnx_function", NETWORK, "functions of its own")(
    lambda: with_network(lambda made: made.functions.append(onnx.FunctionProto(name="f", domain="evil.ops")))
)


def with_frame_graph(content: bytes) -> bytes:
    contents = golden_members() | {FRAME_GRAPH: content}
    return archive(to_members({MANIFEST: manifest_bytes(golden_fields(), contents)} | contents))


case("frame_graph_is_a_network", FRAME_GRAPH, "inputs ('planes',)")(lambda: with_frame_graph(network()))
case("frame_graph_other_input", FRAME_GRAPH, "inputs ('frame', 'offset_adu'")(
    lambda: with_frame_graph(frame_graph((*FRAME_INPUTS, "path")))
)
case("frame_graph_inputs_swapped", FRAME_GRAPH, "expected ('frame', 'offset_adu'")(
    lambda: with_frame_graph(frame_graph((FRAME_INPUTS[0], *FRAME_INPUTS[:0:-1])))
)
case("frame_graph_other_output", FRAME_GRAPH, "outputs ('frame_out',)")(
    lambda: with_frame_graph(frame_graph(output="frame_out"))
)
case("frame_graph_opset", FRAME_GRAPH, "opset 18")(lambda: with_frame_graph(frame_graph(opset=18)))
case("frame_graph_truncated", FRAME_GRAPH, "truncated")(lambda: with_frame_graph(frame_graph()[:-20]))


@case("onnx_deep_subgraphs", NETWORK, "subgraphs too deep")
def _() -> bytes:
    node = constant(1.0)
    for _ in range(12):
        graph = helper.make_graph([node], "g", [], [])
        node = helper.make_node("If", ["bias"], ["y"], then_branch=graph)
    return add_nodes(node)


if __name__ == "__main__":
    main()
