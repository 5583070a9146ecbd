"""Pruning: what is cut computes what masking would, time decides what goes, and the rest recovers."""

import json

import numpy as np
import onnxruntime
import pytest
import torch

from photonstep.export.channels import axes_of, axes_of_weights, importance, narrowed, width_of, without
from photonstep.export.distil import Fields
from photonstep.export.prune import PRUNING, PruneSettings, prune, select
from photonstep.export.shape_latency import LatencyTable, MeasuredLatency, ShapeGraph, neighbourhood, shape_key
from photonstep.models.checkpoint import load_network
from photonstep.models.data import Field, FieldPool
from photonstep.models.network import Denoiser, NetworkConfig, kmac_per_px
from photonstep.models.run_folder import write_weights
from photonstep.models.simulate import simulate_field
from photonstep.runtime.errors import TrainingError

CONFIG = NetworkConfig(widths=(32, 32, 48), blocks=2)
SMALL = NetworkConfig(widths=(32, 32))
SETTINGS = {
    "steps": 10, "batch": 2, "patch_px": 32, "warmup_steps": 2, "ema_decay": 0.5, "validate_every": 10,
    "simulated_fields": 1, "importance_samples": 2, "seed": 1,
}  # fmt: skip

pytestmark = pytest.mark.usefixtures("single_threaded_torch")


def random_network(config):
    """Weights that all matter: those that training starts at zero too."""
    generator = torch.Generator().manual_seed(0)
    network = Denoiser(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / max(parameter[0].numel(), 8) ** 0.5)
    return network.eval()


def by_macs(config):
    """A clock that is never disturbed: every thousand multiply-accumulates take a millisecond."""
    return kmac_per_px(config)


@pytest.fixture(scope="module")
def fields():
    rng = np.random.default_rng(0)
    pool = FieldPool({"simulated": [Field.of(simulate_field(rng, 64)) for _ in range(4)]}, {"simulated": 1.0})
    return Fields(pool, pool)


# --- channels ---


@pytest.mark.parametrize("axis", axes_of(CONFIG), ids=str)
def test_a_network_without_channels_computes_what_masking_them_does(axis):
    network, planes = random_network(CONFIG), torch.randn(1, 4, 32, 48, generator=torch.Generator().manual_seed(1))
    width = width_of(CONFIG, axis)
    dropped = torch.randperm(width, generator=torch.Generator().manual_seed(2))[:16]
    masked = random_network(CONFIG)
    with torch.no_grad():
        for name, produced, _ in axes_of_weights(CONFIG):
            if produced == axis:
                convolution = masked.get_submodule(name)
                convolution.weight[dropped], convolution.bias[dropped] = 0, 0
        wanted, got = masked(planes), without(network, axis, dropped)(planes)
        assert (network(planes) - wanted).abs().max() > 0.1
    torch.testing.assert_close(got, wanted, rtol=0, atol=5e-5)
    assert without(network, axis, dropped).config == narrowed(CONFIG, axis, 16)


def test_every_convolution_has_its_axes():
    named = {n for n, m in Denoiser(CONFIG).named_modules() if isinstance(m, torch.nn.Conv2d)}
    assert {name for name, _, _ in axes_of_weights(CONFIG)} == named
    for name, produced, read in axes_of_weights(CONFIG):
        convolution = Denoiser(CONFIG).get_submodule(name)
        assert convolution.out_channels == (4 if produced is None else width_of(CONFIG, produced))
        assert convolution.in_channels == (16 if read is None else width_of(CONFIG, read))


def test_the_importance_is_the_gradient_of_a_gate():
    """Against a gate that multiplies the channels of a block's hidden layer, by finite differences."""
    network, (axis,) = random_network(SMALL), [a for a in axes_of(SMALL) if str(a) == "hidden 2"]
    planes = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))

    def loss(trial, index):
        return trial(planes * (index + 1)).square().mean()

    found = importance(network, loss, range(2))[axis]
    convolution = network.get_submodule("middle.1.conv1")
    gradients = []
    for index in range(2):
        values = []
        for gate in (1.01, 0.99):
            trial = random_network(SMALL)
            changed = trial.get_submodule("middle.1.conv1")
            with torch.no_grad():
                changed.weight[5], changed.bias[5] = gate * convolution.weight[5], gate * convolution.bias[5]
                values.append(loss(trial, index).item())
        gradients.append((values[0] - values[1]) / 0.02)
    assert found[5].item() == pytest.approx(0.5 * np.mean(np.square(gradients)), rel=0.05)
    assert found.shape == (width_of(SMALL, axis),)


# --- time ---


@pytest.mark.parametrize("axis", [a for a in axes_of(CONFIG) if a.index < 2], ids=str)
def test_a_sliced_graph_is_the_network_exported_anew(axis):
    network = without(random_network(CONFIG), axis, torch.arange(16))
    content = ShapeGraph(CONFIG).of(network.config, network.state_dict())
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    planes = torch.randn(1, 4, 24, 40, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = network(planes).numpy()
    np.testing.assert_allclose(session.run(None, {"planes": planes.numpy()})[0], wanted, atol=1e-4)


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_time_is_measured_on_a_real_backend(backend):
    measure = MeasuredLatency(CONFIG, frame_px=64, backend=backend, precision="fp32", threads=1, runs=2)
    assert measure(CONFIG) > 0
    with pytest.raises(TrainingError, match="openvino, onnxruntime"):
        MeasuredLatency(CONFIG, frame_px=64, backend="abacus", precision="fp32", threads=1)


def test_a_shape_is_measured_once_and_kept(tmp_path):
    asked = []

    def measure(config):
        asked.append(config)
        return 3.0

    first, last = (a for a in axes_of(SMALL) if str(a) in ("hidden 1", "hidden 2"))  # both blocks of the coarse level
    table = LatencyTable(measure, tmp_path / "latency.json")
    assert table(narrowed(SMALL, first, 16)) == table(narrowed(SMALL, last, 16)) == 3.0
    assert LatencyTable(measure, tmp_path / "latency.json")(narrowed(SMALL, first, 16)) == 3.0
    assert len(asked) == 1
    assert shape_key(narrowed(SMALL, first, 16)) != shape_key(narrowed(SMALL, first, 8))


def test_what_is_saved_depends_on_the_neighbourhood_alone():
    """Counted in multiply-accumulates, which are a sum over convolutions: the same key, the same saving."""
    saved = {}
    shapes = [CONFIG, *(narrowed(CONFIG, axis, 16) for axis in axes_of(CONFIG))]
    shapes += [narrowed(shapes[1], axis, 8) for axis in axes_of(CONFIG)]
    for config in shapes:
        for axis in axes_of(config):
            if width_of(config, axis) > 16:
                key = neighbourhood(config, axis)
                saving = kmac_per_px(config) - kmac_per_px(narrowed(config, axis, 16))
                assert saved.setdefault(key, saving) == pytest.approx(saving, rel=1e-9)
    assert len(saved) > 20


def test_few_shapes_are_measured(fields):
    asked = []

    def measure(config):
        asked.append(config)
        return kmac_per_px(config)

    table = LatencyTable(measure)
    select(random_network(CONFIG), settings(target_macs=0.6), table, fields)
    assert len(asked) == len(table.ms) < 60


# --- choice ---


def settings(**changes):
    return PruneSettings(**{**SETTINGS, "target_macs": 0.7, **changes})


def test_the_target_is_reached_and_every_candidate_is_written_down(fields, tmp_path):
    network = random_network(SMALL)
    pruned = select(network, settings(), by_macs, fields, tmp_path)
    assert kmac_per_px(pruned.config) <= 0.7 * kmac_per_px(SMALL)
    report = json.loads((tmp_path / PRUNING).read_text())
    assert NetworkConfig.from_dict(report["after"]["network"]) == pruned.config
    for entry in report["rounds"]:
        assert entry["dropped"] in {candidate["axis"] for candidate in entry["candidates"]}
        for candidate in entry["candidates"]:
            assert candidate["saved_ms"] == pytest.approx(entry["ms"] - candidate["ms"])
    last = {candidate["axis"]: candidate for candidate in report["rounds"][-1]["candidates"]}
    assert last[report["rounds"][-1]["dropped"]]["ms"] == pytest.approx(report["after"]["ms"], abs=1e-3)


def test_what_costs_no_time_stays(fields):
    """The same network and data, two machines: on one of them the stream is free, on the other the hidden layers."""

    def only_streams_cost(config):
        return 1.0 + sum(config.widths)

    def only_hidden_costs(config):
        return 1.0 + sum(hidden for _, hidden in config.block_widths)

    few = settings(target_macs=None, target_ms=1.0 + 64 - 32)
    pruned = select(random_network(SMALL), few, only_streams_cost, fields)
    assert sum(pruned.config.widths) == 32
    few = settings(target_macs=None, target_ms=1.0 + 128 - 64)
    other = select(random_network(SMALL), few, only_hidden_costs, fields)
    assert other.config.hidden is not None
    assert sum(other.config.hidden) == 64


def test_widths_stay_multiples(fields):
    pruned = select(random_network(SMALL), settings(multiple=8, target_macs=0.5), by_macs, fields)
    assert all(c % 8 == 0 for c in (*pruned.config.widths, *(pruned.config.hidden or ())))


def test_a_target_out_of_reach_is_refused(fields):
    with pytest.raises(TrainingError, match="cannot be narrowed further"):
        select(random_network(NetworkConfig(widths=(16, 16))), settings(target_macs=0.5), by_macs, fields)


@pytest.mark.parametrize(
    "change", [{"target_macs": None}, {"target_ms": 3.0}, {"target_macs": 1.5}, {"multiple": 4}], ids=str
)
def test_impossible_targets_are_refused(change):
    with pytest.raises(TrainingError, match=r"expected|give one"):
        settings(**change)


# --- recovery ---


def test_a_pruned_run_recovers_and_goes_on_where_it_was(fields, tmp_path):
    teacher = random_network(SMALL)
    (tmp_path / "teacher").mkdir()
    write_weights(teacher, tmp_path / "teacher", 0)
    chosen = settings(steps=40, learning_rate=3e-3, truth_share=0.0)
    result = prune(
        tmp_path / "teacher", tmp_path / "pruned", settings=chosen, fields=fields, measure=by_macs, progress=None
    )
    assert result.student.kmac_per_px <= 0.7 * result.teacher.kmac_per_px
    record = json.loads((tmp_path / "pruned" / "config.json").read_text())
    assert (record["stage"], record["started_from"]) == ("prune", str(tmp_path / "teacher"))
    network = load_network(tmp_path / "pruned")
    assert NetworkConfig.from_dict(record["network"]) == network.config

    def never(config):
        raise AssertionError("the channels were chosen before")

    again = prune(
        tmp_path / "teacher", tmp_path / "pruned", settings=chosen, fields=fields, measure=never, progress=None
    )
    assert again.student == result.student
    with pytest.raises(TrainingError, match=r"pruned to 0.7 of the MACs, now asked for 0.6"):
        prune(tmp_path / "teacher", tmp_path / "pruned", settings=chosen, target_macs=0.6, fields=fields, measure=never)


def test_a_student_of_few_steps_stays_one(fields, tmp_path, monkeypatch):
    run = tmp_path / "few"
    run.mkdir()
    write_weights(random_network(SMALL), run, 0)
    (run / "config.json").write_text(json.dumps({"stage": "distill", "settings": {"student_steps": 2}}))
    pruned = tmp_path / "pruned"
    prune(run, pruned, settings=settings(target_macs=0.9), fields=fields, measure=by_macs, progress=None)
    told = json.loads((pruned / "config.json").read_text())["settings"]
    assert (told["student_steps"], told["substeps"]) == (2, 1)


def test_what_cannot_be_pruned_is_said_first(fields, tmp_path):
    with pytest.raises(TrainingError, match="made for super_resolution"):
        prune("sr2", tmp_path / "a", settings=settings(target_macs=0.9), fields=fields, measure=by_macs)
    assert not (tmp_path / "a").exists()
    knob = tmp_path / "knob"
    knob.mkdir()
    write_weights(random_network(NetworkConfig(widths=(32, 32), planes=5)), knob, 0)
    with pytest.raises(TrainingError, match="detail knob"):
        prune(knob, tmp_path / "b", settings=settings(target_macs=0.9), fields=fields, measure=by_macs)
