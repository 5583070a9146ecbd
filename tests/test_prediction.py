"""What networks speak, converted to x0_hat, and what they are fed: formulas, round trips and refusals."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from photonstep.runtime import prediction
from photonstep.runtime.errors import PlanError, ShapeError
from photonstep.runtime.prediction import Parameterisation

SIGMA_DATA = 0.25
ALPHAS_CUMPROD = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
RNG = np.random.default_rng(4)
X0, EPS = RNG.normal(size=(2, 5, 6))
SIGMA_MAP = RNG.uniform(0.05, 3.0, size=(5, 6))

images = hnp.arrays(np.float64, (4, 5), elements=st.floats(-10, 10))
sigmas = st.floats(0.02, 20) | hnp.arrays(np.float64, (4, 5), elements=st.floats(0.02, 20))


@pytest.mark.parametrize("sigma", [0.37, SIGMA_MAP], ids=["float", "map"])
def test_each_prediction_of_a_perfect_network_gives_x0(sigma):
    """The perfect outputs are written in each paper's own coordinates, from the clean image and the noise."""
    x = X0 + sigma * EPS
    alpha = 1 / np.sqrt(1 + sigma**2)  # x_t = alpha x0 + vp_sigma eps
    vp_sigma = np.sqrt(1 - alpha**2)
    variance = sigma**2 + SIGMA_DATA**2
    perfect = {
        "eps": EPS,
        "x0": X0,
        "v": alpha * EPS - vp_sigma * X0,  # Salimans & Ho 2022
        "edm_f": (X0 - SIGMA_DATA**2 / variance * x) * np.sqrt(variance) / (sigma * SIGMA_DATA),  # EDM, eq. 7
        "score": -EPS / sigma,
    }
    assert set(perfect) == set(prediction.PREDICTIONS)
    for kind, output in perfect.items():
        x0 = prediction.to_x0(kind, output, x, sigma, sigma_data=SIGMA_DATA)
        np.testing.assert_allclose(x0, X0, rtol=1e-10, atol=1e-10, err_msg=kind)
        back = prediction.from_x0(kind, X0, x, sigma, sigma_data=SIGMA_DATA)
        np.testing.assert_allclose(back, output, rtol=1e-10, atol=1e-10, err_msg=kind)


@given(x0=images, x=images, sigma=sigmas, kind=st.sampled_from(prediction.PREDICTIONS))
def test_x0_round_trip_through_every_prediction(x0, x, sigma, kind):
    output = prediction.from_x0(kind, x0, x, sigma, sigma_data=SIGMA_DATA)
    np.testing.assert_allclose(prediction.to_x0(kind, output, x, sigma, sigma_data=SIGMA_DATA), x0, atol=1e-10)


@given(eps=images, x=images, sigma=sigmas)
def test_eps_to_x0_to_v_and_back(eps, x, sigma):
    v = prediction.from_x0("v", prediction.to_x0("eps", eps, x, sigma), x, sigma)
    back = prediction.from_x0("eps", prediction.to_x0("v", v, x, sigma), x, sigma)
    np.testing.assert_allclose(back, eps, atol=1e-9)


def test_edm_coefficients_are_table_1():
    sigma, data = 0.7, 0.5
    c = prediction.edm_coefficients(sigma, data)
    assert c.c_skip == pytest.approx(data**2 / (sigma**2 + data**2), rel=1e-14)
    assert c.c_out == pytest.approx(sigma * data / math.sqrt(sigma**2 + data**2), rel=1e-14)
    assert c.c_in == pytest.approx(1 / math.sqrt(sigma**2 + data**2), rel=1e-14)
    assert prediction.c_noise(sigma, 0.002) == pytest.approx(math.log(sigma) / 4, rel=1e-14)


def test_edm_network_input():
    network = Parameterisation(prediction="edm_f", conditioning="sigma_map", sigma_data=SIGMA_DATA)
    assert network.scaling == "edm"
    x = (X0 + SIGMA_MAP * EPS).astype(np.float32)
    x_in, cond = network.network_input(x, SIGMA_MAP)
    assert (x_in.dtype, cond.dtype) == (np.float32, np.float32)
    np.testing.assert_allclose(x_in, x / np.sqrt(SIGMA_MAP**2 + SIGMA_DATA**2), rtol=1e-6)
    np.testing.assert_allclose(cond, np.log(SIGMA_MAP) / 4, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(network.network_input(x, 0.2)[1], np.full(x.shape, math.log(0.2) / 4, np.float32))


def test_a_noiseless_pixel_is_kept_and_its_conditioning_is_finite():
    network = Parameterisation(prediction="edm_f", conditioning="sigma_map", sigma_data=SIGMA_DATA, sigma_min=0.01)
    sigma = np.where(SIGMA_MAP > 1, 0.0, SIGMA_MAP)
    x_in, cond = network.network_input(X0, sigma)
    assert np.isfinite(x_in).all()
    assert cond.min() == pytest.approx(math.log(0.01) / 4)
    x0 = network.x0(EPS, X0, sigma)
    np.testing.assert_array_equal(x0[sigma == 0], X0[sigma == 0])
    assert np.all(x0[sigma > 0] != X0[sigma > 0])


def test_vp_timestep_network_input():
    network = Parameterisation(prediction="eps", conditioning="timestep", alphas_cumprod=ALPHAS_CUMPROD)
    for t in (0, 17, 500, 999):
        sigma = math.sqrt((1 - ALPHAS_CUMPROD[t]) / ALPHAS_CUMPROD[t])
        x_in, cond = network.network_input(X0 + sigma * EPS, sigma)
        assert (int(cond), cond.dtype, cond.shape) == (t, np.int64, ())
        expected = math.sqrt(ALPHAS_CUMPROD[t]) * X0 + math.sqrt(1 - ALPHAS_CUMPROD[t]) * EPS
        np.testing.assert_allclose(x_in, expected, rtol=1e-12, atol=1e-14)


def test_timestep_between_two_levels():
    low, high = np.sqrt((1 - ALPHAS_CUMPROD) / ALPHAS_CUMPROD)[[40, 41]]
    sigma = low**0.7 * high**0.3
    nearest = Parameterisation(prediction="v", conditioning="timestep", alphas_cumprod=ALPHAS_CUMPROD)
    between = Parameterisation(
        prediction="v", conditioning="timestep", alphas_cumprod=ALPHAS_CUMPROD, integer_timestep=False
    )
    x = X0.astype(np.float32)
    assert nearest.network_input(x, sigma)[1] == 40
    assert between.network_input(x, sigma)[1] == pytest.approx(40.3, rel=1e-5)
    assert between.network_input(x, sigma)[1].dtype == np.float32
    # A frame cleaner than the first timestep is still the first; one noisier than the last has none.
    assert nearest.timestep(0.0) == nearest.timestep(1e-5) == 0
    with pytest.raises(PlanError, match="above the schedule's last"):
        nearest.network_input(x, 200.0)


def test_gamma_conditioning_is_alpha_bar():
    network = Parameterisation(prediction="eps", conditioning="gamma")
    x_in, gamma = network.network_input(X0, 0.5)
    assert gamma == pytest.approx(1 / 1.25)
    np.testing.assert_allclose(x_in, X0 * math.sqrt(0.8), rtol=1e-14)


def test_sigma_map_conditioning_without_scaling():
    network = Parameterisation(prediction="x0", conditioning="sigma_map")
    x_in, cond = network.network_input(X0, SIGMA_MAP[0])
    np.testing.assert_array_equal(x_in, X0)
    np.testing.assert_array_equal(cond, np.broadcast_to(SIGMA_MAP[0], X0.shape))


@pytest.mark.parametrize("conditioning", ["timestep", "gamma"])
def test_one_level_networks_take_constant_maps_only(conditioning):
    network = Parameterisation(prediction="eps", conditioning=conditioning, alphas_cumprod=ALPHAS_CUMPROD)
    constant = network.network_input(X0, np.full(X0.shape, 0.5))
    single = network.network_input(X0, 0.5)
    np.testing.assert_array_equal(constant[0], single[0])
    assert constant[1] == single[1]
    with pytest.raises(PlanError, match="one level per image"):
        network.network_input(X0, SIGMA_MAP)


@pytest.mark.parametrize(
    ("kind", "conditioning", "scaling"),
    [
        ("edm_f", "sigma_map", "edm"),
        ("edm_f", "gamma", "edm"),
        ("v", "sigma_map", "vp"),
        ("eps", "gamma", "vp"),
        ("x0", "gamma", "vp"),
        ("eps", "sigma_map", "none"),
        ("score", "sigma_map", "none"),
    ],
)
def test_input_scaling_follows_unless_said(kind, conditioning, scaling):
    assert Parameterisation(prediction=kind, conditioning=conditioning, sigma_data=0.5).scaling == scaling
    said = Parameterisation(prediction=kind, conditioning=conditioning, sigma_data=0.5, input_scaling="none")
    assert said.scaling == "none"


@pytest.mark.parametrize("kind", prediction.PREDICTIONS)
def test_float32_stays_float32(kind):
    x, output = X0.astype(np.float32), EPS.astype(np.float32)
    for sigma in (np.float64(0.3), SIGMA_MAP):
        x0 = prediction.to_x0(kind, output, x, sigma, sigma_data=SIGMA_DATA)
        assert x0.dtype == np.float32
        exact = prediction.to_x0(kind, EPS, X0, sigma, sigma_data=SIGMA_DATA)
        np.testing.assert_allclose(x0, exact, rtol=1e-5, atol=1e-5)
        assert prediction.from_x0(kind, output, x, sigma, sigma_data=SIGMA_DATA).dtype == np.float32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prediction": "epsilon"}, "'epsilon'; choose one of eps, x0, v, edm_f, score"),
        ({"conditioning": "time"}, "'time'; choose one of sigma_map, timestep, gamma"),
        ({"input_scaling": "VP"}, "'VP'; choose one of edm, vp, none"),
        ({"prediction": "edm_f"}, "sigma_data is None"),
        ({"prediction": "edm_f", "sigma_data": -1.0}, "sigma_data is -1.0"),
        ({"input_scaling": "edm"}, "sigma_data is None"),
        ({"sigma_min": 0.0}, "sigma_min is 0.0"),
        ({"conditioning": "timestep"}, "needs alphas_cumprod"),
        ({"alphas_cumprod": [0.5]}, "at least 2"),
        ({"alphas_cumprod": [0.9, 0.0]}, "zero terminal SNR"),
        ({"alphas_cumprod": [0.9, math.nan]}, "inside"),
        ({"alphas_cumprod": [0.5, 0.9]}, "does not descend"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(PlanError, match=message):
        Parameterisation(**{"prediction": "eps", "conditioning": "sigma_map", **settings})


def test_is_frozen_and_hashable():
    network = Parameterisation(prediction="eps", conditioning="timestep", alphas_cumprod=ALPHAS_CUMPROD)
    network.network_input(X0, 0.5)
    same = Parameterisation(prediction="eps", conditioning="timestep", alphas_cumprod=list(ALPHAS_CUMPROD))
    assert network == same
    assert hash(network) == hash(same)
    with pytest.raises(AttributeError):
        network.sigma_data = 1.0


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: prediction.to_x0("nope", EPS, X0, 0.1), PlanError),
        (lambda: prediction.from_x0("nope", EPS, X0, 0.1), PlanError),
        (lambda: prediction.to_x0("edm_f", EPS, X0, 0.1), PlanError),
        (lambda: prediction.to_x0("eps", EPS, X0, -0.1), PlanError),
        (lambda: prediction.from_x0("eps", EPS, X0, 0.0), PlanError),
        (lambda: prediction.to_x0("eps", EPS[:-1], X0, 0.1), ShapeError),
        (lambda: prediction.to_x0("eps", EPS.astype(np.float32), X0, 0.1), ShapeError),
        (lambda: prediction.to_x0("eps", EPS, X0, SIGMA_MAP.T), ShapeError),
        (lambda: Parameterisation(prediction="x0", conditioning="sigma_map").timestep(0.1), PlanError),
    ],
)
def test_arguments_that_do_not_fit(call, error):
    with pytest.raises(error, match=r"expected|choose|needs|no alphas_cumprod"):
        call()
