"""Networks, fields and training: what is counted is true, the runtime sees what training saw, and a run resumes."""

import csv

import numpy as np
import pytest
import torch

from photonstep.models import data, loop, noise_regression
from photonstep.models import train as training
from photonstep.models.data import Field, FieldPool, load_pool
from photonstep.models.network import (
    INPUT_PLANES,
    TIERS,
    Denoiser,
    NetworkConfig,
    kmac_per_px,
    parameter_count,
)
from photonstep.models.noise import Batch
from photonstep.models.simulate import simulate_field
from photonstep.models.train import TrainConfig, edm_residual, make_batch, network_planes, train, validate
from photonstep.runtime.prediction import Parameterisation

TINY = NetworkConfig(widths=(16, 16))
SETTINGS = {"tier": "tiny", "batch": 4, "patch_px": 32, "warmup_steps": 5, "ema_decay": 0.8, "simulated_fields": 1}


@pytest.fixture(scope="module")
def pool():
    rng = np.random.default_rng(0)
    return FieldPool({"simulated": [Field.of(simulate_field(rng, 64)) for _ in range(12)]}, {"simulated": 1.0})


@pytest.fixture
def tiny(monkeypatch, pool, single_threaded_torch):
    """Training of a network small enough for a test, on a few fields."""
    monkeypatch.setitem(TIERS, "tiny", TINY)
    monkeypatch.setattr(training, "load_pool", lambda *args, **kwargs: pool)


# --- the network ---


@pytest.mark.parametrize("config", [*TIERS.values(), TINY, NetworkConfig(widths=(32, 64), blocks=2, unshuffle=4)])
def test_cost_and_size_are_what_a_count_finds(config):
    network, side = Denoiser(config), 2 * config.multiple
    macs = []

    def count(module, _, output):
        macs.append(output.numel() * module.weight[0].numel())

    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(count)
    output = network(torch.zeros(1, INPUT_PLANES, side, side))
    assert output.shape == (1, 1, side, side)
    assert sum(macs) / side**2 / 1000 == pytest.approx(kmac_per_px(config), rel=1e-6)
    assert parameter_count(network) == sum(p.numel() for p in network.parameters() if p.requires_grad)


def test_the_shipped_tiers_cost_what_the_design_asks():
    assert 12 <= kmac_per_px(TIERS["base"]) <= 25
    assert 3 <= kmac_per_px(TIERS["live"]) <= 8


def test_an_untrained_network_says_nothing():
    torch.manual_seed(0)
    assert (Denoiser(TINY)(torch.randn(2, INPUT_PLANES, 16, 24)) == 0).all()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"widths": (20,)}, "20"),
        ({"widths": (0,)}, "0"),
        ({"widths": ()}, "widths"),
        ({"widths": (16,), "blocks": 0}, "blocks 0"),
        ({"widths": (16,), "hidden": (8,)}, "one a block"),
    ],
)
def test_impossible_networks_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        NetworkConfig(**settings)


# --- training and runtime speak the same language ---


def a_batch(sigma_map=False):
    generator = torch.Generator().manual_seed(1)
    sigma = torch.full((2, 1, 16, 16), 0.07)
    if sigma_map:
        sigma = sigma * (0.5 + torch.rand(2, 1, 16, 16, generator=generator))
    x0 = torch.rand(2, 1, 16, 16, generator=generator) - 0.5
    x = x0 + sigma * torch.randn(2, 1, 16, 16, generator=generator)
    return Batch(x=x, x0=x0, sigma=sigma, noise_correlation=torch.tensor([[0.1, 0.2], [0.0, 0.6]]))


def runtime_reading():
    return Parameterisation(prediction="edm_f", conditioning="sigma_map", sigma_data=0.25)


@pytest.mark.parametrize("sigma_map", [False, True])
def test_the_runtime_feeds_the_network_what_training_fed_it(sigma_map):
    batch = a_batch(sigma_map)
    planes = network_planes(batch, 0.25).numpy()
    for item in range(2):
        sigma = batch.sigma[item, 0].numpy() if sigma_map else 0.07
        image, level = runtime_reading().network_input(batch.x[item, 0].numpy(), sigma)
        np.testing.assert_allclose(planes[item, 0], image, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(planes[item, 1], np.broadcast_to(level, (16, 16)), rtol=1e-5)
        for plane, value in zip(planes[item, 2:], batch.noise_correlation[item].numpy(), strict=True):
            assert (plane == value).all()


@pytest.mark.parametrize("sigma_map", [False, True])
def test_the_runtime_reads_the_training_target_as_the_clean_frame(sigma_map):
    batch = a_batch(sigma_map)
    target = edm_residual(batch, 0.25).numpy()
    for item in range(2):
        sigma = batch.sigma[item, 0].numpy() if sigma_map else 0.07
        x0 = runtime_reading().x0(target[item, 0], batch.x[item, 0].numpy(), sigma)
        np.testing.assert_allclose(x0, batch.x0[item, 0].numpy(), atol=2e-6)


# --- fields ---


def test_crops_have_the_asked_size_and_repeat(pool):
    first, levels = pool.crops(6, 24, np.random.default_rng(3))
    again, _ = pool.crops(6, 24, np.random.default_rng(3))
    assert first.shape == (6, 24, 24)
    assert levels.shape == (6, 2)
    assert first.dtype == levels.dtype == torch.float32
    assert (levels[:, 0] < levels[:, 1]).all()
    assert torch.equal(first, again)


def test_a_pool_without_small_fields(pool):
    assert pool.at_least(64).fields.keys() == {"simulated"}
    assert pool.at_least(65).fields == {}


def test_fields_come_from_permissive_sets_samples_and_the_simulator_only(tmp_path, shared_data):
    for split in ("train", "val"):
        pool = load_pool(shared_data, tmp_path, simulated=2, seed=0, split=split)
        assert set(pool.fields) <= {"simulated", "samples", *data.PERMISSIVE_SETS}
        assert set(pool.fields) == set(pool.shares)
        assert ("samples" in pool.fields) == (split == "train")
    assert not {"w2s8", "flim2p"} & set(data.PERMISSIVE_SETS)


def test_simulated_fields_are_drawn_once_and_kept(tmp_path):
    first = data.simulated_fields(tmp_path, 2, seed=5, size_px=64)
    (kept,) = tmp_path.iterdir()
    written = kept.stat().st_mtime_ns
    again = data.simulated_fields(tmp_path, 2, seed=5, size_px=64)
    assert kept.stat().st_mtime_ns == written
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.brightness, other.brightness)


def test_every_sample_image_ships_inside_scikit_image():
    """None of them is fetched from the network, and each is large enough to cut patches from."""
    fields = list(data.sample_fields())
    assert len(fields) >= len(data.SKIMAGE_SAMPLES)
    assert all(min(f.brightness.shape) >= data.MINIMUM_FIELD_PX for f in fields)


# --- training ---


def rows_of(log):
    with log.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_short_training_lowers_the_loss(tiny, pool, tmp_path):
    config = TrainConfig(**SETTINGS, steps=60, learning_rate=3e-3, validate_every=30)
    before = validate(Denoiser(TINY), pool, config)
    weights = train(config, None, tmp_path / "run")
    saved = torch.load(weights, weights_only=True)
    network = Denoiser(NetworkConfig.from_dict(saved["network"]))
    network.load_state_dict(saved["state"])
    after = validate(network, pool, config)
    assert after < 0.9 * before
    rows = rows_of(tmp_path / "run" / "log.csv")
    assert [int(row["step"]) for row in rows] == [30, 60]
    assert float(rows[-1]["held_out_loss"]) == pytest.approx(after, abs=1e-4)
    assert saved["step"] == 60


def test_an_interrupted_training_resumes_to_the_same_weights(tiny, tmp_path, monkeypatch):
    config = TrainConfig(**SETTINGS, steps=12, validate_every=6, checkpoint_seconds=0.0)
    uninterrupted = torch.load(train(config, None, tmp_path / "whole"), weights_only=True)

    step = loop._step

    def interrupted(state, *arguments):
        if state.step == 7:
            raise KeyboardInterrupt
        return step(state, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(config, None, tmp_path / "broken")
    assert not (tmp_path / "broken" / "weights.pt").exists()
    resumed = torch.load(train(config, None, tmp_path / "broken"), weights_only=True)
    assert resumed["step"] == uninterrupted["step"] == 12
    for name, value in uninterrupted["state"].items():
        torch.testing.assert_close(resumed["state"][name], value, rtol=0, atol=1e-6, msg=name)
    assert [int(row["step"]) for row in rows_of(tmp_path / "broken" / "log.csv")] == [6, 12]


def test_batches_depend_on_seed_and_index_only(tiny, pool):
    config = TrainConfig(**SETTINGS, steps=9)
    late = make_batch(pool, config, 7)
    make_batch(pool, config, 3)
    assert torch.equal(make_batch(pool, config, 7).x, late.x)
    assert not torch.equal(make_batch(pool, config, 8).x, late.x)
    assert not torch.equal(make_batch(pool, TrainConfig(**SETTINGS, steps=9, seed=1), 7).x, late.x)


def test_the_noise_regression_learns_a_line(capsys, single_threaded_torch):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(1600, 6)).astype(np.float32)
    truth = (features @ rng.normal(size=(6, 3)) * 0.3).astype(np.float32)
    network = noise_regression.fit(features, truth, steps=300)
    with torch.no_grad():
        error = (network(torch.from_numpy(features)) - torch.from_numpy(truth)).abs().median()
    assert error < 0.1 * np.abs(truth).mean()
    assert "correlation x: median error" in capsys.readouterr().out
