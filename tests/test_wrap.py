"""Torch modules made elsewhere become bundles; the runtime restores with them what their own loop in torch would."""

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_networks import Told, WithCondition, diffusers_unet, i2sb_loop, resshift_loop, seeded, sr3_loop
from torch import nn

import photonstep as ps
from photonstep import BundleError, PlanError
from photonstep.export.foreign_module import Calling, adapt, examine, image_of
from photonstep.export.wrap import About, Bridge, Details, i2sb, resshift, wrap
from photonstep.runtime import samplers, start
from photonstep.runtime.errors import TrainingError
from photonstep.runtime.manifest import MAX_SIDE_PX
from photonstep.runtime.normalise import RangeTracker
from photonstep.runtime.photon_balance import photon_balance

ROOT = Path(__file__).resolve().parents[1]
CAMERA = ps.Camera(offset_adu=100, gain_e_per_adu=0.5, readout_noise_e=1.6)
SEED = 7
ALPHAS = np.cumprod(1 - np.linspace(1e-3, 0.2, 20))
TOLERANCE = 1e-4  # float32 of the largest pixel, over tens of evaluations


@pytest.fixture
def frame(lysosome):
    """Sides that do not fit any grid, so that padding matters."""
    crop = lysosome[20:53, 30:67]
    light_e = 5 + 60 * (crop - crop.min()) / np.ptp(crop)
    counts = np.random.default_rng(0).poisson(light_e) / 0.5 + 100
    return counts.round().astype(np.uint16)


def restored_by_torch(bundle, frame, loop):
    """The runtime's way with ``loop(u, sigma)`` in torch in place of its sampler: photoelectrons."""
    z = CAMERA.stabilise(frame)
    model_range = RangeTracker(bundle.manifest.normalisation).update(z)
    u = model_range.to_model(z)
    multiple = bundle.manifest.model.multiple
    padded = np.pad(u, [(0, -n % multiple) for n in u.shape], mode="symmetric")
    with torch.no_grad():
        x0 = loop(torch.from_numpy(padded)[None, None], model_range.sigma).numpy()[0, 0]
    electrons = CAMERA.unstabilise(model_range.from_model(x0[: u.shape[0], : u.shape[1]]))
    return photon_balance(frame, electrons, CAMERA).apply(electrons)


def noise_of(frame, shape, indices):
    drawn = samplers.FrameNoise.of(frame, shape, SEED)
    return (torch.from_numpy(drawn(index))[None, None] for index in indices)


def assert_restores_alike(wrapped, frame, loop, **plan):
    restorer = ps.load(wrapped.bundle.path, precision="fp32", threads=1)
    result = restorer.restore(frame, camera=CAMERA, output="photoelectrons", seed=SEED, **plan)
    restorer.close()
    wanted = restored_by_torch(wrapped.bundle, frame, loop)
    assert np.ptp(wanted) > 1
    assert np.abs(result.image - wanted).max() <= TOLERANCE * wanted.max()
    return result


# --- the three kinds, restored ---


@pytest.mark.parametrize(
    ("prediction", "said", "data_range", "integer"),
    [("eps", "epsilon", (-1.0, 1.0), True), ("v", "v_prediction", (0.0, 1.0), False)],
)
def test_a_diffusers_unet_denoises_from_the_frames_own_level(tmp_path, frame, prediction, said, data_range, integer):
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(beta_schedule="scaled_linear", prediction_type=said, clip_sample=False)
    unet = diffusers_unet()
    wrapped = wrap(
        unet, schedule=scheduler, prediction=prediction, conditioning="timestep", data_range=data_range,
        details=Details(integer_timestep=integer), output=tmp_path / "unet.photonstep",
    )  # fmt: skip
    model = wrapped.bundle.manifest.model
    assert (model.multiple, model.receptive_radius_px, model.start) == (2, MAX_SIDE_PX, "measured")
    assert model.parameters == sum(p.numel() for p in unet.parameters())
    assert (wrapped.bundle.manifest.normalisation.low_u, wrapped.bundle.manifest.normalisation.high_u) == data_range

    def loop(u, sigma):  # DDIM from the measured level in two steps, in the scheduler's own variables
        alphas_cumprod = scheduler.alphas_cumprod.double().numpy()
        log_sigmas = 0.5 * np.log(1 / alphas_cumprod - 1)
        levels = [sigma, sigma * 0.5**1.5, 0.0]
        x_t = u / (1 + sigma**2) ** 0.5
        for now, then in pairwise(levels):
            a, a_then = 1 / (1 + now**2), 1 / (1 + then**2)
            t = np.interp(np.log(now), log_sigmas, np.arange(1000))
            t = torch.tensor(round(t)) if integer else torch.tensor(t, dtype=torch.float32)
            output = unet(x_t, t).sample
            if prediction == "eps":
                x0, eps = (x_t - (1 - a) ** 0.5 * output) / a**0.5, output
            else:
                x0, eps = a**0.5 * x_t - (1 - a) ** 0.5 * output, a**0.5 * output + (1 - a) ** 0.5 * x_t
            x_t = a_then**0.5 * x0 + (1 - a_then) ** 0.5 * eps
        return x_t

    result = assert_restores_alike(wrapped, frame, loop, steps=2)
    assert result.plan["sampler"] == "ddim"


def test_a_network_of_one_level_per_image_refuses_fusion_at_once(tmp_path, frame):
    """Not when something moves: until then the noise of fused frames is one number too."""
    wrapped = wrap(seeded(Told(1)), schedule=ALPHAS, prediction="eps", output=tmp_path / "w.photonstep")
    with (
        ps.load(wrapped.bundle.path, precision="fp32", threads=1) as restorer,
        ps.load("live", precision="fp32", threads=1) as live,
    ):
        with pytest.raises(PlanError, match="leave fusion"):
            restorer.restore(frame, camera=CAMERA, fusion=restorer.fusion())
        with pytest.raises(PlanError, match="leave fusion"):
            restorer.stream(camera=CAMERA, temporal=True)
        with pytest.raises(PlanError, match="leave fusion"):
            live.stream(camera=CAMERA, temporal=True, fallback=restorer)
        with restorer.stream(camera=CAMERA) as stream, pytest.raises(PlanError, match="leave fusion"):
            stream.update(temporal=True)


def test_a_stream_refuses_more_steps_than_the_schedule_has_at_once(tmp_path):
    wrapped = wrap(
        seeded(Told(2)), schedule=ALPHAS, prediction="eps", start="noise", measurement="first",
        output=tmp_path / "w.photonstep",
    )  # fmt: skip
    with ps.load(wrapped.bundle.path, precision="fp32", threads=1) as restorer, pytest.raises(PlanError, match="21"):
        restorer.stream(camera=CAMERA, steps=21)


def test_an_sr3_network_starts_at_noise_and_looks_at_the_frame(tmp_path, frame):
    network = seeded(Told(2))
    wrapped = wrap(
        network, schedule=ALPHAS, prediction="eps", conditioning="sqrt_gamma", start="noise", measurement="first",
        details=Details(clip_x0=(-1.0, 1.0), sampler="ddpm"), output=tmp_path / "sr3.photonstep",
    )  # fmt: skip
    manifest = wrapped.bundle.manifest
    assert manifest.model.input_names == ("image", "level", "measurement")
    assert (manifest.defaults.steps, manifest.defaults.max_steps) == (20, 20)
    assert any("seeded draw" in note for note in wrapped.notes)

    def loop(u, sigma):
        (first,) = noise_of(frame, u.shape[2:], [start.START_NOISE])
        return sr3_loop(network, u, ALPHAS, first, noise_of(frame, u.shape[2:], range(19)), clip=(-1.0, 1.0))

    assert_restores_alike(wrapped, frame, loop)
    restorer = ps.load(wrapped.bundle, precision="fp32", threads=1)
    once, again, other = (restorer.restore(frame, camera=CAMERA, seed=seed).image for seed in (1, 1, 2))
    np.testing.assert_array_equal(once, again)
    assert (once != other).mean() > 0.5
    with pytest.raises(PlanError, match="room for at most 20"):
        restorer.restore(frame, camera=CAMERA, steps=21)
    restorer.close()
    other_backend = ps.load(wrapped.bundle, backend="onnxruntime", precision="fp32", threads=1)
    apart = np.abs(other_backend.restore(frame, camera=CAMERA, seed=1).image.astype(int) - once)
    assert apart.max() <= 1


def test_a_network_that_starts_at_noise_is_the_same_in_tiles(tmp_path, confocal):
    wrapped = wrap(
        seeded(Told(2)), schedule=ALPHAS, conditioning="gamma", start="noise", measurement="last",
        details=Details(steps=3), output=tmp_path / "sr3.photonstep",
    )  # fmt: skip
    assert wrapped.findings.receptive_radius_px < 16
    restorer = ps.load(wrapped.bundle, precision="fp32", threads=1)
    whole, tiled = (
        restorer.restore(confocal.raw, camera=CAMERA, output="photoelectrons", tile_px=px).image for px in (None, 96)
    )
    np.testing.assert_allclose(tiled, whole, atol=1e-4 * whole.max())


@pytest.mark.parametrize("sampler", ["ot_ode", "ddpm"])
def test_an_i2sb_bridge_starts_at_the_frame(tmp_path, frame, sampler):
    half = np.linspace(0.03, 0.15, 20) ** 2
    betas, network = np.concatenate([half, half[::-1]]), seeded(Told(1, scale=0.05))
    told = np.linspace(1e-4, 1, 40) * 40
    wrapped = wrap(
        network, schedule=i2sb(betas, timesteps=told), prediction="eps", output=tmp_path / "i2sb.photonstep",
        details=Details(sampler=sampler, steps=6),
    )  # fmt: skip
    assert wrapped.bundle.manifest.model.start == "degraded"
    assert wrapped.bundle.manifest.defaults.max_steps == 6  # nobody validated more

    def loop(u, sigma):
        return i2sb_loop(network, u, betas, told, 6, noise_of(frame, u.shape[2:], range(6)), ode=sampler == "ot_ode")

    assert_restores_alike(wrapped, frame, loop)


def test_a_resshift_bridge_starts_at_the_frame_with_noise(tmp_path, frame):
    etas, network = np.linspace(0.02, 0.999**0.5, 15) ** 2, seeded(WithCondition())
    wrapped = wrap(
        network, schedule=resshift(etas, 0.5), prediction="x0", measurement="apart", output=tmp_path / "r.photonstep",
        call=lambda net, image, timestep, frame: net(image, timestep, lq=frame),
    )  # fmt: skip
    assert (wrapped.bundle.manifest.defaults.steps, wrapped.bundle.manifest.defaults.sampler) == (15, "ddpm")

    def loop(u, sigma):
        noises = noise_of(frame, u.shape[2:], [start.START_NOISE, *range(14)])
        return resshift_loop(network, u, etas.tolist(), 0.5, noises)

    assert_restores_alike(wrapped, frame, loop)


@pytest.mark.parametrize("told", ["sigma", "sigma_map"])
@pytest.mark.parametrize("begin", ["measured", "noise"])
def test_an_edm_network_needs_no_schedule(tmp_path, frame, told, begin):
    network = seeded(Told(1) if told == "sigma" else Planes())
    wrapped = wrap(
        network, prediction="edm_f", conditioning=told, start=begin, output=tmp_path / "edm.photonstep",
        details=Details(sigma_data=0.5, sigma_range=(0.01, 10.0), steps=2),
    )  # fmt: skip

    def loop(u, sigma):
        levels = (sigma, sigma * 0.5**1.5, 0.0)
        x = u
        if begin == "noise":
            levels = (10.0, 0.01, 0.0)
            x = 10.0 * next(noise_of(frame, u.shape[2:], [start.START_NOISE]))
        for now, then in pairwise(levels):
            spread = (now**2 + 0.25) ** 0.5
            level = torch.full((1,) if told == "sigma" else u.shape, float(np.log(now) / 4))
            x0 = 0.25 / spread**2 * x + 0.5 * now / spread * image_of(network(x / spread, level))
            x = x0 + then / now * (x - x0)
        return x

    assert_restores_alike(wrapped, frame, loop)


class Planes(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, image, level_map):
        return (self.net(torch.cat([image, level_map], 1)),)


# --- what is found out about a module ---


def findings_of(network, **settings):
    return examine(adapt(network, Calling(told="timestep", **settings), takes_measurement=False), None, None)


class Alone(nn.Module):
    """An image network that does not care about the level."""

    def __init__(self, *parts):
        super().__init__()
        self.parts = nn.Sequential(*parts)

    def forward(self, image, level):
        return self.parts(image)


def conv(size=3, **settings):
    return nn.Conv2d(1, 1, size, padding=settings.pop("padding", size // 2), **settings)


def test_the_receptive_radius_is_measured():
    assert findings_of(Alone(conv())).receptive_radius_px == 1
    assert findings_of(Alone(conv(5), nn.ReLU(), conv(3))).receptive_radius_px == 3
    dead = Alone(conv(9), nn.ReLU(), conv())
    nn.init.zeros_(dead.parts[0].weight)  # the structure counts, not today's weights
    assert findings_of(dead).receptive_radius_px == 5
    wide = Alone(conv(3, dilation=60, padding=60))
    assert findings_of(wide).receptive_radius_px == 60
    coarse = findings_of(Alone(nn.Conv2d(1, 4, 4, stride=4), conv4(), nn.ConvTranspose2d(4, 1, 4, stride=4)))
    assert coarse.multiple == 4
    assert coarse.receptive_radius_px == 7  # from the near edge of a cell to the far edge of its neighbour


def conv4():
    return nn.Conv2d(4, 4, 3, padding=1)


def test_what_sees_the_whole_frame_is_said_to():
    normalised = Alone(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Conv2d(4, 1, 3, padding=1))
    assert findings_of(normalised).receptive_radius_px == MAX_SIDE_PX
    assert findings_of(Alone(*[conv(3, dilation=90, padding=90)] * 2)).receptive_radius_px == MAX_SIDE_PX

    class Mean(Alone):
        def forward(self, image, level):
            return self.parts(image) - image.mean()

    assert findings_of(Mean(conv())).receptive_radius_px == MAX_SIDE_PX


def test_tiles_are_refused_where_a_pixel_sees_the_whole_frame(tmp_path, confocal):
    network = Alone(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Conv2d(4, 1, 3, padding=1))
    wrapped = wrap(network, schedule=ALPHAS, output=tmp_path / "whole.photonstep")
    assert any("tiles are refused" in note for note in wrapped.notes)
    assert "tiles are refused" in wrapped.bundle.read("model_card.md").decode()
    restorer = ps.load(wrapped.bundle, precision="fp32", threads=1)
    with pytest.raises(PlanError, match="sees the whole frame"):
        restorer.restore(confocal.raw, camera=CAMERA, tile_px=64)
    whole = restorer.restore(confocal.raw, camera=CAMERA)
    np.testing.assert_array_equal(restorer.restore(confocal.raw, camera=CAMERA, tile_px=256).image, whole.image)


def test_the_cost_is_counted():
    found = findings_of(Alone(nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 1, 3, padding=1)))
    assert found.parameters == 2 * 144 + 17
    assert found.kmac_per_px == pytest.approx(0.288)


def test_the_module_is_left_as_it_was(tmp_path):
    network = Alone(conv(), nn.Dropout(0.5)).double().train()
    before = network.parts[0].weight.clone()
    wrapped = wrap(network, schedule=ALPHAS, output=tmp_path / "a.photonstep")
    assert network.training
    assert network.parts[0].weight.dtype == torch.float64
    assert torch.equal(network.parts[0].weight, before)
    assert network.parts[0].weight.requires_grad
    assert wrapped.difference < 1e-5


def test_half_precision_and_dictionaries_are_taken(tmp_path):
    class Spoken(Alone):
        def forward(self, image, level):
            return {"sample": self.parts(image)}

    assert wrap(Spoken(conv()).half(), schedule=ALPHAS, output=tmp_path / "a.photonstep").difference < 1e-5


def test_the_bundle_says_who_made_it(tmp_path):
    about = About(
        name="theirs", version="2.1.0", licence="Apache-2.0", authors=("A. Author",), provenance="trained elsewhere",
        training_data=(("cells", "CC0-1.0", "https://example.org/cells"),),
    )  # fmt: skip
    manifest = wrap(Alone(conv()), schedule=ALPHAS, about=about, output=tmp_path / "a.photonstep").bundle.manifest
    assert (manifest.name, manifest.version, manifest.licence) == ("theirs", "2.1.0", "Apache-2.0")
    assert manifest.training_data[0].licence == "CC0-1.0"
    assert [p.name for p in tmp_path.iterdir()] == ["a.photonstep"]
    with pytest.raises(BundleError, match="exists"):
        wrap(Alone(conv()), schedule=ALPHAS, output=tmp_path / "a.photonstep")


# --- what is refused ---


class Branching(Alone):
    def forward(self, image, level):
        return self.parts(image) if image.mean() > 0 else image


class Counting(Alone):
    def forward(self, image, level):
        return self.parts(image) * float(level.item() > 5)


class Sized(Alone):
    """A position table of one size."""

    def __init__(self, *parts):
        super().__init__(*parts)
        self.table = nn.Parameter(torch.zeros(1, 1, 48, 48))

    def forward(self, image, level):
        return self.parts(image) + self.table


class Random(Alone):
    def forward(self, image, level):
        return self.parts(image) + torch.rand_like(image)


class Words(Alone):
    def forward(self, image, level):
        return "image"


def not_finite():
    network = Alone(conv())
    nn.init.constant_(network.parts[0].weight, torch.nan)
    return network


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (lambda: torch.relu, "is a builtin_function_or_method; expected a torch.nn.Module"),
        (not_finite, r"weight 'parts.0.weight' holds NaN"),
        (lambda: Branching(conv()), "cannot become one graph.*torch.where"),
        (lambda: Counting(conv()), "cannot become one graph"),
        (lambda: Sized(conv()), "takes no image"),
        (lambda: Random(conv()), "another output each time"),
        (lambda: Words(conv()), "returns a str; expected a tensor"),
        (lambda: Alone(nn.Conv2d(1, 2, 3, padding=1)), r"returns \(1, 2, .*one channel"),
        (lambda: Alone(nn.Conv2d(3, 3, 3, padding=1)), "takes no image .*3 channels"),
        (lambda: Alone(nn.Conv2d(1, 1, 3)), "expected .* one channel of the same size"),
        (lambda: conv(), "takes no image"),  # takes no level
    ],
)
def test_modules_that_cannot_be_a_bundle(tmp_path, module, message):
    with pytest.raises(TrainingError, match=message):
        wrap(module(), schedule=ALPHAS, output=tmp_path / "a.photonstep")
    assert list(tmp_path.iterdir()) == []


def test_a_branch_that_the_export_froze_is_noticed(tmp_path):
    """A Python number made of the level once, at export: only running the graph shows it."""

    class Frozen(Alone):
        def forward(self, image, level):
            with torch.no_grad():
                share = float(np.asarray(level.detach()).ravel()[0]) if not torch.compiler.is_exporting() else 1.0
            return self.parts(image) * share

    with pytest.raises(TrainingError, match="differs from the module"):
        wrap(Frozen(conv()), schedule=ALPHAS, output=tmp_path / "a.photonstep")
    assert list(tmp_path.iterdir()) == []


def flow_matching():
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler()


def v_scheduler():
    from diffusers import DDPMScheduler

    return DDPMScheduler(prediction_type="v_prediction")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": None}, "timestep conditioning needs alphas_cumprod or sigmas"),
        ({"schedule": v_scheduler}, "prediction is 'eps', the scheduler was made for 'v'"),
        ({"schedule": flow_matching}, "FlowMatchEulerDiscreteScheduler without alphas_cumprod"),
        ({"schedule": ALPHAS[::-1]}, "does not descend"),
        ({"schedule": [*ALPHAS, 0.0]}, "zero terminal"),
        ({"schedule": "linear"}, "schedule is a str"),
        ({"prediction": "noise"}, "'noise'; choose one of eps"),
        ({"conditioning": "time"}, "'time'; choose one of timestep"),
        ({"prediction": "edm_f"}, "sigma_data is None"),
        ({"start": "frame"}, "start is 'frame'; choose measured or noise"),
        ({"schedule": Bridge(sigmas=(0.1, 0.2)), "start": "noise"}, "leave start out"),
        ({"schedule": Bridge(sigmas=(0.2, 0.1))}, "sigmas does not rise"),
        ({"schedule": Bridge(sigmas=(0.1, 0.2), timesteps=(1.0,))}, "2 sigmas and 1 timesteps"),
        ({"schedule": Bridge(sigmas=(0.1, 0.2)), "conditioning": "gamma"}, "expected timestep conditioning"),
        ({"schedule": None, "conditioning": "gamma", "start": "noise"}, "expected alphas_cumprod"),
        ({"measurement": "apart"}, "without call="),
        ({"data_range": (1.0, -1.0)}, r"expected \(low, high\)"),
        ({"details": Details(sampler="euler")}, "'euler'; choose one of ddim"),
        ({"details": Details(clip_x0=(1.0, 0.0))}, "clip_x0 is"),
    ],
)
def test_conventions_that_contradict_one_another(tmp_path, settings, message):
    settings = {"schedule": ALPHAS, **settings}
    if callable(settings["schedule"]):
        settings["schedule"] = settings["schedule"]()
    with pytest.raises(TrainingError, match=message):
        wrap(Alone(conv()), output=tmp_path / "a.photonstep", **settings)
    assert list(tmp_path.iterdir()) == []


def test_a_scheduler_that_clips_is_told(tmp_path):
    from diffusers import DDIMScheduler

    wrapped = wrap(Alone(conv()), schedule=DDIMScheduler(), output=tmp_path / "a.photonstep")
    assert any("clip_x0=(-1.0, 1.0)" in note for note in wrapped.notes)


# --- the page and the packages ---


def test_the_examples_of_the_page_run(tmp_path):
    page = (ROOT / "docs" / "bring_your_own.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 4
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)], cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_diffusers_is_not_imported_by_wrap():
    code = "import sys; sys.modules['diffusers'] = None; import photonstep.export.wrap"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
