"""The loop that every training stage shares: it learns, resumes, refuses, and loses nothing when it is stopped."""

import csv
import json
import os
import signal
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch

from photonstep.models import loop, run_folder
from photonstep.models.checkpoint import load_network
from photonstep.models.loop import LoopSettings, run_loop, to_device
from photonstep.models.network import Denoiser, NetworkConfig
from photonstep.models.run_folder import run_settings, save_whole
from photonstep.runtime.errors import TrainingError

TINY = NetworkConfig(widths=(16, 16))
SETTINGS = {"steps": 12, "warmup_steps": 5, "ema_decay": 0.8, "validate_every": 6, "checkpoint_seconds": 0.0}

pytestmark = pytest.mark.usefixtures("single_threaded_torch")


@dataclass(frozen=True)
class Sample:
    planes: torch.Tensor
    target: torch.Tensor


def batch(index):
    generator = torch.Generator().manual_seed(index)
    planes = torch.randn(2, 4, 16, 16, generator=generator)
    return Sample(planes, planes[:, :1] * 0.5 - 0.2)


def square(network, sample):
    return (network(sample.planes).float() - sample.target).square().mean()


def held_out(network):
    with torch.no_grad():
        return square(network, batch(10**6)).item()


MINE = {"name": "mine", "licence": "CC0-1.0", "source": "here"}
RECORDINGS = {"kind": "paired", "licence": "CC0-1.0", "files": "3 files of 3 fields of view, abc"}


def run(output, *, loss=square, progress=None, data=(MINE,), recordings=(RECORDINGS,), **changes):
    settings = LoopSettings(**SETTINGS | changes)
    torch.manual_seed(0)
    network = Denoiser(TINY)
    record = run_settings("train", settings, network, training_data=list(data), recordings=recordings)
    return run_loop(
        network, settings, output, batch=batch, loss=loss, held_out=held_out, record=record, progress=progress
    )


def rows(output):
    with (output / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def steps_logged(output):
    return [int(row["step"]) for row in rows(output)]


def same_weights(one, other):
    for (name, value), again in zip(
        load_network(one).state_dict().items(), load_network(other).state_dict().values(), strict=True
    ):
        torch.testing.assert_close(value, again, rtol=0, atol=1e-6, msg=name)


def stopping_at(step, action):
    """A loss that does something at its ``step``-th call."""
    calls = []

    def loss(network, sample):
        calls.append(1)
        if len(calls) == step:
            action()
        return square(network, sample)

    return loss


def test_it_learns_and_reports(tmp_path):
    seen = []
    weights = run(tmp_path, steps=60, validate_every=30, learning_rate=5e-3, progress=seen.append)
    assert held_out(load_network(weights)) < 0.5 * held_out(Denoiser(TINY))
    assert [p.step for p in seen] == list(range(1, 61))
    assert [p.step for p in seen if p.held_out_loss is not None] == steps_logged(tmp_path) == [30, 60]
    assert float(rows(tmp_path)[-1]["held_out_loss"]) == pytest.approx(held_out(load_network(weights)), abs=1e-4)
    record = json.loads((tmp_path / "config.json").read_text())
    assert record["stage"] == "train"
    assert record["settings"]["steps"] == 60
    assert NetworkConfig.from_dict(record["network"]) == TINY


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_step_and_the_next_call_goes_on(tmp_path, capsys, number):
    run(tmp_path / "whole")
    before = signal.getsignal(number)
    asked = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: SystemExit}[number]
    with pytest.raises(asked):
        run(
            tmp_path / "broken",
            loss=stopping_at(8, lambda: os.kill(os.getpid(), number)),
            checkpoint_seconds=1e6,
        )
    assert signal.getsignal(number) is before
    assert "stopped at step 8 of 12" in capsys.readouterr().out
    assert not (tmp_path / "broken" / "weights.pt").exists()
    load_network(tmp_path / "broken")  # the averaged weights so far
    run(tmp_path / "broken", checkpoint_seconds=1e6)
    assert "resuming at step 8" in capsys.readouterr().out
    same_weights(tmp_path / "whole", tmp_path / "broken")
    assert [r["train_loss"] for r in rows(tmp_path / "whole")] == [r["train_loss"] for r in rows(tmp_path / "broken")]


def test_rows_are_not_repeated_when_the_checkpoint_is_older_than_the_log(tmp_path, monkeypatch):
    def killed():
        raise MemoryError

    with monkeypatch.context() as patch:  # the checkpoint stays that of step 3, the log has a row of step 6
        save = loop.RunState.save
        patch.setattr(loop.RunState, "save", lambda self, path: save(self, path) if self.step == 3 else None)
        with pytest.raises(MemoryError):
            run(tmp_path, loss=stopping_at(8, killed))
    assert steps_logged(tmp_path) == [6]
    with (tmp_path / "log.csv").open("a") as file:
        file.write("7,0")  # and was cut off in the middle of a row
    run(tmp_path)
    assert steps_logged(tmp_path) == [6, 12]


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    def full(content, path):
        path.write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file")

    save_whole({"step": 1}, tmp_path / "checkpoint.pt")
    with monkeypatch.context() as patch:
        patch.setattr(run_folder.torch, "save", full)
        with pytest.raises(TrainingError, match="free some space"):
            save_whole({"step": 2}, tmp_path / "checkpoint.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True) == {"step": 1}


@pytest.mark.parametrize(
    ("change", "says"), [({"learning_rate": 1e-4}, "learning_rate"), ({"seed": 7}, "seed"), ({"steps": 20}, "steps")]
)
def test_other_settings_are_refused_on_resuming(tmp_path, change, says):
    run(tmp_path)
    with pytest.raises(TrainingError, match=f"begun with {says} = "):
        run(tmp_path, **change)


def test_what_does_not_decide_the_weights_may_change_on_resuming(tmp_path):
    run(tmp_path)
    run(tmp_path, validate_every=3, checkpoint_seconds=9.0, device="cpu")
    assert steps_logged(tmp_path) == [6, 12]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"data": [MINE, MINE | {"name": "theirs"}]}, r"sets = \['mine'\]"),
        ({"recordings": [RECORDINGS | {"kind": "noisy"}]}, r"recordings\[0\]\.kind = paired, now asked for noisy"),
        ({"recordings": [RECORDINGS, RECORDINGS]}, "sources of recordings = 1"),
        ({"recordings": []}, "sources of recordings = 1"),
    ],
)
def test_other_material_is_refused_on_resuming(tmp_path, change, says):
    run(tmp_path)
    with pytest.raises(TrainingError, match=f"begun with {says}.*same settings and data, or choose another"):
        run(tmp_path, **change)


def test_a_record_that_says_nothing_of_its_material_is_resumed_and_completed(tmp_path):
    run(tmp_path)
    path = tmp_path / "config.json"
    record = json.loads(path.read_text())
    del record["material"]
    path.write_text(json.dumps(record))
    theirs = MINE | {"name": "theirs"}
    with pytest.warns(UserWarning, match="begin anew in another folder"):
        run(tmp_path, data=[theirs])
    record = json.loads(path.read_text())
    assert record["training_data"] == [MINE, theirs]
    assert record["material"] == {"sets": ["theirs"], "recordings": [RECORDINGS]}
    with pytest.raises(TrainingError, match="sets"):
        run(tmp_path)


# --- a full disk ---


@contextmanager
def room_for(count):
    """No file can grow beyond ``count`` bytes."""
    resource = pytest.importorskip("resource", reason="file sizes cannot be limited here")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_row_that_does_not_fit_leaves_no_half_log(tmp_path):
    log = tmp_path / "log.csv"
    for _ in range(2):
        before = log.read_text() if log.exists() else None
        with room_for(30), pytest.raises(TrainingError, match="free some space"):
            run_folder.append_row(log, 6, 1.0, 0.5, 0.4)
        assert (log.read_text() if log.exists() else None) == before
        run_folder.append_row(log, 6, 1.0, 0.5, 0.4)
    assert steps_logged(tmp_path) == [6, 6]
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_a_log_that_cannot_be_rewritten_is_kept(tmp_path):
    log = tmp_path / "log.csv"
    for step in (6, 12):
        run_folder.append_row(log, step, 1.0, 0.5, 0.4)
    before = log.read_text()
    with room_for(30), pytest.raises(TrainingError, match="free some space"):
        run_folder.keep_rows(log, 6)
    assert log.read_text() == before
    run_folder.keep_rows(log, 6)
    assert steps_logged(tmp_path) == [6]


@pytest.mark.parametrize("left", ["", "step,sec", "6,1,0.5,0.4\n"])
def test_a_log_without_its_heading_is_none(tmp_path, left):
    with pytest.raises(SystemExit):
        run(tmp_path, loss=stopping_at(3, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    (tmp_path / "log.csv").write_text(left)
    run(tmp_path)
    assert steps_logged(tmp_path) == [6, 12]


def test_a_finished_run_without_a_log_gets_its_last_row(tmp_path):
    run(tmp_path)
    last = rows(tmp_path)[-1]
    (tmp_path / "log.csv").write_text("")
    run(tmp_path)
    assert [row["held_out_loss"] for row in rows(tmp_path)] == [last["held_out_loss"]]
    assert steps_logged(tmp_path) == [12]


def test_a_record_that_cannot_be_written_is_told(tmp_path):
    with room_for(30), pytest.raises(TrainingError, match=r"config\.json.*free some space"):
        run(tmp_path)
    run(tmp_path)


def test_a_foreign_or_damaged_checkpoint_is_refused(tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"not weights")
    with pytest.raises(TrainingError, match="choose another output folder"):
        run(tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(TrainingError, match=r"nan at step 0.*learning rate"):
        run(tmp_path, loss=lambda network, sample: square(network, sample) * float("nan"))


@pytest.mark.parametrize(
    "change",
    [{"steps": -1}, {"learning_rate": 0.0}, {"ema_decay": 1.0}, {"precision": "int8"}, {"validate_every": 0}],
)
def test_impossible_settings_are_refused(change):
    with pytest.raises(TrainingError, match=str(next(iter(change.values())))):
        LoopSettings(**SETTINGS | change)


def test_an_absent_device_is_refused():
    if torch.cuda.is_available():
        pytest.skip("torch finds a CUDA device here; the refusal is for machines without one")
    with pytest.raises(TrainingError, match="no CUDA"):
        LoopSettings(**SETTINGS, device="cuda").torch_device()


def test_the_average_is_the_callers_where_the_loss_needs_it(tmp_path):
    torch.manual_seed(0)
    network, average = Denoiser(TINY), Denoiser(TINY)
    settings, seen = LoopSettings(**SETTINGS), []

    def loss(student, sample):
        seen.append(average.head.bias.detach().clone())
        return square(student, sample)

    weights = run_loop(
        network, settings, tmp_path, batch=batch, loss=loss, record=run_settings("distill", settings, network),
        average=average, progress=None,
    )  # fmt: skip
    assert not torch.equal(seen[0], seen[-1])
    torch.testing.assert_close(load_network(weights).head.bias, average.head.bias)


def test_batches_of_any_shape_reach_the_device():
    moved = to_device((Sample(torch.ones(1), torch.zeros(1)), {"k": [torch.ones(2)]}, 3), torch.device("meta"))
    assert moved[0].planes.device.type == moved[1]["k"][0].device.type == "meta"
    assert moved[2] == 3
