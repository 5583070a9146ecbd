"""Networks made elsewhere, sampled by their own framework's loop and by photonstep: the same pixels in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from foreign_networks import (
    Told,
    WithCondition,
    diffusers_unet,
    i2sb_loop,
    resshift_loop,
    seeded,
    sr3_loop,
)

from photonstep.export.wrap import i2sb, resshift
from photonstep.runtime import samplers, schedule
from photonstep.runtime.prediction import Parameterisation

SHAPE = (12, 16)
TOLERANCE = 1e-5  # of the largest pixel; found: 3e-10 for DDPM at most, 1e-13 elsewhere
NOISE = samplers.seeded_noise(5, SHAPE, np.float64)
FRAME = np.clip(np.random.default_rng(3).normal(size=SHAPE), -1, 1)


def tensor(image):
    return torch.from_numpy(np.asarray(image, np.float64))[None, None]


def torch_noises(indices):
    """The noise that photonstep's rows add, in the order of a loop."""
    return (tensor(NOISE(index)) for index in indices)


def denoiser(speaks, evaluate):
    """A float64 module as photonstep's denoise callable."""

    def denoise(x, sigma):
        image, level = speaks.network_input(x, sigma)
        with torch.no_grad():
            output = evaluate(tensor(image), torch.from_numpy(np.asarray(level)).reshape(1))
        return speaks.x0(output.numpy()[0, 0], x, sigma)

    return denoise


def assert_alike(ours, theirs):
    theirs = theirs.detach().numpy()[0, 0]
    assert theirs.dtype == np.float64
    assert np.isfinite(theirs).all()
    assert np.abs(theirs).max() > 0.1
    assert np.abs(ours - theirs).max() <= TOLERANCE * np.abs(theirs).max()


def assert_not_saturated(clipped):
    """Where everything were clipped, any loop would agree."""
    assert (clipped.abs() < 0.999).double().mean() > 0.2


# --- diffusers ---


def exact(scheduler):
    """Its tables in float64, as if it had been made so: float32 tables would hide what is compared."""
    for name in ("betas", "alphas", "alphas_cumprod", "final_alpha_cumprod"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, getattr(scheduler, name).double())
    return scheduler


def unet():
    return diffusers_unet().double()


def vp(scheduler, prediction, **settings):
    return Parameterisation(
        prediction=prediction, conditioning="timestep", alphas_cumprod=scheduler.alphas_cumprod.tolist(), **settings
    )


PREDICTION_TYPES = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}


@pytest.mark.parametrize("prediction", PREDICTION_TYPES)
@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim(prediction, betas, eta):
    from diffusers import DDIMScheduler

    scheduler = exact(
        DDIMScheduler(
            beta_schedule=betas, prediction_type=PREDICTION_TYPES[prediction], clip_sample=False,
            timestep_spacing="trailing",
        )
    )  # fmt: skip
    scheduler.set_timesteps(8)  # divides 1000: otherwise diffusers steps to other timesteps than it visits
    network = unet()
    x_t = tensor(NOISE(99))
    for index, t in enumerate(scheduler.timesteps):
        with torch.no_grad():
            output = network(x_t, t).sample
        drawn = tensor(NOISE(index)) if eta else None
        x_t = scheduler.step(output, t, x_t, eta=eta, variance_noise=drawn).prev_sample

    timesteps = schedule.trailing(8, 1000)
    assert list(timesteps) == scheduler.timesteps.tolist()
    levels = schedule.from_alphas_cumprod(scheduler.alphas_cumprod, timesteps)
    start = NOISE(99) * (1 + levels[0] ** 2) ** 0.5
    denoise = denoiser(vp(scheduler, prediction), lambda image, level: network(image, level).sample)
    assert_alike(samplers.sample(start, samplers.ddim(levels, eta=eta), denoise, noise=NOISE), x_t)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("steps", [5, 40])
def test_ddpm(steps, clip, monkeypatch):
    from diffusers import DDPMScheduler
    from diffusers.schedulers import scheduling_ddpm

    scheduler = exact(DDPMScheduler(num_train_timesteps=40, clip_sample=clip, timestep_spacing="trailing"))
    scheduler.set_timesteps(steps)
    network, x_t, drawn = unet(), tensor(NOISE(99)), torch_noises(range(steps))
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *args, **kwargs: next(drawn))
    for t in scheduler.timesteps:
        with torch.no_grad():
            x_t = scheduler.step(network(x_t, t).sample, t, x_t).prev_sample

    levels = schedule.from_alphas_cumprod(scheduler.alphas_cumprod, schedule.trailing(steps, 40))
    speaks = vp(scheduler, "eps", clip_x0=(-1.0, 1.0) if clip else None)
    denoise = denoiser(speaks, lambda image, level: network(image, level).sample)
    start = NOISE(99) * (1 + levels[0] ** 2) ** 0.5
    assert_alike(samplers.sample(start, samplers.ddpm(levels), denoise, noise=NOISE), x_t)
    if clip:
        assert_not_saturated(x_t)


def test_ddim_that_clips_uses_the_clipped_image():
    from diffusers import DDIMScheduler

    scheduler = exact(DDIMScheduler(clip_sample=True, timestep_spacing="trailing"))
    scheduler.set_timesteps(5)
    network, x_t = unet(), tensor(NOISE(99))
    for t in scheduler.timesteps[:-1]:  # after the last one most pixels are clipped, and any loop would agree
        with torch.no_grad():
            x_t = scheduler.step(network(x_t, t).sample, t, x_t, use_clipped_model_output=True).prev_sample
    levels = schedule.from_alphas_cumprod(scheduler.alphas_cumprod, schedule.trailing(5, 1000))
    denoise = denoiser(vp(scheduler, "eps", clip_x0=(-1.0, 1.0)), lambda image, level: network(image, level).sample)
    start = NOISE(99) * (1 + levels[0] ** 2) ** 0.5
    x = samplers.sample(start, samplers.ddim(levels)[:-1], denoise)
    assert_alike(x / (1 + levels[-2] ** 2) ** 0.5, x_t)
    assert len(np.unique(x_t.numpy())) == x_t.numel()


def test_a_timestep_in_between():
    """A float timestep, at a level that no timestep has: from the frame's own level, in one step."""
    from diffusers import DDIMScheduler

    scheduler = exact(DDIMScheduler(clip_sample=False))
    network, log_sigmas = unet(), 0.5 * torch.log(1 / scheduler.alphas_cumprod - 1)
    between = 0.3 * log_sigmas[200] + 0.7 * log_sigmas[201]
    sigma = float(between.exp())
    alpha_bar = 1 / (1 + sigma**2)
    x_t = tensor(FRAME) * alpha_bar**0.5
    with torch.no_grad():
        eps = network(x_t, torch.tensor(200.7, dtype=torch.float64)).sample
    x0 = (x_t - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5
    denoise = denoiser(vp(scheduler, "eps", integer_timestep=False), lambda image, level: network(image, level).sample)
    assert_alike(samplers.sample(FRAME, samplers.ddim((1.0, 0.0)), denoise, sigma_map=sigma), x0)


# --- a conditional model ---


@pytest.mark.parametrize("root", [False, True])
@pytest.mark.parametrize("clip", [None, (-1.0, 1.0)])
def test_sr3(root, clip):
    network = seeded(Told(2)).double()
    alphas_cumprod = np.cumprod(1 - np.linspace(1e-4, 0.2, 30))
    drawn = torch_noises(range(29))
    theirs = sr3_loop(network, tensor(FRAME), alphas_cumprod, tensor(NOISE(99)), drawn, root=root, clip=clip)

    speaks = Parameterisation(
        prediction="eps", conditioning="gamma", alphas_cumprod=alphas_cumprod.tolist(), clip_x0=clip
    )
    levels = schedule.from_alphas_cumprod(alphas_cumprod, schedule.trailing(30, 30))
    denoise = denoiser(
        speaks, lambda image, gamma: network(torch.cat([tensor(FRAME), image], 1), gamma**0.5 if root else gamma)
    )
    start = NOISE(99) * (1 + levels[0] ** 2) ** 0.5
    assert_alike(samplers.sample(start, samplers.ddpm(levels), denoise, noise=NOISE), theirs)
    if clip:
        assert_not_saturated(theirs)


# --- bridges ---


def symmetric_betas(count=60, last=0.02):
    half = np.linspace(1e-2, last**0.5, count // 2) ** 2
    return np.concatenate([half, half[::-1]])


@pytest.mark.parametrize("ode", [True, False])
@pytest.mark.parametrize("steps", [1, 4, 59])
def test_i2sb(steps, ode):
    betas, network = symmetric_betas(), seeded(Told(1, scale=0.05)).double()
    told = np.linspace(1e-4, 1, len(betas)) * len(betas)
    theirs = i2sb_loop(network, tensor(FRAME), betas, told, steps, torch_noises(range(steps)), ode=ode)

    bridge = i2sb(betas, timesteps=told)
    speaks = Parameterisation(prediction="eps", conditioning="timestep", sigmas=bridge.sigmas)
    levels = [bridge.sigmas[t] for t in schedule.first_to_last(steps, len(betas))]
    rows = samplers.table("ot_ode" if ode else "ddpm", levels)
    rows = (*rows[:-1], replace(rows[-1], n=0.0))
    denoise = denoiser(speaks, lambda image, index: network(image, torch.from_numpy(told)[index].to(torch.float64)))
    assert_alike(samplers.sample(FRAME, rows, denoise, noise=NOISE), theirs)


def test_resshift():
    etas = np.linspace(0.02, 0.999**0.5, 15) ** 2
    network = seeded(WithCondition()).double()
    drawn = torch_noises([99, *range(14)])
    theirs = resshift_loop(network, tensor(FRAME), etas.tolist(), 2.0, drawn)

    bridge = resshift(etas, 2.0)
    speaks = Parameterisation(prediction="x0", conditioning="timestep", sigmas=bridge.sigmas)
    levels = [*(bridge.sigmas[t] for t in schedule.trailing(15, 15)), 0.0]
    denoise = denoiser(speaks, lambda image, index: network(image, index, lq=tensor(FRAME)))
    start = FRAME + levels[0] * NOISE(99)
    assert_alike(samplers.sample(start, samplers.ddpm(levels), denoise, noise=NOISE), theirs)
