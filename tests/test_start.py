"""Where a walk begins and which levels it visits, for every start that a bundle may name."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from photonstep import PlanError
from photonstep.runtime import samplers, schedule, start
from photonstep.runtime.bundle import Bundle
from photonstep.runtime.denoiser import NetworkInputs, Scene, output_weight
from photonstep.runtime.prediction import Parameterisation

GOLDEN = Bundle.load(Path(__file__).parent / "golden_bundle" / "tiny.photonstep").manifest
SIGMAS = (0.1, 0.2, 0.4, 0.8, 1.6)
ALPHAS = (0.99, 0.9, 0.6, 0.3, 0.1)
FRAME = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
NOISE = samplers.seeded_noise(1, FRAME.shape)


def manifest(**model):
    """The golden manifest with another network; a plain one where nothing else is said."""
    plain = {
        "prediction": "eps", "conditioning": "timestep", "input_scaling": None, "noise_correlation_input": False,
        "alphas_cumprod": ALPHAS, "input_names": ("image", "level"), "clip_x0": None,
    }  # fmt: skip
    spec = GOLDEN.model.model_validate({**GOLDEN.model.model_dump(), **plain, **model})
    return GOLDEN.model_copy(update={"model": spec})


def bridge(begin="degraded", **model):
    return manifest(start=begin, sigmas=SIGMAS, alphas_cumprod=None, **model)


# --- levels ---


def test_the_measured_start_walks_relative_levels():
    assert start.levels(manifest(), 3) == schedule.measured(3)
    assert start.rows(manifest(), "heun", 3) == samplers.table("heun", schedule.measured(3))
    assert start.is_measured(manifest())
    assert not start.is_measured(bridge())


@pytest.mark.parametrize("conditioning", ["timestep", "gamma"])
def test_fused_frames_need_a_network_that_is_told_noise_per_pixel(conditioning):
    start.check_fusable(GOLDEN)
    start.check_fusable(bridge())
    with pytest.raises(PlanError, match=rf"one noise level per image \({conditioning}\).*leave fusion"):
        start.check_fusable(manifest(conditioning=conditioning))


def test_the_noise_start_walks_the_schedule_from_its_top():
    levels = start.levels(manifest(start="noise"), 2)
    assert levels == schedule.from_alphas_cumprod(ALPHAS, (4, 1))  # round(5 - 2.5) - 1 = 1
    assert start.levels(manifest(start="noise"), 5)[:-1] == pytest.approx([(1 / a - 1) ** 0.5 for a in ALPHAS[::-1]])


def test_without_a_schedule_noise_starts_at_the_top_of_the_operating_range():
    spoken = manifest(start="noise", conditioning="sigma_map", prediction="edm_f", alphas_cumprod=None)
    limits = spoken.operating_range
    assert start.levels(spoken, 4) == schedule.karras(4, limits.sigma_max, limits.sigma_min)


def test_a_bridge_ends_at_zero_or_at_its_first_level():
    assert start.levels(bridge(), 5) == (*SIGMAS[::-1], 0.0)
    assert start.levels(bridge(), 1) == (1.6, 0.0)
    assert start.levels(bridge(end="first_level"), 4) == SIGMAS[::-1]
    assert start.levels(bridge(end="first_level"), 2) == (1.6, 0.4, 0.1)
    rows = start.rows(bridge(end="first_level"), "ddpm", 2)
    assert rows[0].n > 0
    assert rows[-1].n == 0
    assert rows[-1].a == pytest.approx(1 / 16)  # the walk does not end at x0


@pytest.mark.parametrize(
    ("spoken", "steps"), [(bridge(), 6), (bridge(end="first_level"), 5), (manifest(start="noise"), 6)]
)
def test_more_steps_than_timesteps_are_refused(spoken, steps):
    with pytest.raises(PlanError, match=f"steps is {steps}; this schedule has room for at most {steps - 1}"):
        start.levels(spoken, steps)


@pytest.mark.parametrize("count", [15, 50, 1000])
def test_timesteps_descend_and_begin_at_the_last(count):
    for steps in (1, 2, 3, 7, count - 1):
        trailing, closed = schedule.trailing(steps, count), schedule.first_to_last(steps, count)
        assert (trailing[0], closed[0], closed[-1]) == (count - 1, count - 1, 0)
        assert (len(trailing), len(closed)) == (steps, steps + 1)
        assert all(a > b for a, b in pairwise(closed))
        assert list(trailing) == (np.round(np.arange(count, 0, -count / steps)) - 1).astype(int).tolist()[:steps]


# --- first states ---


def test_first_states():
    def first(spoken, noise=NOISE):
        return start.first_state(spoken, FRAME, start.rows(spoken, "ddpm", 3), noise)

    drawn = NOISE(start.START_NOISE)
    assert first(manifest(), None) is FRAME
    assert first(bridge(), None) is FRAME
    np.testing.assert_allclose(first(bridge("noisy_degraded")), FRAME + 1.6 * drawn, rtol=1e-6)
    np.testing.assert_allclose(first(manifest(start="noise")) * ALPHAS[-1] ** 0.5, drawn, rtol=1e-6)
    np.testing.assert_allclose(first(manifest(start="noise", input_scaling="none")), 3.0 * drawn, rtol=1e-6)
    assert first(manifest(start="noise")).dtype == np.float32
    with pytest.raises(PlanError, match="no noise was given"):
        first(bridge("noisy_degraded"), None)


def test_what_is_random_is_known():
    for spoken, sampler, random in (
        (manifest(), "ddim", False), (manifest(), "ddpm", True), (bridge(), "ot_ode", False), (bridge(), "ddpm", True),
        (bridge("noisy_degraded"), "ot_ode", True), (manifest(start="noise"), "ddim", True),
    ):  # fmt: skip
        assert start.needs_noise(spoken, start.rows(spoken, sampler, 3)) is random


# --- what the network is fed ---


def test_the_measurement_is_the_last_input():
    spoken = manifest(input_names=("image", "level", "measurement"), measurement_input=True)
    fed = NetworkInputs(spoken)(FRAME, 0.5, Scene(measurement=FRAME + 1))
    assert list(fed) == ["image", "level", "measurement"]
    np.testing.assert_array_equal(fed["measurement"][0, 0], FRAME + 1)
    assert fed["level"].shape == ()
    for wrong in (None, FRAME[:2]):
        with pytest.raises(PlanError, match="looks at the measurement"):
            NetworkInputs(spoken)(FRAME, 0.5, Scene(measurement=wrong))


@pytest.mark.parametrize("scaling", ["edm", "none"])
def test_the_measurement_is_the_last_plane(scaling):
    spoken = manifest(
        input_names=("planes",), measurement_input=True, noise_correlation_input=True, conditioning="sigma_map",
        input_scaling=scaling,
    )  # fmt: skip
    inputs = NetworkInputs(spoken)
    for seen in (FRAME + 1, FRAME + 2):  # the second finds its planes filled
        planes = inputs(FRAME, 0.5, Scene(noise_correlation=(0.25, 0.125), measurement=seen))["planes"]
        assert planes.shape == (1, 5, 4, 6)
        np.testing.assert_array_equal(planes[0, 4], seen)
        assert (planes[0, 2] == 0.25).all()
        assert (planes[0, 3] == 0.125).all()


def test_a_level_plane_among_several_inputs_has_the_images_shape():
    fed = NetworkInputs(manifest(conditioning="sigma_map", alphas_cumprod=None))(FRAME, 0.5, Scene())
    assert fed["level"].shape == fed["image"].shape == (1, 1, 4, 6)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "score", "edm_f"])
def test_the_weight_of_an_output_error_is_what_it_does_to_x0(prediction):
    spoken = manifest(prediction=prediction, sigma_data=0.25)
    network = Parameterisation(
        prediction=prediction, conditioning="timestep", alphas_cumprod=ALPHAS, sigma_data=spoken.model.sigma_data
    )
    x = FRAME.astype(np.float64)
    change = network.x0(x + 1, x, 0.7) - network.x0(x, x, 0.7)
    np.testing.assert_allclose(np.abs(change) / 0.1, output_weight(spoken, 0.7, 0.1), rtol=1e-9)


# --- a bridge's grid, and clipping ---


def test_a_bridge_has_levels_instead_of_alpha_bar():
    network = Parameterisation(prediction="eps", conditioning="timestep", sigmas=SIGMAS, integer_timestep=False)
    assert network.scaling == "none"
    assert network.timestep(0.4) == pytest.approx(2)
    assert network.timestep(0.4 * 2**0.5) == pytest.approx(2.5)
    assert network.timestep(0.01) == 0
    with pytest.raises(PlanError, match="above the schedule's last, 1"):
        network.timestep(1.7)


def test_x0_is_clipped_where_it_is_asked_for():
    network = Parameterisation(prediction="x0", conditioning="sigma_map", clip_x0=(-0.5, 0.25))
    clipped = network.x0(FRAME, FRAME, 0.3)
    np.testing.assert_array_equal(clipped, np.clip(FRAME, -0.5, 0.25))
    assert clipped.dtype == np.float32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sigmas": SIGMAS, "alphas_cumprod": ALPHAS}, "both given"),
        ({"sigmas": SIGMAS, "conditioning": "gamma"}, "expected timestep conditioning"),
        ({"sigmas": (0.1,)}, "sigmas has 1 values"),
        ({"sigmas": (0.0, 1.0)}, "above 0"),
        ({"sigmas": (0.2, 0.2)}, "does not rise"),
        ({"alphas_cumprod": ALPHAS, "clip_x0": (1.0, -1.0)}, "clip_x0 is"),
        ({"alphas_cumprod": ALPHAS, "clip_x0": (-np.inf, 1.0)}, "clip_x0 is"),
    ],
)
def test_conventions_that_cannot_be(settings, message):
    with pytest.raises(PlanError, match=message):
        Parameterisation(**{"prediction": "eps", "conditioning": "timestep", **settings})
