"""Training on a user's recordings: improves, resumes, keeps the best, tells what it saw and where it fails."""

import csv
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import tifffile
import torch
from simulated_frames import photograph

import photonstep as ps
from photonstep.models import best_weights, fine_tune, loop, loss_curve, watch
from photonstep.models import train as training
from photonstep.models.best_weights import BestWeights
from photonstep.models.checkpoint import load_network
from photonstep.models.data import Field, FieldPool
from photonstep.models.fine_tune import TrainRequest, train_recordings
from photonstep.models.loop import Progress
from photonstep.models.material import OWN, Drawing, gather, training_data, training_material
from photonstep.models.network import TIERS, Denoiser, NetworkConfig
from photonstep.models.recordings import Source, find_scenes
from photonstep.models.simulate import simulate_field
from photonstep.models.train import TrainConfig, train
from photonstep.models.watch import Watch
from photonstep.runtime.errors import TrainingError

TINY = NetworkConfig(widths=(16, 16))
SMALL = {"steps": 12, "batch": 4, "patch_px": 48, "warmup_steps": 3, "ema_decay": 0.5, "validate_every": 6}
CAMERA = ps.Camera(offset_adu=100.0, gain_e_per_adu=0.5, readout_noise_e=1.0)

pytestmark = pytest.mark.usefixtures("single_threaded_torch")


@pytest.fixture(scope="module")
def pool():
    rng = np.random.default_rng(0)
    return FieldPool({"simulated": [Field.of(simulate_field(rng, 64)) for _ in range(6)]}, {"simulated": 1.0})


@pytest.fixture
def small(monkeypatch, pool):
    """Presets and networks small enough for a test."""
    monkeypatch.setitem(TIERS, "base", TINY)
    monkeypatch.setattr(training, "load_pool", lambda *args, **kwargs: pool)
    monkeypatch.setattr(training, "HELD_OUT_BATCHES", 2)
    for name in ("FROM_NOTHING", "FINE_TUNING", "WITHOUT_REFERENCE"):
        monkeypatch.setattr(fine_tune, name, {**SMALL, "learning_rate": 2e-3})
    monkeypatch.setattr(watch, "_tensorboard", lambda folder: None)


@pytest.fixture
def recordings(tmp_path):
    """Four fields, noisy and clean, of 64 x 72 px."""
    rng = np.random.default_rng(1)
    for index in range(4):
        photons = 5 + 60 * simulate_field(rng, 72)[:64]
        noisy = photograph(photons, gain=0.5, offset=100.0, dtype=np.uint16, seed=index)
        for name, image in (("noisy", noisy), ("clean", (photons / 0.5 + 100).astype(np.float32))):
            (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(tmp_path / "data" / name / f"{index}.tif", image)
    return tmp_path / "data"


def rows(output):
    with (output / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def saved_network(path):
    torch.manual_seed(0)
    network = Denoiser(TINY)
    torch.save({"network": TINY.as_dict(), "state": network.state_dict(), "step": 1}, path)
    return path


# --- a run from end to end ---


def test_training_on_pairs_learns_and_leaves_a_whole_run_folder(small, recordings, tmp_path, monkeypatch):
    monkeypatch.setitem(fine_tune.FROM_NOTHING, "steps", 60)
    monkeypatch.setitem(fine_tune.FROM_NOTHING, "validate_every", 20)
    output = tmp_path / "run"
    request = TrainRequest(data=(recordings,), output=output, camera=CAMERA, licence="CC-BY-4.0")
    result = train_recordings(request, bar=False)
    assert result.last_held_out_loss < result.first_held_out_loss
    assert (result.fields_trained, result.fields_held_out) == (3, 1)
    assert result.steps == 60
    assert "3 fields of view, 1 held out" in str(result)
    assert result.best_step in (20, 40, 60)
    assert result.curve.read_bytes().startswith(b"\x89PNG")
    assert load_network(output).config == TINY
    record = json.loads((output / "config.json").read_text())
    assert record["stage"] == "train"
    assert record["settings"]["steps"] == 60
    assert record["training_data"][0] == {
        "name": "data",
        "licence": "CC-BY-4.0",
        "source": "the user's own recordings; 3 fields of view trained on in all",
    }
    assert [int(row["step"]) for row in rows(output)] == [20, 40, 60]


@pytest.mark.parametrize("kind", ["repeated", "noisy", "clean"])
def test_every_kind_trains(small, tmp_path, kind):
    rng = np.random.default_rng(2)
    for index in range(2):
        photons = 5 + 60 * simulate_field(rng, 128)
        frames = [photograph(photons, gain=0.5, offset=100.0, dtype=np.uint16, seed=s) for s in range(3)]
        (tmp_path / "data").mkdir(exist_ok=True)
        stack = np.stack(frames)
        tifffile.imwrite(tmp_path / "data" / f"{index}.tif", stack, photometric="minisblack", metadata={"axes": "TYX"})
    start = saved_network(tmp_path / "start.pt")
    request = TrainRequest(
        data=(tmp_path / "data",), kind=kind, output=tmp_path / "run", start_from=start, camera=CAMERA, steps=4
    )
    result = train_recordings(request, bar=False)
    assert result.steps == 4
    assert np.isfinite(result.last_held_out_loss)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["started_from"] == str(start)


def test_an_interrupted_run_ends_at_the_same_weights(small, recordings, tmp_path, monkeypatch):
    monkeypatch.setitem(fine_tune.FROM_NOTHING, "checkpoint_seconds", 0.0)
    request = TrainRequest(data=(recordings,), output=tmp_path / "whole", camera=CAMERA)
    whole = torch.load(train_recordings(request, bar=False).weights, weights_only=True)
    step = loop._step

    def interrupted(state, *arguments):
        if state.step == 8:
            raise KeyboardInterrupt
        return step(state, *arguments)

    broken = replace(request, output=tmp_path / "broken")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_recordings(broken, bar=False)
    resumed = torch.load(train_recordings(broken, bar=False).weights, weights_only=True)
    assert resumed["step"] == whole["step"]
    for name, value in whole["state"].items():
        torch.testing.assert_close(resumed["state"][name], value, rtol=0, atol=1e-6, msg=name)


def test_another_learning_rate_is_no_resumption(small, recordings, tmp_path):
    request = TrainRequest(data=(recordings,), output=tmp_path / "run", camera=CAMERA)
    train_recordings(request, bar=False)
    with pytest.raises(TrainingError, match="learning_rate"):
        train_recordings(replace(request, learning_rate=1e-5), bar=False)


def write_again(folder):
    """Other pixels in files of the same names and sizes."""
    for path in folder.glob("*/*.tif"):
        before = path.stat().st_size
        tifffile.imwrite(path, tifffile.imread(path)[::-1])
        assert path.stat().st_size == before


def copy_field(folder):
    for path in folder.glob("*/0.tif"):
        path.with_name("9.tif").write_bytes(path.read_bytes())


@pytest.mark.parametrize(
    ("act", "change", "says"),
    [
        (write_again, {}, r"recordings\[0\]\.files = 8 files of 4 fields of view"),
        (copy_field, {}, "now asked for 10 files of 5 fields of view"),
        (None, {"licence": "proprietary"}, r"licence = CC0-1\.0, now asked for proprietary"),
        (None, {"camera": replace(CAMERA, readout_noise_e=2.0)}, r"recordings\[0\]\.camera"),
        (None, {"camera": None}, "now asked for estimated from the frames"),
        (None, {"kind": "noisy"}, r"kind = paired, now asked for noisy"),
    ],
)
def test_other_data_is_no_resumption(small, recordings, tmp_path, act, change, says):
    request = TrainRequest(data=(recordings,), output=tmp_path / "run", camera=CAMERA, licence="CC0-1.0", steps=2)
    train_recordings(request, bar=False)
    before = (tmp_path / "run" / "config.json").read_text()
    if act is not None:
        act(recordings)
    with pytest.raises(TrainingError, match=f"{says}.*or choose another output folder"):
        train_recordings(replace(request, **change), bar=False)
    assert (tmp_path / "run" / "config.json").read_text() == before


def test_recordings_may_be_moved(small, recordings, tmp_path):
    request = TrainRequest(data=(recordings,), output=tmp_path / "run", camera=CAMERA, steps=2)
    train_recordings(request, bar=False)
    moved = tmp_path / "elsewhere" / recordings.name
    moved.parent.mkdir()
    recordings.rename(moved)
    assert train_recordings(replace(request, data=(moved,)), bar=False).steps == 2


def test_the_record_holds_no_names_of_fields(recordings):
    for path in recordings.glob("*/0.tif"):
        path.rename(path.with_name("patient-42.tif"))
    (mark,) = gather([Source(path=recordings, camera=CAMERA)], 0.2).marks
    assert set(mark) == {"kind", "licence", "share", "camera", "files"}
    assert "patient" not in str(mark)


# --- the best weights ---


class Losses:
    """Held-out losses in the order of the calls."""

    def __init__(self, *values):
        self.values = list(values)

    def __call__(self, network):
        return self.values.pop(0)


def run_with_losses(output, *values, start=True):
    torch.manual_seed(0)
    network = Denoiser(TINY)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    best = BestWeights(output, Losses(*values))
    best.begin(network if start else None)
    seen = []

    def batch(index):
        return torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(index))

    def loss(net, planes):
        return (net(planes) - planes[:, :1]).square().mean()

    def keep(average):
        seen.append({k: v.clone() for k, v in average.state_dict().items()})
        return best(average)

    settings = loop.LoopSettings(steps=3, warmup_steps=1, validate_every=1, ema_decay=0.0, learning_rate=0.01)
    weights = loop.run_loop(
        network, settings, output, batch=batch, loss=loss, held_out=keep, record={"settings": {}}, progress=None
    )
    step = best.finish()
    saved = torch.load(weights, weights_only=True)
    assert saved["step"] == step
    return step, saved["state"], [before, *seen]


@pytest.mark.parametrize(
    ("losses", "best"), [((0.9, 0.5, 0.3, 0.4), 2), ((0.9, 0.8, 0.7, 0.6), 3), ((0.1, 2, 3, 4), 0)]
)
def test_the_weights_of_the_lowest_held_out_loss_are_kept(tmp_path, losses, best):
    step, state, seen = run_with_losses(tmp_path, *losses)
    assert step == best
    for name, value in seen[best].items():
        assert torch.equal(state[name], value), name


def test_random_weights_are_no_candidate(tmp_path):
    assert run_with_losses(tmp_path, 0.5, 0.6, 0.7, start=False)[0] == 1


def test_a_damaged_best_is_named(tmp_path):
    (tmp_path / best_weights.BEST).write_bytes(b"no weights")
    (tmp_path / "checkpoint.pt").write_bytes(b"")
    with pytest.raises(TrainingError, match=r"best\.pt"):
        BestWeights(tmp_path, Losses()).begin(None)


# --- material and record ---


DRAWING = Drawing(batch=400, patch_px=16, measured_share=0.8, recordings_share=0.75, seed=1)


def test_batches_mix_recordings_with_the_pool(recordings, pool):
    scenes = find_scenes(Source(path=recordings, camera=CAMERA))
    material = training_material(scenes, pool, DRAWING, None)
    assert material.share == pytest.approx(0.75)
    batch = material.batch(DRAWING, 0)
    assert batch.x.shape == (400, 1, 16, 16)
    again = material.batch(DRAWING, 0)
    assert torch.equal(batch.x, again.x)
    assert not torch.equal(batch.x, material.batch(DRAWING, 1).x)


def test_clean_recordings_join_the_pool(tmp_path, pool):
    (tmp_path / "clean").mkdir()
    tifffile.imwrite(tmp_path / "clean" / "a.tif", (1000 * simulate_field(np.random.default_rng(0), 128)).astype("f4"))
    material = training_material(find_scenes(Source(path=tmp_path)), pool, DRAWING, None)
    assert material.measured is None
    total = sum(material.pool.shares[name] for name in material.pool.fields)
    assert material.pool.shares[OWN] / total == pytest.approx(0.75)


def test_small_clean_frames_are_refused(tmp_path, pool):
    (tmp_path / "clean").mkdir()
    tifffile.imwrite(tmp_path / "clean" / "a.tif", simulate_field(np.random.default_rng(0), 100))
    with pytest.raises(TrainingError, match="128 px"):
        training_material(find_scenes(Source(path=tmp_path)), pool, DRAWING, None)


def test_one_field_warns_that_nothing_is_held_out(small, recordings, tmp_path):
    for path in recordings.glob("*/[1-9].tif"):
        path.unlink()
    with pytest.warns(UserWarning, match="one field of view"):
        result = train_recordings(TrainRequest(data=(recordings,), output=tmp_path / "run", camera=CAMERA), bar=False)
    assert result.fields_held_out == 0


def test_the_record_names_what_was_there_and_nothing_else(pool):
    from photonstep.models.material import Recordings

    named = [entry["name"] for entry in training_data((), Recordings([], []), pool)]
    assert named == ["simulated structures"]
    with_set = FieldPool({**pool.fields, "dsb2018": []}, {**pool.shares, "dsb2018": 0.1})
    assert training_data((), Recordings([], []), with_set)[1]["licence"] == "CC0-1.0"


# --- what is refused ---


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"tier": "huge"}, "huge"),
        ({"batch": 0}, "batch 0"),
        ({"recordings_share": 1.5}, "recordings_share"),
        ({"held_out_share": float("nan")}, "held_out_share"),
        ({"steps": -1}, "steps -1"),
        ({"learning_rate": 0.0}, "learning rate 0"),
    ],
)
def test_impossible_settings_are_refused(settings, says):
    with pytest.raises(TrainingError, match=says):
        TrainConfig(**{"tier": "base", "steps": 4, **settings})


def test_a_run_needs_a_tier_or_a_start(tmp_path, small):
    with pytest.raises(TrainingError, match="choose a tier"):
        train(TrainConfig(steps=2), None, tmp_path / "run")


def test_a_start_of_another_shape_is_refused(tmp_path, small, monkeypatch):
    monkeypatch.setitem(TIERS, "base", NetworkConfig(widths=(16, 32)))
    with pytest.raises(TrainingError, match="cannot start"):
        train(
            TrainConfig(steps=2, tier="base"), None, tmp_path / "run", start_from=saved_network(tmp_path / "start.pt")
        )


def test_a_start_for_another_task_is_refused(tmp_path, small):
    start = saved_network(tmp_path / "weights.pt")
    (tmp_path / "config.json").write_text(json.dumps({"task": "super_resolution"}))
    with pytest.raises(TrainingError, match="super_resolution"):
        train(TrainConfig(steps=2), None, tmp_path / "run", start_from=start)


def test_the_run_folder_stays_out_of_the_recordings(recordings, tmp_path):
    with pytest.raises(TrainingError, match="within the recordings"):
        train_recordings(TrainRequest(data=(recordings,), output=recordings / "run"))
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(TrainingError, match="is a file"):
        train_recordings(TrainRequest(data=(recordings,), output=tmp_path / "taken"))


def test_nothing_to_train_on(tmp_path):
    with pytest.raises(TrainingError, match="nothing to train on"):
        train_recordings(TrainRequest(output=tmp_path, start_from="base"))


# --- what is shown ---


def test_without_tensorboard_training_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with Watch(tmp_path, "training", bar=False) as shown:
        shown(Progress(1, 2, 0.1, 0.5))
    assert capsys.readouterr().out.count("TensorBoard is not installed") == 1


def test_tensorboard_gets_the_losses(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    (tmp_path / "config.json").write_text(
        json.dumps({"settings": {"tier": "base", "steps": 1, "learning_rate": 1, "seed": 1}})
    )
    (tmp_path / "log.csv").write_text("step,seconds,train_loss,held_out_loss\n10,1,0.5,0.4\n")
    with Watch(tmp_path, "training", bar=False) as shown:
        shown(Progress(10, 10, 1.0, 0.5, 0.4))
    (events,) = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    assert b"loss/held_out" in content
    assert b"loss/training" in content


def full_disk(*arguments, **settings):
    raise OSError(28, "No space left on device")


def test_a_picture_that_cannot_be_drawn_ends_no_training(small, recordings, tmp_path, monkeypatch):
    monkeypatch.setattr(loss_curve, "draw", full_disk)
    monkeypatch.setattr(watch, "CURVE_SECONDS", -1.0)
    with pytest.warns(UserWarning, match="No space left") as told:
        result = train_recordings(TrainRequest(data=(recordings,), output=tmp_path / "run", camera=CAMERA), bar=False)
    assert len(told) == 1
    assert result.steps == 12
    assert not result.curve.exists()


class FullWriter:
    add_scalar = close = full_disk


@pytest.mark.parametrize("at_start", [True, False])
def test_tensorboard_on_a_full_disk_ends_no_training(tmp_path, monkeypatch, at_start):
    tensorboard = pytest.importorskip("torch.utils.tensorboard", reason="tensorboard is not installed")
    monkeypatch.setattr(tensorboard, "SummaryWriter", full_disk if at_start else lambda folder: FullWriter())
    with (
        pytest.warns(UserWarning, match="tensorboard.*No space left") as told,
        Watch(tmp_path, "t", bar=False) as shown,
    ):
        for step in (10, 20):
            shown(Progress(step, 30, 0.1, 0.5))
    assert len(told) == 1


def test_a_bar_on_a_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(watch, "_tensorboard", lambda folder: None)
    with Watch(tmp_path, "training mine", bar=True) as shown:
        shown(Progress(3, 12, 0.1, 0.5))
    assert "training mine" in capsys.readouterr().err
