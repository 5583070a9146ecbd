"""A tiny valid bundle, built with struct and the onnx package instead of the project's writer.

A writer that refuses to write a hostile bundle cannot make one, and a golden file made by the code that it tests would
prove nothing.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper

NETWORK, FRAME_GRAPH, MANIFEST = "step_fp32.onnx", "frame_1.onnx", "manifest.json"
FRAME_INPUTS = ("frame", "offset_adu", "gain_e_per_adu", "readout_noise_e", "noise_correlation")
OPSET = 17


# --- a small valid bundle, which every hostile one differs from in one thing ---


def golden_fields() -> dict:
    """The manifest without computed fields: every optional field is there."""
    return {
        "name": "tiny",
        "version": "1.0.0",
        "created": "2026-11-22",
        "task": "denoise",
        "scale": 1,
        "licence": "MIT",
        "authors": ["The photonstep authors"],
        "provenance": "Made by tests/hostile_bundles/make_hostile.py; the weights are not trained.",
        "training_data": [{"name": "none", "licence": "CC0-1.0", "source": "none"}],
        "model": {
            "prediction": "edm_f",
            "conditioning": "sigma_map",
            "input_scaling": "edm",
            "integer_timestep": True,
            "sigma_data": 0.25,
            "noise_correlation_input": True,
            "detail_input": False,
            "degradation_sigma": 0.0,
            "measurement_input": False,
            "start": "measured",
            "end": "zero",
            "input_names": ["planes"],
            "output_name": "residual",
            "channels": 1,
            "multiple": 1,
            "receptive_radius_px": 0,
            "alphas_cumprod": [0.999, 0.5, 0.01],
            "clip_x0": [-0.5, 1.5],
            "parameters": 5,
            "kmac_per_px": 0.004,
        },
        "normalisation": {
            "method": "block_percentile",
            "block_px": 4,
            "low_percent": 1.0,
            "high_percent": 99.5,
            "minimum_range_z": 4.0,
            "low_u": 0.0,
            "high_u": 1.0,
        },
        "networks": [{"precision": "fp32", "member": NETWORK, "opset": OPSET}],
        "frame_graphs": [{"steps": 1, "member": FRAME_GRAPH, "opset": OPSET}],
        "defaults": {"steps": 1, "sampler": "ddim", "max_steps": 4},
        "operating_range": {
            "sigma_min": 0.002,
            "sigma_max": 2.0,
            "photons_min": 3.0,
            "photons_max": 2000.0,
            "max_noise_correlation": 0.6,
        },
        "test_frame": {
            "input": {"member": "test_input.raw", "shape": [6, 8], "dtype": "uint16"},
            "expected": {"member": "test_expected.raw", "shape": [6, 8], "dtype": "uint16"},
            "camera": {
                "offset_adu": 100.0,
                "gain_e_per_adu": 0.5,
                "readout_noise_e": 1.6,
                "saturation_adu": 65535.0,
                "noise_correlation": [0.0, 0.1],
            },
            "tolerance_counts": 1.0,
        },
        "report": {"member": "report.json", "pictures": ["report.png"]},
        "model_card": "model_card.md",
    }


def golden_members() -> dict[str, bytes]:
    frame = (100 + np.arange(48)).astype("<u2").tobytes()
    return {
        NETWORK: network(),
        FRAME_GRAPH: frame_graph(),
        "model_card.md": b"# tiny\n",
        "report.json": b'{"psnr_db": null}\n',
        "report.png": png(),
        "test_expected.raw": frame,
        "test_input.raw": frame,
    }


def png() -> bytes:
    """One grey pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0\x80", 9))
        + chunk(b"IEND", b"")
    )


def model(edit: Callable[[onnx.ModelProto], None] = lambda model: None) -> onnx.ModelProto:
    """A 1x1 convolution of four planes, then whatever ``edit`` does to it."""
    shape, values = [1, 4, 1, 1], np.array([0.5, 0.25, 0.125, 0.0625], "<f4")
    weight = TensorProto(dims=shape, data_type=TensorProto.FLOAT, name="weight", raw_data=values.tobytes())
    bias = TensorProto(dims=[1], data_type=TensorProto.FLOAT, name="bias", raw_data=bytes(4))
    graph = helper.make_graph(
        [helper.make_node("Conv", ["planes", "weight", "bias"], ["residual"])],
        "tiny",
        [helper.make_tensor_value_info("planes", TensorProto.FLOAT, ["n", 4, "h", "w"])],
        [helper.make_tensor_value_info("residual", TensorProto.FLOAT, ["n", 1, "h", "w"])],
        [weight, bias],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    edit(made)
    return made


def network(edit: Callable[[onnx.ModelProto], None] = lambda model: None) -> bytes:
    return model(edit).SerializeToString()


def frame_graph(inputs: tuple[str, ...] = FRAME_INPUTS, output: str = "restored", opset: int = OPSET) -> bytes:
    """A graph with the inputs and the output of a whole restoration that returns the frame as it came."""
    shapes = {"frame": (TensorProto.UINT16, ["h", "w"]), "noise_correlation": (TensorProto.FLOAT, [2])}
    graph = helper.make_graph(
        [helper.make_node("Identity", [inputs[0]], [output])],
        "tiny_frame",
        [helper.make_tensor_value_info(name, *shapes.get(name, (TensorProto.FLOAT, []))) for name in inputs],
        [helper.make_tensor_value_info(output, TensorProto.UINT16, ["h", "w"])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8).SerializeToString()


# --- archives with every header field free ---


@dataclass(kw_only=True)
class Member:
    """One member; a field that is None is what a good writer would put there."""

    name: str | bytes
    content: bytes
    flags: int = 0
    method: int = 0
    mode: int = 0o100644
    crc: int | None = None
    size: int | None = None
    offset: int | None = None
    local: dict = field(default_factory=dict)  # what the local header says instead
    extra: bytes = b""
    gap: bytes = b""  # before the local header

    def values(self, at: int) -> dict:
        size = len(self.content) if self.size is None else self.size
        name = self.name if isinstance(self.name, bytes) else self.name.encode()
        crc = zlib.crc32(self.content) if self.crc is None else self.crc
        offset = at if self.offset is None else self.offset
        return {"name": name, "flags": self.flags, "method": self.method, "crc": crc, "size": size, "offset": offset}


def archive(members: list[Member], *, before: bytes = b"", after: bytes = b"", comment: bytes = b"") -> bytes:
    body, directory = before, b""
    for member in members:
        body += member.gap
        v = member.values(len(body) - len(before))
        w = v | member.local
        packed = len(member.content) if member.method else w["size"]
        head = (20, w["flags"], w["method"], 0, 0x21, w["crc"], packed, w["size"], len(w["name"]), len(member.extra))
        body += struct.pack("<4sHHHHHIIIHH", b"PK\3\4", *head) + w["name"] + member.extra + member.content
        packed = len(member.content) if member.method else v["size"]
        head = (3 << 8 | 20, 20, v["flags"], v["method"], 0, 0x21, v["crc"], packed, v["size"], len(v["name"]))
        tail = (len(member.extra), 0, 0, 0, member.mode << 16, v["offset"])
        directory += struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\1\2", *head, *tail) + v["name"] + member.extra
    count, start = len(members), len(body) - len(before)
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, count, count, len(directory), start, len(comment))
    return body + directory + end + comment + after


def manifest_bytes(fields: dict, members: dict[str, bytes]) -> bytes:
    records = [
        {"name": name, "size_bytes": len(members[name]), "sha256": hashlib.sha256(members[name]).hexdigest()}
        for name in sorted(members)
    ]
    complete = {"format": "photonstep-bundle", "format_version": 1, **fields, "members": records}
    return (json.dumps(complete, indent=1) + "\n").encode()


def golden() -> bytes:
    contents = golden_members()
    return archive(to_members({MANIFEST: manifest_bytes(golden_fields(), contents)} | contents))


def to_members(contents: dict[str, bytes]) -> list[Member]:
    order = sorted(contents, key=lambda name: (name != MANIFEST, name))
    return [Member(name=name, content=contents[name]) for name in order]
