"""Trained networks out: the ONNX graph computes what torch did, carries nothing else, and becomes a working bundle."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import tifffile
import torch

import photonstep as ps
from photonstep import BundleError
from photonstep.export.onnx import INPUT_NAME, OPSET, OUTPUT_NAME, to_onnx
from photonstep.export.package import load_network, package
from photonstep.models.network import (
    INPUT_PLANES,
    Denoiser,
    NetworkConfig,
    kmac_per_px,
    parameter_count,
    receptive_radius_px,
)
from photonstep.models.stem import unshuffled_weight
from photonstep.runtime.onnx_scan import scan_onnx

CONFIGS = {
    "small": NetworkConfig(widths=(16, 32)),
    "deep": NetworkConfig(widths=(16, 16, 32, 32), blocks=1),
    "coarse": NetworkConfig(widths=(16, 16), unshuffle=4),
}


def random_network(config, seed=0):
    """Weights that all matter: those that training starts at zero too."""
    torch.manual_seed(seed)
    network = Denoiser(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) / max(parameter[0].numel(), 8) ** 0.5)
    return network.eval()


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS)
def exported(request):
    network = random_network(request.param)
    return network, to_onnx(network)


# --- the graph ---


def test_onnx_runtime_computes_what_torch_computes(exported):
    network, content = exported
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    multiple = network.config.multiple
    rng = np.random.default_rng(0)
    for rows, columns in ((1, 1), (2, 5), (7, 3)):  # grid cells: height and width are free
        planes = rng.normal(size=(1, INPUT_PLANES, rows * multiple, columns * multiple)).astype(np.float32)
        with torch.no_grad():
            wanted = network(torch.from_numpy(planes)).numpy()
        (got,) = session.run([OUTPUT_NAME], {INPUT_NAME: planes})
        assert got.shape == wanted.shape
        assert np.abs(got - wanted).max() < 1e-5 * max(1.0, np.abs(wanted).max())


def test_the_stem_reads_the_planes_with_a_stride_and_is_the_networks_own_when_read_back(exported):
    network, content = exported
    graph, cells = onnx.load_model_from_string(content).graph, network.config.unshuffle
    assert [graph.node[0].op_type, *graph.node[0].input] == ["Conv", INPUT_NAME, "stem.weight", "stem.bias"]
    assert not {node.op_type for node in graph.node} & {"Shape", "Reshape", "Transpose"}
    (weight,) = [onnx.numpy_helper.to_array(i) for i in graph.initializer if i.name == "stem.weight"]
    assert weight.shape[2:] == (3 * cells, 3 * cells)
    assert torch.equal(unshuffled_weight(torch.from_numpy(weight.copy())), network.stem.weight)


def test_the_graph_carries_no_trace_of_the_exporting_machine(exported):
    _, content = exported
    for trace in (b"/home", b"/root", b"/usr", b"/tmp", b".py", b"site-packages", b"Traceback", b'File "', b"torch"):
        assert trace not in content, trace
    model = onnx.load_model_from_string(content)
    assert model.doc_string == ""
    assert not model.metadata_props
    for node in model.graph.node:
        assert node.doc_string == ""
        assert not node.metadata_props


def test_the_graph_passes_the_bundles_own_scan(exported):
    network, content = exported
    summary = scan_onnx(content, "a test")
    assert summary.opset == OPSET
    model = onnx.load_model_from_string(content)
    assert [i.name for i in model.graph.input] == [INPUT_NAME]
    assert [o.name for o in model.graph.output] == [OUTPUT_NAME]
    weights = sum(int(np.prod(t.dims)) for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    assert weights >= parameter_count(network)
    assert weights - parameter_count(network) < 16  # the scales of the upsampling


def test_exporting_again_gives_the_same_bytes():
    network = random_network(CONFIGS["small"])
    assert to_onnx(network) == to_onnx(random_network(CONFIGS["small"]))


# --- the bundle ---


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """What a finished training leaves, with weights that do next to nothing."""
    config = CONFIGS["small"]
    run = tmp_path_factory.mktemp("runs") / "tiny"
    run.mkdir()
    torch.manual_seed(0)
    network = Denoiser(config)
    train = {"tier": "tiny", "steps": 40, "seed": 1}
    (run / "config.json").write_text(json.dumps({"train": train, "network": config.as_dict()}))
    (run / "log.csv").write_text("step,seconds,train_loss,held_out_loss\n20,1,1.5,1.4\n40,2,1.2,1.1\n")
    torch.save({"network": config.as_dict(), "state": network.state_dict(), "step": 40}, run / "weights.pt")
    return run


@pytest.fixture(scope="module")
def test_frame(tmp_path_factory, confocal):
    path = tmp_path_factory.mktemp("frames") / "frame.tif"
    tifffile.imwrite(path, np.stack([confocal.raw, confocal.reference]))
    return path


@pytest.fixture(scope="module")
def packaged(run_folder, test_frame, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    bundle = package(run_folder, folder / "tiny.photonstep", name="tiny", version="0.1.0", test_frame=test_frame)
    assert [p.name for p in folder.iterdir()] == ["tiny.photonstep"]  # no draft is left behind
    return bundle


def test_the_manifest_describes_the_network(packaged):
    manifest, config = packaged.manifest, CONFIGS["small"]
    assert (manifest.name, manifest.version, manifest.task) == ("tiny", "0.1.0", "denoise")
    assert manifest.model.multiple == config.multiple
    assert manifest.model.receptive_radius_px == receptive_radius_px(config)
    assert manifest.model.parameters == parameter_count(Denoiser(config))
    assert manifest.model.kmac_per_px == pytest.approx(kmac_per_px(config), abs=0.01)
    assert {d.licence for d in manifest.training_data} >= {"CC0-1.0", "MIT", "BSD-3-Clause"}


def test_a_packaged_run_loads_and_restores(packaged, confocal):
    restorer = ps.load(packaged.path, backend="openvino", precision="fp32", threads=1)
    promised = packaged.manifest.test_frame
    restored = restorer(packaged.read_array(promised.input), camera=ps.Camera(**promised.camera.model_dump()))
    np.testing.assert_array_equal(restored, packaged.read_array(promised.expected))
    assert restorer(confocal.raw).std() < confocal.raw.std()  # even an untrained network shrinks towards its mean
    restorer.close()


def test_the_report_tells_the_loss_curve(packaged):
    report = json.loads(packaged.read(packaged.manifest.report.member))
    (stage,) = report["stages"]
    assert [row["held_out_loss"] for row in stage["loss_curve"]] == [1.4, 1.1]
    assert stage["configuration"]["train"]["steps"] == 40


def test_an_existing_bundle_is_not_overwritten_by_accident(run_folder, test_frame, tmp_path):
    path = tmp_path / "tiny.photonstep"
    path.write_bytes(b"precious")
    with pytest.raises(BundleError, match="exists"):
        package(run_folder, path, name="tiny", version="0.1.0", test_frame=test_frame)
    assert path.read_bytes() == b"precious"


def test_a_checkpoint_stands_in_for_a_run_that_goes_on(run_folder, tmp_path):
    network = random_network(CONFIGS["small"], seed=4)
    (tmp_path / "config.json").write_text((run_folder / "config.json").read_text())
    torch.save({"average": network.state_dict(), "step": 3}, tmp_path / "checkpoint.pt")
    loaded = load_network(tmp_path)
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
