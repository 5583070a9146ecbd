"""Quantised networks: the graphs hold what they say, cost what the report says, and come from a run or a bundle."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from photonstep import BundleError, demo
from photonstep.export import qat, qdq, quantize, states
from photonstep.export.activation_ranges import observed_ranges, percentile_ranges
from photonstep.export.half import to_half
from photonstep.export.onnx import to_onnx
from photonstep.models.network import Denoiser, NetworkConfig
from photonstep.models.run_folder import run_settings, write_weights
from photonstep.models.train import TrainConfig
from photonstep.runtime.errors import TrainingError

SMALL = quantize.QuantizeSettings(per_bin=1, judged_per_bin=2, percentiles=(99.99, 100.0), gate_db=1.0)


def network_of(*, planes=4, scale=0.3):
    """A tiny network that says something: its last layers do not start at zero."""
    torch.manual_seed(3)
    network = Denoiser(NetworkConfig(widths=(16, 16), planes=planes))
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(0, scale / max(parameter[0].numel(), 1) ** 0.5)
    return network.eval()


@pytest.fixture(scope="module")
def network():
    return network_of()


@pytest.fixture(scope="module")
def graph(network):
    return to_onnx(network)


@pytest.fixture(scope="module")
def planes():
    return np.random.default_rng(0).normal(0, 0.5, (1, 4, 32, 48)).astype(np.float32)


@pytest.fixture(scope="module")
def ranges(graph, planes):
    return observed_ranges(graph, [planes])


@pytest.fixture
def few_fields(monkeypatch):
    """Calibration on a handful of simulated fields: seconds instead of a minute."""
    monkeypatch.setattr(states, "SIMULATED_FIELDS", 3)
    monkeypatch.setattr(states, "MOST_DRAWS", 4)


def run_folder(network, folder):
    folder.mkdir()
    config = TrainConfig(tier="live", steps=0)
    (folder / "config.json").write_text(json.dumps(run_settings("train", config, network)))
    write_weights(network, folder, 0)
    return folder


def evaluate(content, planes):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(content, options).run(None, {"planes": planes})[0]


def tensors_of(content):
    return {i.name: numpy_helper.to_array(i) for i in onnx.load_model_from_string(content).graph.initializer}


# --- grids ---


def test_unsigned_grids_hold_zero_exactly_and_span_the_range():
    grid = qdq.activation_grid((-1.0, 3.0), "cpu")
    assert (grid.low, grid.high) == (0, 255)
    assert grid.scale * (grid.high - grid.zero_point) == pytest.approx(3.0, abs=grid.scale)
    assert grid.scale * (grid.low - grid.zero_point) == pytest.approx(-1.0, abs=grid.scale)
    assert qdq.activation_grid((0.0, 2.0), "cpu").zero_point == 0
    assert qdq.activation_grid((0.5, 2.0), "cpu").zero_point == 0  # a range that leaves zero out is widened to it
    assert qdq.activation_grid((0.0, 0.0), "cpu").scale > 0  # a dead layer


def test_symmetric_grids_have_no_zero_point():
    grid = qdq.activation_grid((-1.0, 3.0), "tensorrt")
    assert (grid.zero_point, grid.low, grid.high) == (0, -128, 127)
    assert grid.scale == pytest.approx(3.0 / 127)


def test_weights_are_scaled_per_output_channel():
    weight = np.zeros((2, 3, 3, 3), np.float32)
    weight[0, 0, 0, 0], weight[1, 2, 1, 1] = 12.7, -1.27
    np.testing.assert_allclose(qdq.weight_scales(weight), [0.1, 0.01], rtol=1e-6)


# --- graphs ---


@pytest.mark.parametrize("dialect", ["cpu", "tensorrt"])
def test_all_but_the_first_and_the_last_convolution_are_quantised(graph, ranges, dialect):
    model = onnx.load_model_from_string(qdq.with_qdq(graph, ranges, dialect))
    made_by = {node.output[0]: node for node in model.graph.node}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert len(convolutions) > 4
    for index, node in enumerate(convolutions):
        quantised = [made_by[name].op_type == "DequantizeLinear" for name in node.input if name in made_by]
        inner = 0 < index < len(convolutions) - 1
        expected = (3 if dialect == "cpu" else 2) if inner else 0
        assert sum(quantised) == expected, node.input[1]


def test_the_dialect_for_tensorrt_is_symmetric_and_its_biases_are_float(graph, ranges):
    tensors = tensors_of(qdq.with_qdq(graph, ranges, "tensorrt"))
    zeros = {name: values for name, values in tensors.items() if name.endswith("zero_point")}
    assert zeros
    assert all(values.dtype == np.int8 and not values.any() for values in zeros.values())
    assert all(values.dtype != np.int32 for values in tensors.values())


def test_the_dialect_for_cpus_is_unsigned_with_int32_biases(graph, ranges):
    tensors = tensors_of(qdq.with_qdq(graph, ranges, "cpu"))
    assert tensors["down_blocks.0.0.conv1.input_zero_point"].dtype == np.uint8
    assert tensors["down_blocks.0.0.conv1.weight_quantised"].dtype == np.int8
    assert tensors["down_blocks.0.0.conv1.bias_quantised"].dtype == np.int32
    assert np.abs(tensors["down_blocks.0.0.conv1.weight_quantised"].astype(int)).max() == 127


@pytest.mark.parametrize("dialect", ["cpu", "tensorrt"])
def test_a_quantised_network_is_near_the_float_one_and_not_the_same(graph, ranges, planes, dialect):
    exact, low = evaluate(graph, planes), evaluate(qdq.with_qdq(graph, ranges, dialect), planes)
    error = np.sqrt(np.mean((low - exact) ** 2)) / exact.std()
    assert 1e-4 < error < 0.05


def test_layers_named_stay_in_float(graph, ranges, planes):
    every = qdq.quantisable(onnx.load_model_from_string(graph))
    np.testing.assert_array_equal(evaluate(qdq.with_qdq(graph, ranges, "cpu", in_float=every), planes),
                                  evaluate(graph, planes))  # fmt: skip
    with pytest.raises(TrainingError, match="no layer down_block"):
        qdq.with_qdq(graph, ranges, "cpu", in_float=["down_block"])
    tensors = tensors_of(qdq.with_qdq(graph, ranges, "cpu", in_float=every[:1]))
    assert f"{every[0]}.weight" in tensors
    assert f"{every[1]}.weight" not in tensors


def test_half_precision_is_typed_inside_and_float_outside(graph, planes):
    content = to_half(graph)
    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(content), strict_mode=True)
    outside = [*model.graph.input, *model.graph.output]
    assert all(value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT for value in outside)
    weights = [values for name, values in tensors_of(content).items() if name.endswith(("weight", "bias"))]
    assert weights
    assert all(values.dtype == np.float16 for values in weights)
    exact = evaluate(graph, planes)
    assert 0 < np.abs(evaluate(content, planes) - exact).max() < 0.01 * np.abs(exact).max()


# --- ranges ---


def test_ranges_are_those_of_the_activations(graph, network, planes):
    seen = {}

    def watch(name):
        return lambda module, inputs, output: seen.update({name: (float(inputs[0].min()), float(inputs[0].max()))})

    hooks = [m.register_forward_hook(watch(n)) for n, m in network.named_modules() if isinstance(m, torch.nn.Conv2d)]
    with torch.no_grad():
        network(torch.from_numpy(planes))
    for hook in hooks:
        hook.remove()
    found = observed_ranges(graph, [planes])
    assert set(found) == set(seen) - {"stem", "head"}
    for layer, limits in found.items():
        np.testing.assert_allclose(limits, seen[layer], atol=0.02 * max(map(abs, seen[layer])))  # bins of a histogram


def test_a_lower_percentile_gives_narrower_ranges(graph, planes):
    by_percentile = percentile_ranges(graph, [planes], (99.0, 100.0))
    narrow, wide = ([high for _, high in by_percentile[p].values()] for p in (99.0, 100.0))
    assert all(a <= b for a, b in zip(narrow, wide, strict=True))
    assert np.mean(narrow) < 0.95 * np.mean(wide)


# --- states ---


@pytest.mark.parametrize("planes", [4, 5])
def test_states_span_the_noise_levels_and_know_their_truth(few_fields, planes):
    config = NetworkConfig(widths=(16, 16), planes=planes)
    found = states.simulated_states(
        states.batches_of("denoise", None, split="train", seed=1), config, per_bin=2, seed=1
    )
    assert len({states.bin_of(state.level) for state in found}) >= 3
    for state in found:
        assert state.planes.shape == (1, planes, states.SIDE_PX, states.SIDE_PX)
        scaled = state.x / np.sqrt(state.sigma**2 + config.sigma_data**2)
        np.testing.assert_allclose(state.planes[0, 0], scaled, atol=1e-6)
        # the network's ideal answer gives the truth back
        total = state.sigma**2 + config.sigma_data**2
        ideal = (state.x0 - config.sigma_data**2 / total * state.x) * np.sqrt(total) / state.sigma / config.sigma_data
        np.testing.assert_allclose(state.restored(ideal[None, None], config.sigma_data), state.x0, atol=1e-4)


def test_a_walk_comes_down_to_lower_levels(network, few_fields):
    starts = states.simulated_states(
        states.batches_of("denoise", None, split="train", seed=1), network.config, per_bin=1, seed=1
    )[:2]
    walked = list(states.walked_states(network, starts))
    assert len(walked) == 2 * (states.WALK_STEPS - 1)
    levels = [starts[0].level, *(state.level for state in walked[: states.WALK_STEPS - 1])]
    assert levels == sorted(levels, reverse=True)
    assert walked[0].x0 is None


def test_a_real_frame_is_seen_as_the_runtime_sees_it(network):
    assert quantize.DEMO_FRAME == demo.DEMO_FRAME  # wherever the package lies, installed or not
    found = states.frame_states([quantize.DEMO_FRAME], network.config)
    assert len(found) == 16
    assert 0.005 < found[0].level < 0.3
    assert 0.2 < np.ptp(np.stack([s.x for s in found])) < 10


# --- the whole way ---


def test_a_run_is_quantised_and_the_report_says_what_it_cost(network, tmp_path, few_fields):
    run = run_folder(network, tmp_path / "run")
    told = []
    result = quantize.quantize(run, settings=SMALL, progress=told.append)
    report = json.loads((run / "quantized" / "quantization.json").read_text())
    assert set(result.files) == {"int8", "int8_symmetric"} == set(report["networks"])
    for precision, path in result.files.items():
        entry = report["networks"][precision]
        assert path.name == entry["member"] == f"step_{precision}.onnx"
        assert entry["size_bytes"] == path.stat().st_size < len(to_onnx(network))
        assert entry["worst_loss_db"] == max(row["loss_db"] for row in entry["by_noise"])
        assert entry["passes"] == (entry["worst_loss_db"] <= SMALL.gate_db) == result.passes(precision)
        assert all(row["error_in_noise"] > 0 for row in entry["by_noise"])
        assert entry["in_float"][0] == "stem"
    assert set(report["speed_ms_512x512_openvino"]) >= {"fp32", "int8"}
    assert any("held-out states judge" in line for line in told)
    quantize.quantize(run, precision="fp16", settings=SMALL, progress=told.append)  # adds to the report
    assert set(json.loads((run / "quantized" / "quantization.json").read_text())["networks"]) == {*result.files, "fp16"}


def test_sensitive_layers_go_back_to_float_until_the_gate_holds(network, tmp_path, few_fields):
    run = run_folder(network, tmp_path / "run")
    strict = quantize.QuantizeSettings(per_bin=1, judged_per_bin=1, percentiles=(100.0,), gate_db=-9.0, most_in_float=2)
    result = quantize.quantize(run, settings=strict, progress=lambda line: None)
    assert len(result.entries["int8"]["in_float"]) == 4  # the first, the last and two more
    assert not result.passes("int8")
    assert result.files == {}  # what misses the gate does not ship
    assert not list((run / "quantized").glob("*.onnx"))
    report = json.loads((run / "quantized" / "quantization.json").read_text())
    assert report["networks"]["int8"]["member"] is None


def test_ranges_learnt_in_training_are_used_as_they_are(network, graph, ranges, tmp_path, few_fields):
    run = run_folder(network, tmp_path / "run")
    (run / quantize.RANGES).write_text(json.dumps(ranges))
    free = quantize.QuantizeSettings(per_bin=1, judged_per_bin=1, most_in_float=0, gate_db=1.0)
    result = quantize.quantize(run, settings=free, progress=lambda line: None)
    assert result.files["int8"].read_bytes() == qdq.with_qdq(graph, ranges, "cpu")


def test_a_bundle_is_quantised_into_a_folder_of_its_own(tmp_path, few_fields):
    with pytest.raises(TrainingError, match="name an output folder"):
        quantize.quantize("live", settings=SMALL, progress=lambda line: None)
    result = quantize.quantize(
        "live", precision="fp16", output=tmp_path / "half", settings=SMALL, progress=lambda line: None
    )
    assert result.passes("fp16")


@pytest.mark.parametrize(
    ("source", "options", "error", "says"),
    [
        ("live", {"precision": "int4"}, TrainingError, "int8, fp16"),
        ("nowhere", {}, TrainingError, "no weights"),
        ("nowhere.photonstep", {}, BundleError, "nowhere"),
    ],
)
def test_what_cannot_be_quantised_is_refused(source, options, error, says, tmp_path):
    with pytest.raises(error, match=says):
        quantize.quantize(source, output=tmp_path, **options)


def test_impossible_settings_are_refused():
    with pytest.raises(TrainingError, match="percentiles"):
        quantize.QuantizeSettings(percentiles=(0.999,))
    with pytest.raises(TrainingError, match="states per noise bin"):
        quantize.QuantizeSettings(per_bin=0)


# --- quantisation-aware fine-tuning ---


def test_rounding_in_torch_is_the_rounding_of_the_graph(network, graph, ranges, planes):
    with torch.no_grad():
        ours = qat.rounded(network, ranges)(torch.from_numpy(planes)).numpy()
    exact, theirs = evaluate(graph, planes), evaluate(qdq.with_qdq(graph, ranges, "cpu"), planes)
    apart, cost = np.abs(ours - theirs), np.sqrt(np.mean((theirs - exact) ** 2))
    assert np.median(apart) < 0.1 * cost  # the same but for values on the edge between two steps
    assert np.sqrt(np.mean(apart**2)) < 0.6 * cost


@pytest.mark.parametrize("limits", [(0.0, 3.0), (-1.3, 2.0)])
def test_a_layer_that_rounds_agrees_with_its_grid(limits):
    plain = torch.nn.Conv2d(1, 1, 1, bias=False)
    plain.weight.data.fill_(1.0)
    layer = qat.RoundedConv2d(plain, limits)
    x = torch.linspace(-2, 4, 1001)[None, None, None]
    grid = qdq.activation_grid(limits, "cpu")
    steps = np.clip(np.rint(x.numpy() / np.float32(grid.scale)) + grid.zero_point, 0, 255)
    with torch.no_grad():
        np.testing.assert_allclose(layer(x).numpy(), (steps - grid.zero_point) * grid.scale, atol=1e-5)


def test_the_range_and_the_weights_are_learnt():
    layer = qat.RoundedConv2d(torch.nn.Conv2d(2, 2, 3), (-1.0, 1.0))
    layer(torch.randn(1, 2, 16, 16)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in layer.parameters())


def test_fine_tuning_brings_int8_nearer_and_leaves_a_run_to_quantise(network, planes, tmp_path, few_fields):
    run = run_folder(network, tmp_path / "run")
    settings = qat.QatSettings(steps=12, learning_rate=1e-3, validate_every=6, per_bin=1, ema_decay=0.5)
    weights = qat.qat(run, tmp_path / "tuned", settings)
    rows = (weights.parent / "log.csv").read_text().splitlines()[1:]
    assert len(rows) == 2
    record = json.loads((weights.parent / "config.json").read_text())
    assert (record["stage"], record["started_from"]) == ("quantize", str(run))
    ranges = json.loads((weights.parent / quantize.RANGES).read_text())
    tuned = quantize.load_network(weights.parent)
    assert set(ranges) == set(qdq.quantisable(onnx.load_model_from_string(to_onnx(tuned))))
    with torch.no_grad():  # what was learnt is in the weights and the ranges
        exact = network(torch.from_numpy(planes)).numpy()
    low = evaluate(qdq.with_qdq(to_onnx(tuned), ranges, "cpu"), planes)
    assert 0 < np.sqrt(np.mean((low - exact) ** 2)) < 0.2 * exact.std()
    assert qat.qat(run, tmp_path / "tuned", settings) == weights  # finished: nothing to do, nothing lost


def test_fine_tuning_in_bfloat16_is_refused():
    with pytest.raises(TrainingError, match="needs fp32"):
        qat.QatSettings(steps=1, precision="bf16")
