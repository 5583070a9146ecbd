"""Distillation: students approach what the teacher says, in fewer evaluations, and say what that cost."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from photonstep.export import detail, distil
from photonstep.export.consistency import (
    ConsistencyModel,
    ConsistencySettings,
    NoisyBatch,
    distill_consistency,
    heun_step,
    many_steps,
)
from photonstep.export.detail import DetailSettings, distill_detail, heun_walk
from photonstep.export.distil import DistilSettings, Fields, distill, mean_target, photograph, restored, walk_target
from photonstep.models.checkpoint import load_network
from photonstep.models.data import Field, FieldPool
from photonstep.models.network import TIERS, Denoiser, NetworkConfig
from photonstep.models.run_folder import write_weights
from photonstep.models.simulate import simulate_field
from photonstep.models.train import edm_residual
from photonstep.runtime import samplers, schedule
from photonstep.runtime.errors import TrainingError

TINY = NetworkConfig(widths=(16, 16))
SETTINGS = {
    "steps": 60, "batch": 4, "patch_px": 32, "warmup_steps": 5, "ema_decay": 0.8, "validate_every": 60,
    "simulated_fields": 1, "learning_rate": 3e-3, "seed": 1, "precision": "fp32",
}  # fmt: skip

pytestmark = pytest.mark.usefixtures("single_threaded_torch")


@pytest.fixture(scope="module")
def fields():
    rng = np.random.default_rng(0)
    pool = FieldPool({"simulated": [Field.of(simulate_field(rng, 64)) for _ in range(6)]}, {"simulated": 1.0})
    return Fields(pool, pool)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A run folder of a network that says something: smooth planes of its input, small."""
    generator = torch.Generator().manual_seed(0)
    network = Denoiser(TINY)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / max(parameter[0].numel(), 8) ** 0.5)
        network.head.weight *= 0.3
    folder = tmp_path_factory.mktemp("teacher")
    write_weights(network.eval(), folder, 0)
    return folder


@pytest.fixture(autouse=True)
def few_held_out_batches(monkeypatch):
    monkeypatch.setattr(distil, "HELD_OUT_BATCHES", 2)
    monkeypatch.setattr(detail, "HELD_OUT_WALKS", 2)


class Answer(torch.nn.Module):
    """A denoiser that knows the clean frames of one batch: its EDM residual is that of ``x0``, at any state."""

    def __init__(self, x0):
        super().__init__()
        self.config, self.x0 = TINY, x0

    def forward(self, planes):
        sigma = (4 * planes[:, 1:2]).exp()
        total = sigma**2 + TINY.sigma_data**2
        x = planes[:, :1] * total.sqrt()
        return (self.x0 - TINY.sigma_data**2 / total * x) * total.sqrt() / (sigma * TINY.sigma_data)


# --- the mean ---


def test_the_target_of_the_mean_lies_between_teacher_and_truth(fields, teacher):
    network = load_network(teacher)
    settings = DistilSettings(**SETTINGS)
    batch = photograph(fields.train, settings, 3)
    said, truth = (mean_target(network, batch, replace(settings, truth_share=share)) for share in (0.0, 1.0))
    torch.testing.assert_close(truth, edm_residual(batch, TINY.sigma_data))
    torch.testing.assert_close(mean_target(network, batch, settings), (said + truth) / 2)
    assert (said - truth).abs().mean() > 0.1


def test_the_target_is_computed_where_the_batch_is(fields, teacher):
    settings = DistilSettings(**SETTINGS, teacher_steps=2)
    batch = photograph(fields.train, settings, 0)
    elsewhere = replace(
        batch, **{key: getattr(batch, key).to("meta") for key in ("x", "x0", "sigma", "noise_correlation")}
    )
    assert mean_target(load_network(teacher).to("meta"), elsewhere, settings).device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_it_trains_on_a_gpu(fields, teacher, tmp_path):
    gpu = SETTINGS | {"device": "cuda", "steps": 4, "validate_every": 2}
    distill(teacher, tmp_path / "mean", settings=DistilSettings(**gpu), fields=fields)
    distill(teacher, tmp_path / "walk", steps=2, settings=DistilSettings(**gpu), fields=fields)
    distill_detail(teacher, tmp_path / "detail", settings=DetailSettings(**gpu, cached_batches=1), fields=fields)


def test_what_cannot_be_distilled_is_said_first(fields, teacher, tmp_path):
    with pytest.raises(TrainingError, match="made for super_resolution"):
        distill("sr2", tmp_path / "a", settings=DistilSettings(**SETTINGS), fields=fields)
    knob = tmp_path / "knob"
    knob.mkdir()
    write_weights(Denoiser(replace(TINY, planes=5)), knob, 0)
    with pytest.raises(TrainingError, match="detail knob"):
        distill(knob, tmp_path / "b", settings=DistilSettings(**SETTINGS), fields=fields)
    assert not (tmp_path / "a").exists()


def test_a_smaller_student_approaches_its_teacher(fields, teacher, tmp_path, monkeypatch):
    monkeypatch.setitem(TIERS, "tiny", NetworkConfig(widths=(16,)))
    settings = DistilSettings(**SETTINGS, truth_share=0.0, measured_share=1.0)
    result = distill(teacher, tmp_path / "run", tier="tiny", settings=settings, fields=fields, progress=None)
    student, guide = load_network(tmp_path / "run"), load_network(teacher)
    batch = photograph(fields.held_out, settings, 10**6)
    with torch.no_grad():
        near, far = ((distil.residual_of(n, batch) - distil.residual_of(guide, batch)).square().mean()
                     for n in (student, Denoiser(TINY)))  # fmt: skip
    assert near < 0.5 * far
    assert result.student.kmac_per_px < result.teacher.kmac_per_px
    assert result.student.parameters < result.teacher.parameters
    assert "of the cost" in str(result)
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (record["stage"], record["teacher"], record["started_from"]) == ("distill", str(teacher), None)


def test_without_a_tier_the_student_starts_as_its_teacher(fields, teacher, tmp_path):
    settings = DistilSettings(**SETTINGS | {"steps": 0})
    result = distill(teacher, tmp_path / "run", settings=settings, fields=fields, progress=None)
    assert result.student == result.teacher
    assert json.loads((tmp_path / "run" / "config.json").read_text())["started_from"] == str(teacher)


def test_a_distillation_resumes(fields, teacher, tmp_path):
    settings = DistilSettings(**SETTINGS | {"steps": 8, "checkpoint_seconds": 0.0})

    def stop(progress):
        if progress.step == 5:
            raise MemoryError

    whole = distill(teacher, tmp_path / "whole", settings=settings, fields=fields, progress=None)
    with pytest.raises(MemoryError):
        distill(teacher, tmp_path / "broken", settings=settings, fields=fields, progress=stop)
    again = distill(teacher, tmp_path / "broken", settings=settings, fields=fields, progress=None)
    assert again.student.held_out_loss == pytest.approx(whole.student.held_out_loss, abs=1e-6)
    with pytest.raises(TrainingError, match="truth_share"):
        distill(teacher, tmp_path / "broken", settings=replace(settings, truth_share=0.1), fields=fields)


def test_what_was_learnt_from_and_what_it_gave_is_written_down(teacher, tmp_path):
    settings = DistilSettings(**SETTINGS | {"steps": 2, "validate_every": 2})
    result = distill(teacher, tmp_path / "run", settings=settings, progress=None)
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert {"name": "simulated structures", "licence": "MIT", "source": "photonstep.models.simulate"} in (
        record["training_data"]
    )
    told = json.loads((tmp_path / "run" / "distillation.json").read_text())
    assert told["student"]["psnr_db"] == result.student.psnr_db
    assert told["teacher"]["held_out_loss"] == result.teacher.held_out_loss


# --- a few steps ---


@pytest.mark.parametrize("steps", [2, 4])
def test_samples_lie_on_the_levels_that_the_runtime_walks(fields, steps):
    settings = DistilSettings(**SETTINGS, student_steps=steps)
    whole = photograph(fields.train, replace(settings, student_steps=1, measured_share=1.0), 5)
    batch = photograph(fields.train, settings, 5)
    share = (batch.x - batch.x0).flatten(1).norm(dim=1) / (whole.x - whole.x0).flatten(1).norm(dim=1)
    levels = schedule.measured(steps)
    for index, value in enumerate(share.tolist()):
        step = int(np.argmin([abs(value - level) for level in levels]))
        assert value == pytest.approx(levels[step], rel=1e-3)
        assert batch.levels[index, -1].item() == pytest.approx(levels[step + 1] / levels[step], rel=1e-5)
    torch.testing.assert_close(
        batch.sigma / whole.sigma, share[:, None, None, None].expand_as(batch.x), rtol=1e-3, atol=0
    )


@pytest.mark.parametrize("steps", [2, 4])
def test_the_target_lands_a_ddim_step_where_the_finer_walk_arrives(fields, teacher, steps):
    """One item at a time, against the runtime's own sampler."""
    network = load_network(teacher)
    settings = DistilSettings(**SETTINGS, student_steps=steps, substeps=3)
    batch = photograph(fields.train, settings, 2)
    target = walk_target(network, batch, settings)
    total = batch.sigma**2 + TINY.sigma_data**2
    x0 = TINY.sigma_data**2 / total * batch.x + batch.sigma * TINY.sigma_data / total.sqrt() * target
    for item in range(len(batch.x)):
        cut = slice(item, item + 1)

        def denoise(x, factor, cut=cut):
            here = replace(batch, x=torch.from_numpy(x), x0=batch.x0[cut], sigma=batch.sigma[cut] * float(factor),
                           noise_correlation=batch.noise_correlation[cut], levels=batch.levels[cut])  # fmt: skip
            with torch.no_grad():
                return restored(network, here).numpy()

        levels = batch.levels[item].tolist()
        walked = samplers.sample(batch.x[cut].numpy(), samplers.ddim(levels), denoise)
        landed = x0[cut] + levels[-1] * (batch.x[cut] - x0[cut])
        np.testing.assert_allclose(landed.numpy(), walked, atol=2e-5)


def test_a_teacher_that_knows_the_answer_is_its_own_target(fields):
    settings = DistilSettings(**SETTINGS, student_steps=2)
    batch = photograph(fields.train, settings, 2)
    target = walk_target(Answer(batch.x0), batch, settings)
    torch.testing.assert_close(target, edm_residual(batch, TINY.sigma_data), rtol=1e-3, atol=1e-3)


def test_a_student_of_few_steps_trains(fields, teacher, tmp_path):
    settings = DistilSettings(**SETTINGS | {"steps": 4, "validate_every": 4})
    result = distill(teacher, tmp_path / "run", steps=2, settings=settings, fields=fields, progress=None)
    assert np.isfinite(result.student.psnr_db)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["settings"]["student_steps"] == 2


# --- the detail ---


def test_the_heun_walk_is_the_runtimes(fields, teacher):
    network, settings = load_network(teacher), DetailSettings(**SETTINGS)
    batch = photograph(fields.train, replace(settings, measured_share=1.0, batch=1), 4)
    levels = schedule.measured(5)
    with torch.no_grad():
        states = list(heun_walk(network, batch, levels))

        def denoise(x, factor):
            return restored(network, replace(batch, x=torch.from_numpy(x), sigma=batch.sigma * float(factor))).numpy()

        wanted = samplers.sample(batch.x.numpy(), samplers.heun(levels), denoise)
    assert len(states) == 6
    np.testing.assert_allclose(states[-1].numpy(), wanted, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2])
def test_the_walks_end_is_the_target_of_full_detail(fields, teacher, tmp_path, steps):
    network = load_network(teacher)
    settings = DetailSettings(**SETTINGS, student_steps=steps, heun_steps=4, cached_batches=1)
    walks, _ = detail.walked(network, "teacher", fields, settings, tmp_path)
    assert len(walks.image) == steps * settings.batch
    batch = photograph(fields.train, replace(settings, student_steps=1, measured_share=1.0), 0)
    with torch.no_grad():
        end = list(heun_walk(network, batch, schedule.measured(4)))[-1]
    state = batch.x
    for index, (now, then) in enumerate(zip(schedule.measured(steps), schedule.measured(steps)[1:], strict=False)):
        sigma = batch.sigma * now
        total = sigma**2 + TINY.sigma_data**2
        residual = walks.detail[index * settings.batch : (index + 1) * settings.batch].float()
        x0 = TINY.sigma_data**2 / total * state + sigma * TINY.sigma_data / total.sqrt() * residual
        state = x0 + then / now * (state - x0)
    torch.testing.assert_close(state, end, rtol=0, atol=2e-3)  # kept in float16


def test_the_knob_turns_from_the_mean_to_the_detail(fields, teacher, tmp_path):
    settings = DetailSettings(**SETTINGS | {"steps": 400}, heun_steps=4, cached_batches=12, truth_share=0.0)
    result = distill_detail(teacher, tmp_path / "run", settings=settings, fields=fields, progress=None)
    student = load_network(tmp_path / "run")
    assert student.config.planes == 5
    assert result.explained > 0.3
    assert result.evaluations == (7, 1)
    assert "of its energy, in 1 evaluation for 7" in str(result)
    _, held_out = detail.walked(load_network(teacher), teacher, fields, settings, tmp_path / "run" / "detail")
    part = held_out.take(slice(0, 4))
    with torch.no_grad():
        said = {k: student(part.at(k).with_knob()) for k in (0.0, 0.5, 1.0)}
    assert (said[0.0] - part.mean).square().mean() < (said[1.0] - part.mean).square().mean()
    assert (said[1.0] - part.detail).square().mean() < (said[0.0] - part.detail).square().mean()
    between = (said[0.5] - torch.lerp(part.mean, part.detail, 0.5)).square().mean()
    assert between < min((said[k] - torch.lerp(part.mean, part.detail, 0.5)).square().mean() for k in (0.0, 1.0))


def test_walks_on_disk_are_not_walked_again(fields, teacher, tmp_path, monkeypatch):
    settings = DetailSettings(**SETTINGS, heun_steps=2, cached_batches=2)
    network = load_network(teacher)
    first, _ = detail.walked(network, teacher, fields, settings, tmp_path)
    (tmp_path / "00001.pt").unlink()  # an interrupted call
    calls = []
    walk_of = detail._walk_of
    monkeypatch.setattr(detail, "_walk_of", lambda *args: calls.append(1) or walk_of(*args))
    again, _ = detail.walked(network, teacher, fields, settings, tmp_path)
    assert len(calls) == 1
    assert torch.equal(first.detail, again.detail)
    with pytest.raises(TrainingError, match=r"teacher = .*choose another"):
        detail.walked(network, "another", fields, settings, tmp_path)


def test_walks_over_other_data_are_not_taken(fields, teacher, tmp_path):
    settings = DetailSettings(**SETTINGS, heun_steps=2, cached_batches=1)
    network = load_network(teacher)
    detail.walked(network, "teacher", fields, settings, tmp_path)
    more = FieldPool(
        {**fields.train.fields, "dsb2018": fields.train.fields["simulated"][:2]}, {"simulated": 0.5, "dsb2018": 0.5}
    )
    with pytest.raises(TrainingError, match=r"walks made with fields = .*dsb2018.*choose another"):
        detail.walked(network, "teacher", Fields(more, fields.held_out), settings, tmp_path)
    note = tmp_path / "walks.json"
    older = {key: value for key, value in json.loads(note.read_text()).items() if key != "fields"}
    note.write_text(json.dumps(older))  # of before the fields were noted
    detail.walked(network, "teacher", fields, settings, tmp_path)
    assert json.loads(note.read_text())["fields"]["train"] == {"simulated": 6}


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (DistilSettings, {"student_steps": 3}),
        (DistilSettings, {"truth_share": 1.2}),
        (DetailSettings, {"student_steps": 4}),
        (DetailSettings, {"student_steps": 2, "heun_steps": 15}),
        (ConsistencySettings, {"sigma_min": 0.0}),
    ],
)
def test_impossible_settings_are_refused(kind, change):
    with pytest.raises(TrainingError, match=str(list(change.values())[-1])):
        kind(**{"steps": 1} | change)


# --- consistency ---

NOISE_START = ConsistencySettings(
    steps=900, learning_rate=4e-3, warmup_steps=20, ema_decay=0.95, validate_every=900, precision="fp32",
    sigma_min=0.02, sigma_max=2.0, levels=8, sigma_data=0.5, gradient_clip=10.0,
)  # fmt: skip


def exact_denoiser(x, sigma, condition):
    """Posterior mean of pixels that are the condition plus or minus a half: the best teacher there is."""
    return condition + 0.5 * torch.tanh(0.5 * (x - condition) / sigma**2)


def clean_pixels(index):
    generator = torch.Generator().manual_seed(index)
    condition = torch.rand(4, 1, 16, 16, generator=generator) - 0.5
    return condition + torch.where(torch.rand(4, 1, 16, 16, generator=generator) < 0.5, -0.5, 0.5), condition


def pixel_network():
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 48, 1), torch.nn.SiLU(), torch.nn.Conv2d(48, 48, 1), torch.nn.SiLU()]
    return torch.nn.Sequential(*layers, torch.nn.Conv2d(48, 1, 1))


def test_at_the_lowest_level_a_consistency_model_is_the_identity():
    model = ConsistencyModel(pixel_network(), NOISE_START)
    x, condition = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    torch.testing.assert_close(model(x, torch.full((2, 1, 1, 1), 0.02), condition), x)
    assert not torch.allclose(model(x, torch.full((2, 1, 1, 1), 0.5), condition), x)


def test_a_teacher_step_follows_the_runtimes_heun():
    x0, condition = clean_pixels(1)
    sigma, sigma_next = torch.full((4, 1, 1, 1), 0.8), torch.full((4, 1, 1, 1), 0.3)
    batch = NoisyBatch(x0 + 0.8 * torch.randn(x0.shape), sigma, sigma_next, condition)

    def denoise(x, level):
        return exact_denoiser(torch.from_numpy(x), torch.tensor(float(level)), condition).numpy()

    wanted = samplers.sample(batch.x.numpy(), samplers.heun((0.8, 0.3)), denoise)
    np.testing.assert_allclose(heun_step(exact_denoiser, batch).numpy(), wanted, atol=1e-5)


def test_one_evaluation_arrives_where_the_teachers_many_do(tmp_path):
    log = []
    model = distill_consistency(
        exact_denoiser, pixel_network(), NOISE_START, tmp_path, clean=clean_pixels, progress=log.append
    )
    _, condition = clean_pixels(10**6)
    start = 2.0 * torch.randn(condition.shape, generator=torch.Generator().manual_seed(5))
    wanted = many_steps(exact_denoiser, start, condition, NOISE_START)
    level = torch.full((4, 1, 1, 1), 2.0)
    with torch.no_grad():
        got = model(start, level, condition)
        before = ConsistencyModel(pixel_network(), NOISE_START)(start, level, condition)
    mean = exact_denoiser(start, level, condition)  # what one evaluation of the teacher gives
    assert np.mean([p.loss for p in log[-20:]]) < 0.5 * np.mean([p.loss for p in log[:20]])
    error, untrained, one_step = ((image - wanted).square().mean() for image in (got, before, mean))
    assert error < 0.5 * one_step
    assert error < 0.4 * untrained
    saved = torch.load(tmp_path / "weights.pt", weights_only=True)["state"]
    torch.testing.assert_close(saved["0.weight"], model.network[0].weight)
