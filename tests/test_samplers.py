"""Samplers against their papers' formulas in float64, against diffusers, and against the exact solution of a flow."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from photonstep.runtime import samplers, schedule
from photonstep.runtime.errors import PlanError, ShapeError
from photonstep.runtime.prediction import Parameterisation

RTOL = 1e-10
LEVELS = (3.0, 1.7, 0.9, 0.4, 0.1, 0.0)
DETERMINISTIC = ("ddim", "ot_ode", "dpm_solver_pp_2m", "heun", "bridge")
X = np.random.default_rng(1).normal(size=(5, 7)) * 3.0
NOISE = samplers.seeded_noise(3, X.shape, np.float64)


def denoise(x, sigma):
    """Smooth and non-linear in state and level, so that no coefficient can hide."""
    return np.tanh(x / (1 + sigma)) + 0.2 * np.cos(x * sigma)


def walk(name, levels=LEVELS, **settings):
    rows = samplers.table(name, levels, **settings)
    return samplers.sample(X, rows, denoise, noise=NOISE, measurement=X)


def vp(sigma):
    """(alpha, sigma) of the variance-preserving form at a variance-exploding sigma."""
    return 1 / math.sqrt(1 + sigma**2), sigma / math.sqrt(1 + sigma**2)


# --- the papers' formulas, written in their own coordinates ---


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_is_eq_12(eta):
    x_t = vp(LEVELS[0])[0] * X
    for index, (sigma, sigma_next) in enumerate(schedule.pairs(LEVELS)):
        ab, ab_next = vp(sigma)[0] ** 2, vp(sigma_next)[0] ** 2
        x0 = denoise(x_t / math.sqrt(ab), sigma)
        eps = (x_t - math.sqrt(ab) * x0) / math.sqrt(1 - ab)
        s = eta * math.sqrt((1 - ab_next) / (1 - ab)) * math.sqrt(1 - ab / ab_next)
        z = NOISE(index) if s else 0.0
        x_t = math.sqrt(ab_next) * x0 + math.sqrt(1 - ab_next - s**2) * eps + s * z
    np.testing.assert_allclose(walk("ddim", eta=eta), x_t, rtol=RTOL, atol=RTOL)


def test_ddpm_is_the_posterior_of_eq_7():
    x_t = vp(LEVELS[0])[0] * X
    for index, (sigma, sigma_next) in enumerate(schedule.pairs(LEVELS)):
        ab, ab_next = vp(sigma)[0] ** 2, vp(sigma_next)[0] ** 2
        alpha = ab / ab_next
        beta = 1 - alpha
        x0 = denoise(x_t / math.sqrt(ab), sigma)
        mean = math.sqrt(ab_next) * beta / (1 - ab) * x0 + math.sqrt(alpha) * (1 - ab_next) / (1 - ab) * x_t
        variance = (1 - ab_next) / (1 - ab) * beta
        x_t = mean + (math.sqrt(variance) * NOISE(index) if variance > 0 else 0.0)
    np.testing.assert_allclose(walk("ddpm"), x_t, rtol=RTOL, atol=RTOL)


def test_dpm_solver_pp_2m_is_algorithm_2():
    levels = LEVELS[:-1]  # the paper's lambda = log(alpha / sigma) is finite only above sigma 0
    x_t = vp(levels[0])[0] * X
    h_prev = x0_prev = None
    for s, t in schedule.pairs(levels):
        (alpha_s, sigma_s), (alpha_t, sigma_t) = vp(s), vp(t)
        h = math.log(alpha_t / sigma_t) - math.log(alpha_s / sigma_s)
        x0 = denoise(x_t / alpha_s, s)
        d = x0
        if h_prev is not None:
            q = h_prev / h
            d = (1 + 1 / (2 * q)) * x0 - 1 / (2 * q) * x0_prev
        x_t = sigma_t / sigma_s * x_t - alpha_t * math.expm1(-h) * d
        h_prev, x0_prev = h, x0
    np.testing.assert_allclose(walk("dpm_solver_pp_2m", levels), x_t / vp(levels[-1])[0], rtol=RTOL, atol=RTOL)


def test_dpm_solver_pp_2m_last_step_to_zero_is_first_order():
    assert samplers.dpm_solver_pp_2m(LEVELS)[-1] == samplers.ddim(LEVELS)[-1]


def test_heun_is_edm_algorithm_1():
    x = X
    for sigma, sigma_next in schedule.pairs(LEVELS):
        d = (x - denoise(x, sigma)) / sigma
        x_next = x + (sigma_next - sigma) * d
        if sigma_next != 0:
            d_next = (x_next - denoise(x_next, sigma_next)) / sigma_next
            x_next = x + (sigma_next - sigma) * (d / 2 + d_next / 2)
        x = x_next
    np.testing.assert_allclose(walk("heun"), x, rtol=RTOL, atol=RTOL)
    steps = len(LEVELS) - 1
    assert len(samplers.heun(LEVELS)) == 2 * steps - 1


def test_consistency_is_algorithm_1():
    epsilon = 0.05
    x = denoise(X, LEVELS[0])
    for index, tau in enumerate(LEVELS[1:-1]):
        x = denoise(x + math.sqrt(tau**2 - epsilon**2) * NOISE(index), tau)
    np.testing.assert_allclose(walk("consistency", sigma_min=epsilon), x, rtol=RTOL, atol=RTOL)


def test_bridge_is_indi():
    times = schedule.linear(4)
    x, delta = X, 0.25
    for t in times[:-1]:
        x = delta / t * denoise(x, t) + (1 - delta / t) * x
    np.testing.assert_allclose(walk("bridge", times), x, rtol=RTOL, atol=RTOL)


def test_anchored_bridge_is_cold_diffusion():
    times = schedule.linear(4, 2.0)  # any unit of time: it counts relative to the start
    x = X
    for s, s_next in schedule.pairs(times):
        x = (1 - s_next / 2.0) * denoise(x, s) + s_next / 2.0 * X
    np.testing.assert_allclose(walk("bridge", times, anchor=1.0), x, rtol=RTOL, atol=RTOL)


# --- against diffusers, with a network that predicts eps at a timestep ---

# NumPy 2 asks torch's tensors for a newer __array__ than torch 2.13 has; inside diffusers, nothing of ours.
diffusers_warnings = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def eps_network(x_t, timestep):
    """Any smooth function of the scaled state and the timestep, on NumPy arrays and torch tensors alike."""
    return (0.6 + 0.0003 * timestep) * x_t + 0.1 * x_t**2 / (1 + x_t**2)


def diffusers_walk(scheduler, x_t, **settings):
    torch = pytest.importorskip("torch")
    state = torch.from_numpy(x_t)
    for index, t in enumerate(scheduler.timesteps):
        noise = {"variance_noise": torch.from_numpy(NOISE(index))} if settings.get("eta") else {}
        state = scheduler.step(eps_network(state, int(t)), t, state, **settings, **noise).prev_sample
    return state.numpy()


def our_walk(name, scheduler, x_t, **settings):
    alphas_cumprod = scheduler.alphas_cumprod.double().numpy()
    network = Parameterisation(prediction="eps", conditioning="timestep", alphas_cumprod=alphas_cumprod)

    def denoise_eps(x, sigma):
        scaled, timestep = network.network_input(x, sigma)
        return network.x0(eps_network(scaled, int(timestep)), x, sigma)

    levels = schedule.from_alphas_cumprod(alphas_cumprod, scheduler.timesteps.tolist())
    start = x_t * math.sqrt(1 + levels[0] ** 2)
    return samplers.sample(start, samplers.table(name, levels, **settings), denoise_eps, noise=NOISE)


@diffusers_warnings
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_against_diffusers(eta):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(clip_sample=False, steps_offset=1)
    # All of this scheduler runs in float64 once its table does.
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    scheduler.set_timesteps(5)
    theirs = diffusers_walk(scheduler, X / 3, eta=eta)
    np.testing.assert_allclose(our_walk("ddim", scheduler, X / 3, eta=eta), theirs, rtol=RTOL, atol=RTOL)


@diffusers_warnings
@pytest.mark.parametrize("steps", [2, 6, 20])
def test_dpm_solver_pp_2m_against_diffusers(steps):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        timestep_spacing="leading",
        steps_offset=1,
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(steps)
    theirs = diffusers_walk(scheduler, X / 3)
    # This scheduler computes in float32 whatever it is given.
    np.testing.assert_allclose(our_walk("dpm_solver_pp_2m", scheduler, X / 3), theirs, rtol=1e-5, atol=1e-5)


# --- order of convergence on a Gaussian, where the probability-flow ODE has a closed form ---

MEAN, SPREAD = 0.3, 0.5
START, END = 2.0, 0.1


def flow_error(name, steps):
    def gaussian_posterior_mean(x, sigma):
        return MEAN + SPREAD**2 / (SPREAD**2 + sigma**2) * (x - MEAN)

    rows = samplers.table(name, schedule.log_linear(steps, START, END, to_zero=False))
    x = MEAN + np.array([2.0])
    exact = MEAN + (x - MEAN) * math.sqrt((SPREAD**2 + END**2) / (SPREAD**2 + START**2))
    return abs(samplers.sample(x, rows, gaussian_posterior_mean) - exact)[0]


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("dpm_solver_pp_2m", 2), ("heun", 2)])
def test_order_of_convergence(name, order):
    slopes = [math.log2(flow_error(name, steps) / flow_error(name, 2 * steps)) for steps in (64, 128, 256)]
    assert slopes == pytest.approx([order] * 3, abs=0.1)


# --- properties ---

level_lists = st.lists(st.floats(1e-3, 50), min_size=1, max_size=8, unique=True).map(
    lambda levels: (*sorted(levels, reverse=True), 0.0)
)


@given(levels=level_lists)
def test_ddim_with_the_true_eps_returns_x0_for_any_step_list(levels):
    rng = np.random.default_rng(0)
    x0, eps = rng.normal(size=(2, 16))
    x = x0 + levels[0] * eps
    truth = samplers.sample(x, samplers.ddim(levels), lambda state, sigma: state - sigma * eps)
    np.testing.assert_allclose(truth, x0, atol=1e-13 * (1 + levels[0]))


@given(levels=level_lists, name=st.sampled_from(sorted(samplers.SAMPLERS)))
def test_every_table_ends_at_zero_with_x0_and_its_weights_sum_to_one(levels, name):
    rows = samplers.table(name, levels)
    assert all(row.a + row.b + row.p + row.y == pytest.approx(1, abs=1e-9) for row in rows)
    last = rows[-1]
    assert (last.sigma_next, last.a, last.b, last.n, last.p, last.y) == (0, 0, 1, 0, 0, 0)
    assert all(before.sigma_next == after.sigma for before, after in pairwise(rows))
    assert samplers.is_stochastic(rows) == (name not in DETERMINISTIC and len(rows) > 1)


@given(levels=level_lists, eta=st.floats(0, 1))
def test_ddim_keeps_the_noise_level(levels, eta):
    """What is kept of the old noise and what is added make up the next level: weights alone would miss a wrong n."""
    for row in samplers.ddim(levels, eta=eta):
        assert math.hypot(row.a * row.sigma, row.n) == pytest.approx(row.sigma_next, rel=1e-9)


@given(levels=level_lists)
def test_ddpm_is_ddim_with_eta_1(levels):
    for a, b in zip(samplers.ddpm(levels), samplers.ddim(levels, eta=1.0), strict=True):
        assert (a.a, a.b, a.n) == pytest.approx((b.a, b.b, b.n), abs=1e-6)


@given(levels=level_lists, factor=st.floats(0.01, 100), name=st.sampled_from(sorted(samplers.SAMPLERS)))
def test_tables_are_homogeneous_in_sigma(levels, factor, name):
    absolute = samplers.table(name, [level * factor for level in levels])
    for row, relative in zip(absolute, samplers.table(name, levels), strict=True):
        scaled = relative.scaled(factor)
        assert (row.sigma, row.sigma_next, row.n) == pytest.approx(
            (scaled.sigma, scaled.sigma_next, scaled.n), rel=1e-6, abs=1e-6 * row.sigma
        )
        assert (row.a, row.b, row.p, row.y) == pytest.approx(
            (scaled.a, scaled.b, scaled.p, scaled.y), rel=1e-6, abs=1e-6
        )


@pytest.mark.parametrize("name", sorted(samplers.SAMPLERS))
def test_a_relative_table_with_a_sigma_map_is_each_pixels_absolute_table(name):
    relative = schedule.measured(4)
    sigma_map = np.random.default_rng(5).uniform(0.1, 2.0, X.shape)
    mapped = samplers.sample(
        X, samplers.table(name, relative), denoise, sigma_map=sigma_map, noise=NOISE, measurement=X
    )
    for pixel in np.ndindex(X.shape):
        one = (slice(pixel[0], pixel[0] + 1), slice(pixel[1], pixel[1] + 1))
        rows = samplers.table(name, [level * sigma_map[pixel] for level in relative])
        alone = samplers.sample(X[one], rows, denoise, noise=lambda i, one=one: NOISE(i)[one], measurement=X[one])
        np.testing.assert_allclose(mapped[one], alone, rtol=RTOL, atol=RTOL)


# --- the loop, its checks and its arithmetic ---


@pytest.mark.parametrize("name", sorted(samplers.SAMPLERS))
def test_float32_stays_float32_close_to_float64_and_leaves_the_input_alone(name):
    x = X.astype(np.float32)
    before = x.copy()
    rows = samplers.table(name, LEVELS)
    sigma_map = np.full(X.shape[-1], 0.7)  # float64 on purpose: it must not widen the frame

    def noise(index):
        return NOISE(index).astype(np.float32)

    out = samplers.sample(x, rows, denoise, sigma_map=sigma_map, noise=noise, measurement=x)
    exact = samplers.sample(X, rows, denoise, sigma_map=sigma_map, noise=NOISE, measurement=X)
    assert out.dtype == np.float32
    np.testing.assert_array_equal(x, before)
    np.testing.assert_allclose(out, exact, atol=2e-6)


def test_one_step_is_the_posterior_mean_exactly():
    rows = samplers.table("ddim", schedule.measured(1))
    np.testing.assert_array_equal(samplers.sample(X, rows, denoise, sigma_map=0.3), denoise(X, 0.3))


def test_denoise_sees_the_scaled_levels():
    seen = []

    def spy(x, sigma):
        seen.append(sigma)
        return x

    samplers.sample(X, samplers.heun((1.0, 0.5, 0.0)), spy, sigma_map=0.2)
    assert seen == pytest.approx([0.2, 0.1, 0.1])


def test_apply_row_is_the_documented_sum():
    rng = np.random.default_rng(2)
    x, x0, prev, noise, y, sigma_map = rng.normal(size=(6, 3, 4))
    sigma_map = np.abs(sigma_map)
    row = samplers.Row(sigma=2.0, sigma_next=1.0, a=0.5, b=0.3, n=0.7, y=0.11, p=-0.13)
    out = samplers.apply_row(row, x, x0, x0_prev=prev, noise=noise, measurement=y, sigma_map=sigma_map)
    np.testing.assert_allclose(out, 0.5 * x + 0.3 * x0 + 0.7 * sigma_map * noise + 0.11 * y - 0.13 * prev, rtol=1e-12)


def test_seeded_noise_depends_on_seed_and_row_only():
    noise = samplers.seeded_noise(1, (300, 200))
    later = noise(3)
    assert later.dtype == np.float32
    np.testing.assert_array_equal(later, samplers.seeded_noise(1, (300, 200))(3))
    assert not np.array_equal(later, noise(2))
    assert not np.array_equal(later, samplers.seeded_noise(2, (300, 200))(3))
    assert (later.mean(), later.std()) == pytest.approx((0, 1), abs=0.02)
    with pytest.raises(ShapeError, match="float32 or float64"):
        samplers.seeded_noise(1, (2, 2), np.float16)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: samplers.table("dimm", LEVELS), "'dimm'; choose one of ddim, ddpm, ot_ode, dpm_solver_pp_2m, heun"),
        (lambda: samplers.table("ddim", LEVELS, etta=1.0), "etta; it takes eta"),
        (lambda: samplers.table("heun", LEVELS, eta=1.0), "heun got settings eta; it takes none"),
        (lambda: samplers.table("ddim", LEVELS, eta=1.5), "eta is 1.5"),
        (lambda: samplers.table("ddim", LEVELS, eta=math.nan), "eta is nan"),
        (lambda: samplers.table("bridge", LEVELS, anchor=-1), "anchor is -1"),
        (lambda: samplers.table("consistency", LEVELS, sigma_min=0.2), "lowest positive level, 0.1"),
        (lambda: samplers.table("ddim", (1.0, 2.0)), "descending"),
        (lambda: samplers.Row(sigma=1, sigma_next=2, a=0, b=1), "sigma_next <= sigma"),
        (lambda: samplers.Row(sigma=1, sigma_next=0, a=0, b=math.inf), "finite"),
        (lambda: samplers.sample(X, (), denoise), "no rows"),
        (lambda: samplers.sample(X, samplers.ddpm(LEVELS), denoise), "noise=seeded_noise"),
        (lambda: samplers.sample(X, samplers.bridge(LEVELS, anchor=0.5), denoise), "the measurement"),
        (lambda: samplers.apply_row(samplers.heun(LEVELS)[1], X, X), "the previous x0_hat"),
    ],
)
def test_plans_that_cannot_be(call, message):
    with pytest.raises(PlanError, match=message):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda rows: samplers.sample(X, rows, lambda x, sigma: x[:-1], noise=NOISE),
        lambda rows: samplers.sample(X, rows, lambda x, sigma: x.astype(np.float32), noise=NOISE),
        lambda rows: samplers.sample(X.astype(np.float16), rows, denoise, noise=NOISE),
        lambda rows: samplers.sample(X, rows, denoise, noise=lambda index: np.zeros(3)),
        lambda rows: samplers.sample(X, rows, denoise, sigma_map=np.ones((2, *X.shape)), noise=NOISE),
    ],
)
def test_arrays_that_do_not_fit(call):
    with pytest.raises(ShapeError):
        call(samplers.ddpm(LEVELS))
