"""TensorRT artefacts are parsed and built for every target; engines are cached under what decides them."""

import json
import sys
import types

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

import photonstep as ps
from photonstep import BackendError
from photonstep.export import qdq, tensorrt
from photonstep.export.activation_ranges import observed_ranges
from photonstep.export.half import to_half
from photonstep.export.onnx import to_onnx
from photonstep.export.tensorrt import TARGETS, Profile
from photonstep.kernels import disk_cache
from photonstep.models.network import Denoiser, NetworkConfig
from photonstep.runtime.backends import engine_build
from photonstep.runtime.backends.engine_cache import EngineKey, path_of, read_engine, write_engine
from photonstep.runtime.bundle import Bundle, write_bundle
from photonstep.runtime.errors import TrainingError
from photonstep.runtime.restore import find_bundle

SMALL = Profile(smallest=(16, 16), usual=(64, 64), largest=(128, 128))
KEY = EngineKey(
    source_sha256="00", gpu="NVIDIA X sm_89", driver="13000", library="tensorrt 11.4", profile="p", precision="fp16"
)


@pytest.fixture(scope="module")
def rtx():
    cause = tensorrt.unavailable("rtx")
    if cause:
        pytest.skip(cause)


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(3)
    network = Denoiser(NetworkConfig(widths=(16, 16)))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.05)
    return to_onnx(network)


@pytest.fixture(scope="module")
def artefacts(graph):
    planes = np.random.default_rng(0).normal(0, 0.5, (1, 4, 32, 32)).astype(np.float32)
    ranges = observed_ranges(graph, [planes])
    return {
        "fp16": to_half(graph),
        "int8_symmetric": qdq.with_qdq(graph, ranges, "tensorrt"),
        "int8": qdq.with_qdq(graph, ranges, "cpu"),
    }


# --- building ---


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("precision", tensorrt.PRECISIONS)
def test_every_artefact_is_built_for_every_target(rtx, artefacts, precision, target):
    engine = tensorrt.compile_network(artefacts[precision], flavour="rtx", profile=SMALL, targets=(target,))
    assert len(engine) > 10_000


@pytest.mark.parametrize("precision", tensorrt.PRECISIONS)
def test_one_engine_holds_all_targets_and_reports_its_progress(rtx, artefacts, precision):
    told = []
    tensorrt.compile_network(artefacts[precision], flavour="rtx", profile=SMALL, progress=told.append)
    done = [progress.done for progress in told]
    assert done == sorted(done)
    assert done[-1] == 1.0
    assert told[-1].remaining_s == 0.0
    assert all(progress.remaining_s is None or progress.remaining_s >= 0 for progress in told)


def test_a_shipped_bundle_is_built_once(rtx, tmp_path):
    first = tensorrt.build("live", cache=tmp_path, profile=SMALL)
    again = tensorrt.build("live", cache=tmp_path, profile=SMALL)
    assert (first.cached, again.cached) == (False, True)
    assert first.path == again.path
    assert tmp_path in first.path.parents
    assert [p.name for p in (tmp_path / "engines").iterdir()] == [first.path.name]  # nothing half-written is left


def test_a_damaged_engine_is_built_again(rtx, tmp_path):
    path = tensorrt.build("live", cache=tmp_path, profile=SMALL).path
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), b"", b"\x80\n" + whole, b"{}\n", b"[1]\nx"):
        path.write_bytes(damaged)
        assert not tensorrt.build("live", cache=tmp_path, profile=SMALL).cached
        assert tensorrt.build("live", cache=tmp_path, profile=SMALL).cached


def test_a_failing_build_gives_the_librarys_reason(rtx, artefacts):
    impossible = Profile(smallest=(15, 15), usual=(15, 15), largest=(15, 15))  # no multiple of the network's grid
    with pytest.raises(BackendError, match=r"tensorrt_rtx could not build the engine: ."):
        tensorrt.compile_network(artefacts["fp16"], flavour="rtx", profile=impossible)


# --- refusals ---


def test_uint16_frames_are_refused_in_our_words():
    frame = helper.make_tensor_value_info("frame", TensorProto.UINT16, [1, 1, 8, 8])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 1, 8, 8])
    node = helper.make_node("Cast", ["frame"], ["out"], to=TensorProto.FLOAT)
    model = helper.make_model(
        helper.make_graph([node], "g", [frame], [out]), opset_imports=[helper.make_opsetid("", 20)]
    )
    with pytest.raises(TrainingError, match="'frame' is uint16, which TensorRT has not"):
        tensorrt.compile_network(model.SerializeToString(), flavour="rtx", profile=SMALL)


def test_the_int8_network_for_cpus_is_refused(artefacts):
    with pytest.raises(TrainingError, match="use int8_symmetric"):
        tensorrt.check_network(artefacts["int8"])


def test_quantised_biases_are_refused(artefacts):
    model = onnx.load_model_from_string(artefacts["int8_symmetric"])
    bias = next(i for i in model.graph.initializer if i.name.endswith("conv1.bias"))
    values = onnx.numpy_helper.to_array(bias)
    bias.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.int32), "steps"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.1), "step"))
    name = "down_blocks.0.0.conv1.bias"
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", ["steps", "step"], [name], name="bias"))
    with pytest.raises(TrainingError, match="'bias' is a quantised bias"):
        tensorrt.check_network(model.SerializeToString())


def test_other_networks_that_the_parser_refuses_are_our_error(rtx):
    text = helper.make_tensor_value_info("planes", TensorProto.FLOAT, [1, 4, 8, 8])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    node = helper.make_node("Det", ["planes"], ["out"])  # an operator that TensorRT has not
    model = helper.make_model(
        helper.make_graph([node], "g", [text], [out]), opset_imports=[helper.make_opsetid("", 20)]
    )
    with pytest.raises(TrainingError, match=r"tensorrt_rtx refuses the network: .*Det"):
        tensorrt.compile_network(model.SerializeToString(), flavour="rtx", profile=SMALL)


@pytest.mark.parametrize(
    "profile",
    [
        Profile(smallest=(12, 16)),
        Profile(smallest=(1024, 64)),
        Profile(largest=(2048, 500)),
        Profile(smallest=(0, 0)),
    ],
)
def test_impossible_profiles_are_refused(profile, tmp_path):
    with pytest.raises(TrainingError, match="expected rising multiples of 16"):
        tensorrt.build("base", profile=profile, cache=tmp_path)


def float_alone(folder):
    """live with its float32 network alone, as a file."""
    live = Bundle.load(find_bundle("live"))
    fields = json.loads(live.manifest.to_json())
    for name in ("format", "format_version", "members", "frame_graphs", "model_card", "report", "test_frame"):
        fields.pop(name, None)
    fields["networks"] = [n for n in fields["networks"] if n["precision"] == "fp32"]
    member = fields["networks"][0]["member"]
    path = folder / "float.photonstep"
    write_bundle(path, fields, {member: live.read(member)})
    return path


def test_what_the_bundle_has_not_is_refused(tmp_path):
    plain = float_alone(tmp_path)
    with pytest.raises(TrainingError, match="no int8_symmetric; quantise the run"):
        tensorrt.build(plain, precision="int8_symmetric", cache=tmp_path)
    with pytest.raises(TrainingError, match="fp16, int8_symmetric"):
        tensorrt.build(plain, precision="int8", cache=tmp_path)


@pytest.mark.parametrize("targets", [(), ("sm_10",)])
def test_unknown_targets_are_refused(rtx, artefacts, targets):
    with pytest.raises(BackendError, match=r"knows .*sm_89"):
        tensorrt.compile_network(artefacts["fp16"], flavour="rtx", profile=SMALL, targets=targets)


@pytest.mark.parametrize(("flavour", "module"), tensorrt.FLAVOURS.items())
def test_an_absent_library_is_named_with_its_remedy(flavour, module, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    assert "python -m pip install" in tensorrt.unavailable(flavour)
    with pytest.raises(BackendError, match=f"{module} cannot be imported"):
        tensorrt.build("live", flavour=flavour, cache=tmp_path)


def test_an_unknown_flavour_is_refused(tmp_path):
    with pytest.raises(BackendError, match="rtx, classic"):
        tensorrt.build("live", flavour="lean", cache=tmp_path)


def test_classic_tensorrt_asks_for_a_driver_before_it_constructs_anything(monkeypatch, tmp_path):
    """Its Runtime and Builder can crash the process where there is no driver."""

    monkeypatch.setitem(sys.modules, "tensorrt", types.ModuleType("tensorrt"))  # touching it is an AttributeError
    monkeypatch.setattr(engine_build, "find_gpu", lambda: None)
    with pytest.raises(BackendError, match="no NVIDIA driver"):
        tensorrt.build("live", flavour="classic", cache=tmp_path)


def test_classic_tensorrt_builds_where_it_is_installed(artefacts, tmp_path):
    cause = tensorrt.unavailable("classic")
    if cause:
        pytest.skip(cause)
    timing = tmp_path / "timing.cache"
    engine = tensorrt.compile_network(artefacts["fp16"], flavour="classic", profile=SMALL, timing_cache=timing)
    assert engine
    assert timing.stat().st_size > 0


# --- the cache ---


def test_the_key_changes_with_everything_that_decides_an_engine():
    digests = {KEY.digest}
    for name in vars(KEY):
        digests.add(EngineKey(**{**vars(KEY), name: "other"}).digest)
    assert len(digests) == 1 + len(vars(KEY)) == 7


def test_the_key_holds_gpu_driver_and_library(monkeypatch):
    gpu = tensorrt.Gpu(name="NVIDIA RTX 4090", capability="sm_89", driver="13010")
    monkeypatch.setattr(engine_build, "find_gpu", lambda: gpu)
    monkeypatch.setattr(engine_build, "library", lambda flavour: type("Library", (), {"__version__": "11.4.0"}))
    made = tensorrt.engine_key("ab", precision="fp16", flavour="classic", profile=SMALL, targets=())
    assert (made.gpu, made.driver, made.library) == ("NVIDIA RTX 4090 sm_89", "13010", "tensorrt 11.4.0")
    ahead = tensorrt.engine_key("ab", precision="fp16", flavour="rtx", profile=SMALL, targets=TARGETS)
    assert ahead.gpu == "sm_80 sm_86 sm_89 sm_120"
    assert "64" in ahead.profile


def test_engines_are_read_back_under_their_own_key_only(tmp_path):
    write_engine(KEY, b"an\nengine", tmp_path)
    assert read_engine(KEY, tmp_path) == b"an\nengine"
    other = EngineKey(**{**vars(KEY), "driver": "13020"})
    assert read_engine(other, tmp_path) is None
    path_of(other, tmp_path).write_bytes(path_of(KEY, tmp_path).read_bytes())  # renamed by hand
    assert read_engine(other, tmp_path) is None
    header = json.loads(path_of(KEY, tmp_path).read_bytes().partition(b"\n")[0])
    assert header["key"]["gpu"] == "NVIDIA X sm_89"


def test_an_interrupted_write_leaves_the_old_engine(tmp_path, monkeypatch):
    path = write_engine(KEY, b"old", tmp_path)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk_cache.os, "fsync", full)
    with pytest.raises(BackendError, match="No space left"):
        write_engine(KEY, b"new", tmp_path)
    assert read_engine(KEY, tmp_path) == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_the_cache_lies_where_the_variable_says(monkeypatch, tmp_path):
    monkeypatch.setenv(disk_cache.VARIABLE, str(tmp_path / "here"))
    assert disk_cache.cache_folder() == tmp_path / "here"
    monkeypatch.delenv(disk_cache.VARIABLE)
    assert disk_cache.cache_folder().parts[-2:] == (".cache", "photonstep")


def test_bundles_carry_no_engines():
    for path in ps.shipped_bundles().values():
        assert not [name for name in ps.Bundle.load(path).members if name.endswith((".engine", ".plan", ".trt"))]
