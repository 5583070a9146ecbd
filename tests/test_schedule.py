"""Noise levels: exact ends, the papers' spacings, and errors instead of wrong sequences."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from photonstep.runtime import samplers, schedule
from photonstep.runtime.errors import PlanError, ShapeError

steps_ = st.integers(1, 40)


@given(
    steps=steps_, start=st.floats(0.01, 100), ratio=st.floats(1e-4, 0.9), rho=st.floats(1, 10), to_zero=st.booleans()
)
def test_schedules_descend_between_the_ends_asked_for(steps, start, ratio, rho, to_zero):
    low = start * ratio
    for levels in (
        schedule.karras(steps, start, low, rho=rho, to_zero=to_zero),
        schedule.log_linear(steps, start, low, to_zero=to_zero),
        schedule.linear(steps, start, 0.0 if to_zero else low),
    ):
        assert len(schedule.pairs(levels)) == steps
        assert levels[0] == start
        assert levels[-1] == (0.0 if to_zero else pytest.approx(low))


def test_pairs_chain():
    assert schedule.pairs([3, 2, 0.5, 0]) == ((3.0, 2.0), (2.0, 0.5), (0.5, 0.0))


@pytest.mark.parametrize("levels", [(), (1.0,), (0.0, 0.0), (1, 1, 0), (1, 2), (1, -1), (math.inf, 0), (1, math.nan)])
def test_pairs_rejects_what_is_not_a_descent(levels):
    with pytest.raises(PlanError, match="expected"):
        schedule.pairs(levels)


def test_karras_is_edm_eq_5():
    n, high, low, rho = 18, 80.0, 0.002, 7.0
    i = np.arange(n)
    paper = (high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    np.testing.assert_allclose(schedule.karras(n, high, low), np.append(paper, 0.0), rtol=1e-12)
    np.testing.assert_allclose(schedule.karras(n - 1, high, low, to_zero=False), paper, rtol=1e-12)
    assert schedule.karras(1, high, low) == (high, 0.0)


def test_log_linear_has_equal_lambda_steps():
    levels = schedule.log_linear(7, 5.0, 0.01, to_zero=False)
    np.testing.assert_allclose(np.diff(np.log(levels)), math.log(0.01 / 5.0) / 7, rtol=1e-12)


def test_linear_is_proportional_to_time():
    np.testing.assert_allclose(schedule.linear(4, 0.2), 0.2 * np.array([1, 0.75, 0.5, 0.25, 0]), rtol=1e-15)


def test_measured_levels_of_the_plans_in_use():
    assert schedule.measured(1) == (1.0, 0.0)
    np.testing.assert_allclose(schedule.measured(2), [1, 0.5**1.5, 0], rtol=1e-15)
    np.testing.assert_allclose(schedule.measured(4), np.array([1, 0.75, 0.5, 0.25, 0]) ** 1.5, rtol=1e-15)


# A sparse scale mixture: image detail from far below to far above the noise, weak detail the more frequent.
SCALES = np.geomspace(0.02, 20, 25)
WEIGHTS = (1 / SCALES) / np.sum(1 / SCALES)


def sparse_endpoint(levels, x):
    """DDIM with the mixture's exact posterior mean."""

    def denoise(state, sigma):
        variance = SCALES**2 + sigma**2
        log_joint = np.log(WEIGHTS) - 0.5 * np.log(variance) - 0.5 * state[:, None] ** 2 / variance
        joint = np.exp(log_joint - log_joint.max(axis=1, keepdims=True))
        return state * (joint * SCALES**2 / variance).sum(axis=1) / joint.sum(axis=1)

    return samplers.sample(x, samplers.ddim(levels), denoise)


@pytest.mark.parametrize("steps", [2, 4])
def test_measured_levels_come_nearer_to_the_flow_than_the_alternatives(steps):
    x = np.linspace(0, 12, 400)
    variance = SCALES**2 + 1
    density = (WEIGHTS / np.sqrt(variance) * np.exp(-0.5 * x[:, None] ** 2 / variance)).sum(axis=1)
    exact = sparse_endpoint(schedule.log_linear(400, 1.0, 1e-3), x)

    def error(levels):
        return math.sqrt(np.average((sparse_endpoint(levels, x) - exact) ** 2, weights=density))

    ours = error(schedule.measured(steps))
    assert ours < 0.95 * error(schedule.linear(steps))
    assert ours < 0.8 * error(schedule.karras(steps, 1.0, 0.01))
    assert ours < 0.8 * error(schedule.measured(1))


def test_from_alphas_cumprod():
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    levels = schedule.from_alphas_cumprod(alpha_bar, [999, 500, 0])
    np.testing.assert_allclose(levels[:-1], np.sqrt((1 - alpha_bar) / alpha_bar)[[999, 500, 0]], rtol=1e-12)
    assert levels[-1] == 0.0
    assert schedule.from_alphas_cumprod(alpha_bar, [999, 0], to_zero=False) == (levels[0], levels[2])
    assert schedule.from_alphas_cumprod([1.0, 0.5], [1, 0]) == (1.0, 0.0)


@pytest.mark.parametrize("timesteps", [[1000], [-1, 0], [0, 500], [5, 5], []])
def test_from_alphas_cumprod_rejects_timesteps_that_do_not_descend_inside(timesteps):
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    with pytest.raises(PlanError):
        schedule.from_alphas_cumprod(alpha_bar, timesteps)


@given(sigma=st.floats(1e-3, 1e3))
def test_sigma_alpha_bar_round_trip(sigma):
    # 1 - alpha_bar loses digits for small sigma: the error budget is that cancellation.
    back = schedule.sigma_from_alpha_bar(schedule.alpha_bar_from_sigma(sigma))
    assert back == pytest.approx(sigma, rel=1e-15 * (4 + 1 / sigma**2))


def test_sigma_alpha_bar_of_arrays_and_bad_values():
    np.testing.assert_allclose(schedule.alpha_bar_from_sigma(np.array([0.0, 1.0, 3.0])), [1, 0.5, 0.1], rtol=1e-15)
    for bad in (0.0, -0.1, 1.1, math.nan):
        with pytest.raises(PlanError, match="alpha_bar"):
            schedule.sigma_from_alpha_bar(bad)
    for bad in (-1.0, math.nan):
        with pytest.raises(PlanError, match="sigma"):
            schedule.alpha_bar_from_sigma(bad)


@pytest.mark.parametrize(
    "call",
    [
        lambda: schedule.measured(0),
        lambda: schedule.measured(2.0),
        lambda: schedule.measured(True),
        lambda: schedule.measured(2, rho=0),
        lambda: schedule.karras(3, 1.0, 2.0),
        lambda: schedule.karras(3, 1.0, 0.0),
        lambda: schedule.karras(3, math.inf, 0.1),
        lambda: schedule.karras(3, 1.0, 0.1, rho=math.nan),
        lambda: schedule.log_linear(3, 1.0, -1.0),
        lambda: schedule.linear(3, 0.0),
        lambda: schedule.linear(3, 1.0, -0.1),
        lambda: schedule.from_alphas_cumprod([[0.5]], [0]),
        lambda: schedule.from_alphas_cumprod([0.5, 1.2], [1, 0]),
    ],
)
def test_settings_out_of_range(call):
    with pytest.raises(PlanError, match="expected"):
        call()


def test_level_like_keeps_the_images_dtype_and_checks_the_map():
    x = np.zeros((2, 3, 4), np.float32)
    assert isinstance(schedule.level_like(np.float64(0.1), x), float)
    assert schedule.level_like(np.ones((3, 4)), x).dtype == np.float32
    assert schedule.level_like(np.ones((2, 1, 4)), x).shape == (2, 1, 4)
    for shape in [(4, 3), (1, 2, 3, 4), (3, 2)]:
        with pytest.raises(ShapeError, match="broadcasts"):
            schedule.level_like(np.ones(shape), x)
    for bad in (-0.1, math.nan, math.inf, np.array([[0.1, -0.1, 1, 1]]), np.array([1, math.nan, 1, 1])):
        with pytest.raises(PlanError, match="finite noise levels"):
            schedule.level_like(bad, x)
