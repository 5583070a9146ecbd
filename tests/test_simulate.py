"""Simulated structures and cameras: repeatable, in range, and as noisy as they say."""

import numpy as np
import pytest
import torch

from photonstep.models import noise, simulate
from photonstep.models.noise import CameraRanges, correlation_kernels, expose, observe
from photonstep.models.simulate import STRUCTURES, simulate_field

# a camera without the nuisances that have no variance of their own: what is left is shot and readout noise
PLAIN = {"row_noise_share": 0.0, "hot_readout_share": 0.0, "clipped_share": 0.0, "quantised_share": 0.0}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def scenes(count=32, side=128, seed=0):
    """Flat and sloping fields: known brightness everywhere."""
    levels = torch.linspace(0.05, 1, count)[:, None, None]
    return levels * torch.linspace(0.5, 1, side)[None, None] * torch.ones(count, side, side)


# --- structures ---


def test_the_same_seed_draws_the_same_field():
    first, again, other = (simulate_field(np.random.default_rng(s), 96) for s in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("seed", range(12))
def test_fields_are_in_range(seed):
    field = simulate_field(np.random.default_rng(seed), 96)
    assert field.shape == (96, 96)
    assert field.dtype == np.float32
    assert np.isfinite(field).all()
    assert field.min() >= 0
    assert np.percentile(field, 99.9) == pytest.approx(1, rel=1e-4)
    assert field.std() > 0.01  # something is there


@pytest.mark.parametrize("kind", STRUCTURES)
def test_every_structure_is_finite_and_not_negative(kind):
    for seed in range(4):
        layer = STRUCTURES[kind](np.random.default_rng(seed), 80)
        assert layer.shape == (80, 80)
        assert layer.dtype == np.float32
        assert np.isfinite(layer).all()
        assert layer.min() >= 0


def test_splatting_conserves_weight_and_centre():
    field = simulate.splat(np.array([10.25]), np.array([20.5]), np.array([4.0]), 64)
    rows, columns = np.mgrid[:64, :64]
    assert field.sum() == pytest.approx(4)
    assert (field * rows).sum() / 4 == pytest.approx(10.25)
    assert (field * columns).sum() / 4 == pytest.approx(20.5)


def test_points_outside_are_dropped():
    assert simulate.splat(np.array([-1.0, 63.5, 5]), np.array([5.0, 5, 99]), np.ones(3), 64).sum() == 0


# --- cameras ---


@pytest.mark.parametrize("correlated_share", [0.0, 1.0])
def test_noise_has_the_variance_of_its_photons_and_readout(correlated_share):
    """Whether it is correlated or not: the filter keeps the variance of every pixel."""
    ranges = CameraRanges(correlated_share=correlated_share, **PLAIN)
    seen = expose(scenes(), generator(1), ranges)
    measured = (seen.electrons - seen.photons)[:, 8:-8, 8:-8].flatten(1).var(1)
    promised = seen.photons[:, 8:-8, 8:-8].flatten(1).mean(1) + seen.readout_noise_e[:, 0] ** 2
    ratio = (measured / promised).numpy()
    # 12,544 pixels give 1.3 % for white noise; correlation leaves a tenth of them independent
    np.testing.assert_allclose(ratio, 1, atol=0.06 if correlated_share == 0 else 0.25)
    assert ratio.mean() == pytest.approx(1, abs=0.03)


def test_noise_has_the_correlation_that_is_reported():
    seen = expose(scenes(), generator(2), CameraRanges(correlated_share=1.0, **PLAIN))
    residual = (seen.electrons - seen.photons)[:, 8:-8, 8:-8].numpy()
    power = np.mean(residual**2, axis=(1, 2))
    along_y = np.mean(residual[:, 1:] * residual[:, :-1], axis=(1, 2)) / power
    along_x = np.mean(residual[:, :, 1:] * residual[:, :, :-1], axis=(1, 2)) / power
    reported = seen.noise_correlation.numpy()
    np.testing.assert_allclose(np.stack([along_y, along_x], 1), reported, atol=0.06)
    assert reported.max() > 0.6
    assert (reported > -1e-6).all()


def test_the_share_of_correlated_cameras_is_the_one_asked_for():
    draw = noise.Draw(generator(3), 4000)
    kernels, correlation = correlation_kernels(draw, 0.4)
    assert float((correlation.abs().sum(1) > 1e-3).float().mean()) == pytest.approx(0.4, abs=0.04)
    np.testing.assert_allclose(kernels.square().sum((1, 2)), 1, atol=1e-5)
    white = kernels[correlation.abs().sum(1) == 0]
    assert (white[:, noise.KERNEL_PX // 2, noise.KERNEL_PX // 2] == 1).all()


def test_clipping_and_rounding_stay_within_the_frame():
    ranges = CameraRanges(clipped_share=1.0, quantised_share=1.0)
    seen = expose(scenes(), generator(4), ranges)
    assert torch.isfinite(seen.electrons).all()
    for electrons in seen.electrons:
        assert 2 <= len(electrons.unique()) <= 257


def test_batches_repeat_with_their_seed():
    fields, levels = scenes(8, 64), torch.tensor([[0.0, 1.0]]).expand(8, 2)
    first, again, other = (observe(fields, levels, generator(s), CameraRanges()) for s in (5, 5, 6))
    assert torch.equal(first.x, again.x)
    assert not torch.equal(first.x, other.x)


def test_batches_are_finite_and_of_the_promised_shapes():
    fields, levels = scenes(64, 64), torch.tensor([[0.0, 1.0]]).expand(64, 2)
    batch = observe(fields, levels, generator(7), CameraRanges())
    for part in (batch.x, batch.x0, batch.sigma):
        assert part.shape == (64, 1, 64, 64)
        assert part.dtype == torch.float32
        assert torch.isfinite(part).all()
    assert batch.noise_correlation.shape == (64, 2)
    assert batch.noise_correlation.abs().max() <= 0.95
    assert batch.sigma.min() > 0
    assert batch.sigma.max() < 1
    assert batch.x0.abs().max() < 5  # most fields lie within -0.5..0.5


def test_sigma_is_the_noise_of_the_state():
    """What the network is told matches what it gets, at the measured level and on the way down from it."""
    ranges = CameraRanges(sigma_error=0.0, gain_error=0.0, correlated_share=0.0, **PLAIN)
    fields, levels = scenes(256, 64), torch.tensor([[0.0, 1.0]]).expand(256, 2)
    batch = observe(fields, levels, generator(8), ranges)
    ratio = ((batch.x - batch.x0) / batch.sigma).flatten(1).std(1)
    assert float(ratio.median()) == pytest.approx(1, abs=0.06)
    assert float(ratio.quantile(0.9)) < 1.3
