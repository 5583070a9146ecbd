"""Whole restorations as one ONNX graph: in plain ONNX Runtime and in OpenVINO they give the runtime's own pixels."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import photonstep as ps
from photonstep import BundleError, PlanError
from photonstep.export.frame_graph import Recipe, add_frame_graphs, frame_graph, frame_graph_of
from photonstep.export.onnx import OPSET, to_onnx
from photonstep.models.network import Denoiser, NetworkConfig
from photonstep.runtime.backends import openvino
from photonstep.runtime.bundle import FRAME_INPUTS, FRAME_OUTPUT, Bundle, write_bundle
from photonstep.runtime.onnx_scan import scan_onnx
from photonstep.runtime.restore import find_bundle

STEPS = (1, 2, 4)
LIVE = find_bundle("live")
CAMERAS = {
    "estimated": None,
    "scmos": ps.Camera(offset_adu=2.0, gain_e_per_adu=0.46, readout_noise_e=1.6),
    "binned": ps.Camera(offset_adu=-3.5, gain_e_per_adu=2.2, noise_correlation=(0.3, -0.2)),
}
FORBIDDEN = {"Loop", "If", "Scan", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}


def feeds(frame, camera):
    numbers = {name: np.array(getattr(camera, name), np.float32) for name in FRAME_INPUTS[1:]}
    return {"frame": np.ascontiguousarray(frame), **numbers}


def on_onnx_runtime(graph):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda frame, camera: session.run([FRAME_OUTPUT], feeds(frame, camera))[0]


def on_openvino(graph):
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    core = openvino.core()
    compiled = core.compile_model(core.read_model(graph), "CPU", settings)
    return lambda frame, camera: compiled(feeds(frame, camera))[0]


def largest_difference(a, b):
    assert a.dtype == b.dtype == np.uint16
    assert a.shape == b.shape
    return int(np.abs(a.astype(np.int64) - b.astype(np.int64)).max())


@pytest.fixture(scope="module")
def bundle():
    return Bundle.load(LIVE)


@pytest.fixture(scope="module")
def graphs(bundle):
    return {steps: frame_graph_of(bundle, steps) for steps in STEPS}


@pytest.fixture(scope="module")
def plain(graphs):
    return {steps: on_onnx_runtime(graph) for steps, graph in graphs.items()}


@pytest.fixture(scope="module")
def runtime(bundle):
    opened = ps.load(bundle, backend="onnxruntime", precision="fp32", threads=1)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def frames(request):
    names = ("confocal", "two_photon", "widefield")
    eight_bit = {name: request.getfixturevalue(name).raw.astype(np.uint16) for name in names}
    return {**eight_bit, "lysosome": request.getfixturevalue("lysosome")}


# --- the same pixels as the runtime's ---


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("camera", CAMERAS.values(), ids=CAMERAS)
def test_real_frames_come_out_as_from_the_runtime(frames, camera, steps, plain, runtime):
    for frame in frames.values():
        known = camera or ps.Camera.estimate(frame)
        wanted = runtime.restore(frame, camera=known, steps=steps).image
        assert largest_difference(plain[steps](frame, known), wanted) <= 1
        assert largest_difference(frame, wanted) > 5  # something was restored,
        assert wanted.std() > 5  # and there is something to compare


@pytest.mark.parametrize("shape", [(16, 16), (17, 90), (101, 93), (128, 31), (33, 112)])
def test_any_size_is_padded_as_the_runtime_pads(shape, frames, plain, runtime):
    camera = CAMERAS["scmos"]
    for steps in (1, 2):
        for name in ("lysosome", "confocal"):
            frame = np.ascontiguousarray(frames[name][: shape[0], : shape[1]])
            wanted = runtime.restore(frame, camera=camera, steps=steps).image
            assert largest_difference(plain[steps](frame, camera), wanted) <= 1


def test_full_pixels_stay_out_of_the_balance(frames, plain, runtime):
    camera = CAMERAS["scmos"]
    frame = np.minimum(frames["lysosome"].astype(np.int64) * 60, 65535).astype(np.uint16)
    assert 0.001 < np.mean(frame == 65535) < 0.9
    wanted = runtime.restore(frame, camera=camera, steps=1).image
    assert largest_difference(plain[1](frame, camera), wanted) <= 1


@pytest.mark.parametrize("level", [0, 300, 65535], ids=["dark", "flat", "full"])
def test_a_frame_of_one_value_is_no_division_by_zero(level, plain, runtime):
    frame = np.full((40, 24), level, np.uint16)
    camera = CAMERAS["scmos"]
    wanted = runtime.restore(frame, camera=camera, steps=2).image
    assert largest_difference(plain[2](frame, camera), wanted) <= 1


def test_openvino_runs_the_same_graph(frames, graphs, runtime):
    for steps in (1, 4):
        run = on_openvino(graphs[steps])
        for name, crop in (("confocal", 256), ("lysosome", 93)):
            frame, camera = frames[name][:, :crop], CAMERAS["scmos"]
            wanted = runtime.restore(np.ascontiguousarray(frame), camera=camera, steps=steps).image
            assert largest_difference(run(frame, camera), wanted) <= 1


def test_percentiles_beyond_the_range_of_the_shipped_bundles(bundle, frames, tmp_path):
    """Medians, ends, and blocks as large as the smallest frame: the interpolation and its ends."""
    for low, high, block in ((0.0, 100.0, 4), (25.0, 50.0, 8), (1.0, 99.9, 16)):
        changed = bundle.manifest.normalisation.model_copy(
            update={"low_percent": low, "high_percent": high, "block_px": block}
        )
        manifest = bundle.manifest.model_copy(update={"normalisation": changed, "members": (), "frame_graphs": ()})
        fields = json.loads(manifest.to_json())
        for computed in ("format", "format_version", "members", "test_frame", "report", "frame_graphs", "model_card"):
            fields.pop(computed, None)
        fields["networks"] = [n for n in fields["networks"] if n["precision"] == "fp32"]
        members = {fields["networks"][0]["member"]: bundle.network("fp32")}
        add_frame_graphs(fields, members, steps=(1,))
        made = write_bundle(tmp_path / "made.photonstep", fields, members, overwrite=True)
        restorer = ps.load(made, backend="onnxruntime", precision="fp32", threads=1)
        frame = np.ascontiguousarray(frames["lysosome"][:70, :50])
        wanted = restorer.restore(frame, camera=CAMERAS["scmos"], steps=1).image
        restorer.close()
        assert largest_difference(on_onnx_runtime(made.frame_graph(1))(frame, CAMERAS["scmos"]), wanted) <= 1


# --- twice the side ---


@pytest.fixture(scope="module")
def enlarging(bundle, tmp_path_factory):
    """The live network on the fine grid: not trained for it, but a bundle for super-resolution like any other."""
    fields = json.loads(bundle.manifest.to_json())
    for left_out in ("format", "format_version", "members", "test_frame", "report", "frame_graphs", "model_card"):
        fields.pop(left_out, None)
    fields |= {"task": "super_resolution", "scale": 2}
    fields["model"]["degradation_sigma"] = 0.03
    fields["networks"] = [n for n in fields["networks"] if n["precision"] == "fp32"]
    members = {fields["networks"][0]["member"]: bundle.network("fp32")}
    add_frame_graphs(fields, members, steps=(1, 2))
    return write_bundle(tmp_path_factory.mktemp("fine") / "fine.photonstep", fields, members)


@pytest.mark.parametrize("steps", [1, 2])
def test_super_resolution_gives_the_runtimes_fine_pixels(enlarging, frames, steps):
    restorer = ps.load(enlarging, backend="onnxruntime", precision="fp32", threads=1)
    backends = [on_onnx_runtime(enlarging.frame_graph(steps)), on_openvino(enlarging.frame_graph(steps))]
    for name, (height, width) in {"lysosome": (101, 93), "confocal": (64, 128), "widefield": (17, 16)}.items():
        frame = np.ascontiguousarray(frames[name][:height, :width])
        wanted = restorer.restore(frame, camera=CAMERAS["binned"], steps=steps).image
        assert wanted.shape == (2 * height, 2 * width)
        for run in backends:
            assert largest_difference(run(frame, CAMERAS["binned"]), wanted) <= 1
    restorer.close()


# --- the graph itself ---


def test_steps_share_their_weights_and_hold_no_control_flow(bundle, graphs):
    network = onnx.load_model_from_string(bundle.network("fp32"))
    per_step = len(graphs[2]) - len(graphs[1])
    assert len(graphs[4]) - len(graphs[2]) == pytest.approx(2 * per_step, rel=0.05)
    assert len(graphs[4]) < 1.2 * len(bundle.network("fp32"))
    for steps, content in graphs.items():
        model = onnx.load_model_from_string(content)
        kinds = [node.op_type for node in model.graph.node]
        assert not FORBIDDEN & set(kinds)
        convolutions = sum(node.op_type == "Conv" for node in network.graph.node)
        assert kinds.count("Conv") == steps * convolutions
        names = [tensor.name for tensor in model.graph.initializer]
        assert len(set(names)) == len(names)
        assert {tensor.name for tensor in network.graph.initializer} <= set(names)


def test_the_same_bytes_every_time_and_the_bundles_scan_takes_them(bundle, graphs):
    for steps, content in graphs.items():
        assert content == frame_graph_of(bundle, steps)
        summary = scan_onnx(content, "a test")
        assert (summary.opset, summary.inputs, summary.outputs) == (OPSET, FRAME_INPUTS, (FRAME_OUTPUT,))


def test_a_bundle_lists_its_frame_graphs_and_hands_them_out(framed_bundle, graphs):
    assert [(g.steps, g.member, g.opset) for g in framed_bundle.manifest.frame_graphs] == [
        (1, "frame_1.onnx", OPSET),
        (2, "frame_2.onnx", OPSET),
    ]
    assert framed_bundle.frame_graph(2) == graphs[2]
    with pytest.raises(BundleError, match="no frame graph of 3 steps; it has 1, 2"):
        framed_bundle.frame_graph(3)


def test_the_detail_knob_is_set_when_the_graph_is_made(bundle, frames):
    """A network of five planes whose output grows with the fifth."""
    torch.manual_seed(0)
    network = Denoiser(NetworkConfig(widths=(16, 16), planes=5))
    with torch.no_grad():
        network.stem.weight.normal_(std=0.1)
        network.head.weight.normal_(std=0.02)
    model = bundle.manifest.model.model_copy(update={"detail_input": True, "multiple": network.config.multiple})
    whole = Recipe.of(bundle.manifest)
    recipe = Recipe(
        model=model, normalisation=whole.normalisation, operating_range=whole.operating_range, defaults=whole.defaults
    )
    step = to_onnx(network)
    restored = {
        detail: on_onnx_runtime(frame_graph(step, recipe, 1, detail=detail))(frames["lysosome"], CAMERAS["scmos"])
        for detail in (0.0, 1.0)
    }
    assert largest_difference(restored[0.0], restored[1.0]) > 5


# --- what it is not made for ---


@pytest.mark.parametrize(
    ("part", "update", "says"),
    [
        ("model", {"prediction": "eps", "input_scaling": None}, "prediction eps"),
        ("model", {"conditioning": "gamma"}, "conditioning gamma"),
        ("model", {"input_names": ("x", "t")}, "inputs x, t"),
        ("model", {"start": "noise"}, "start noise"),
        ("model", {"measurement_input": True}, "one tensor of planes"),
        ("normalisation", {"block_px": 32}, "block_px is 32"),
    ],
)
def test_other_networks_are_refused(bundle, part, update, says):
    whole = Recipe.of(bundle.manifest)
    parts = {name: getattr(whole, name) for name in ("model", "normalisation", "operating_range", "defaults")}
    parts[part] = parts[part].model_copy(update=update)
    with pytest.raises(BundleError, match=says):
        frame_graph(bundle.network("fp32"), Recipe(**parts), 1)


def test_samplers_with_noise_are_refused(bundle):
    whole = Recipe.of(bundle.manifest)
    noisy = whole.defaults.model_copy(update={"sampler": "ddpm"})
    recipe = Recipe(
        model=whole.model, normalisation=whole.normalisation, operating_range=whole.operating_range, defaults=noisy
    )
    with pytest.raises(PlanError, match="ddpm adds noise"):
        frame_graph(bundle.network("fp32"), recipe, 2)
    with pytest.raises(PlanError, match=r"detail is 0\.5"):
        frame_graph(bundle.network("fp32"), whole, 1, detail=0.5)
