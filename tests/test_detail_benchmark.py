"""The detail benchmark: its figures on images whose answer is known, and a whole run on a network with a knob."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tifffile
import torch

from benchmarks import detail
from photonstep.models.network import INPUT_PLANES, Denoiser, NetworkConfig
from photonstep.models.run_folder import write_weights

TINY = NetworkConfig(widths=(16, 16))


def test_power_is_that_of_the_high_frequencies():
    x = np.mgrid[:64, :64][1]
    slow, fast = np.sin(2 * np.pi * x / 16), np.sin(2 * np.pi * x / 3)
    assert detail.high_power(slow) < 1e-4 * detail.high_power(fast)
    assert detail.high_power(3 * fast + slow) == pytest.approx(9 * detail.high_power(fast), rel=1e-3)


def test_the_walk_reproduces_all_of_itself_and_the_mean_nothing():
    mean, walk = np.zeros((8, 8), np.float32), np.ones((8, 8), np.float32)
    assert [detail.reproduced(image, mean, walk) for image in (walk, mean, 0.5 * walk)] == [1.0, 0.0, 0.75]


def test_a_run_restores_every_frame_with_teacher_and_student(confocal, tmp_path, capsys):
    place = tmp_path / "paired" / "fmd_fov1" / "val"
    place.mkdir(parents=True)
    cut = np.s_[:64, :64]
    tifffile.imwrite(place / "confocal_a.tif", np.stack([confocal.raw[cut], confocal.reference[cut]]))
    torch.manual_seed(0)
    student = Denoiser(replace(TINY, planes=INPUT_PLANES + 1))
    torch.nn.init.normal_(student.head.weight, std=0.05)  # training starts it at zero
    run = tmp_path / "student"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"stage": "distill", "network": student.config.as_dict()}))
    write_weights(student, run, step=1)
    arguments = ["--data", str(tmp_path), "--teacher", "live", "--student", str(run), "--sets", "fmd_fov1"]
    detail.main([*arguments, "--threads", "1", "--json", str(tmp_path / "detail.json")])
    rows = {r["method"]: r for r in json.loads((tmp_path / "detail.json").read_text())["rows"]}
    assert list(rows) == [detail.MEAN, detail.WALK, *(f"student, k = {k:g}, K = 1" for k in detail.KNOBS)]
    assert (rows[detail.MEAN]["of_the_walk"], rows[detail.WALK]["of_the_walk"]) == (0, 1)
    assert rows["student, k = 0, K = 1"]["psnr_db"] != rows["student, k = 1, K = 1"]["psnr_db"]  # the knob was turned
    assert f"| {detail.WALK} | {rows[detail.WALK]['psnr_db']:.2f} |" in capsys.readouterr().out
