"""The validation measures what it says: photographs, detections, losses, gates; and it can tell good from bad."""

import json
import re

import numpy as np
import pytest
from scipy import ndimage

from photonstep.export import noise_bins
from photonstep.export import validate as command
from photonstep.export.blank_fields import count_detections, threshold_e
from photonstep.export.gates import GATES, BlankBin, Figures, NoiseBin, blank_total_failures, excess_by_chance
from photonstep.export.noise_bins import NOISES, Noise
from photonstep.export.spectrum import radial_power
from photonstep.export.validate import validate
from photonstep.export.validation_report import markdown, to_html, to_json, write_reports
from photonstep.runtime.errors import TrainingError

WHITE, CORRELATED = NOISES
QUICK = {"scenes": 2, "size_px": 64, "photons": (10.0, 100.0), "blank_frames": 1}


def figures(psnr_db=30.0, ssim=0.9, bias_percent=0.0):
    return Figures(psnr_db=psnr_db, ssim=ssim, bias_percent=bias_percent)


def noise_bin(teacher, student, camera="known"):
    return NoiseBin(
        source="simulated", noise="white", photons=10.0, camera=camera, frames=4, teacher=teacher, student=student,
        psnr_loss_error_db=0.01,
    )  # fmt: skip


def blank(teacher, student):
    return BlankBin(noise="white", photons=10.0, camera="known", frames=4, teacher=teacher, student=student)


# --- photographs ---


@pytest.mark.parametrize("noise", NOISES, ids=lambda n: n.name)
def test_the_simulated_camera_has_the_noise_that_it_is_said_to_have(noise):
    photons = np.full((256, 256), 20.0)
    e = noise_bins.to_electrons(noise_bins.photograph(photons, noise, np.random.default_rng(0)))
    assert e.mean() == pytest.approx(20.0, abs=0.1)
    quantisation = noise_bins.GAIN_E_PER_ADU**2 / 12
    assert e.var() == pytest.approx(20.0 + noise_bins.READOUT_NOISE_E**2 + quantisation, rel=0.03)
    flat = e - e.mean()
    for axis in (0, 1):
        assert np.mean(flat * np.roll(flat, 1, axis)) / e.var() == pytest.approx(noise.correlation, abs=0.03)
    blocks = e[:255, :255].reshape(51, 5, 51, 5).mean((1, 3))
    assert blocks.std() == pytest.approx(e.std() * noise.block_mean_std(5), rel=0.05)
    assert noise_bins.camera_of(noise).noise_correlation == pytest.approx((noise.correlation,) * 2)


def test_scenes_are_held_out_and_asking_for_more_changes_none():
    two, three = (noise_bins.simulated_scenes(n, 64, seed=0) for n in (2, 3))
    for one, same in zip(two, three, strict=False):
        np.testing.assert_array_equal(one, same)
    assert np.abs(two[0] - two[1]).max() > 0.1
    assert np.abs(two[0] - noise_bins.simulated_scenes(1, 64, seed=1)[0]).max() > 0.1


def test_clean_frames_of_ones_own_are_cut_and_scaled(lysosome):
    (scene,) = noise_bins.given_scenes([lysosome], 64)
    assert scene.shape == (64, 64)
    assert np.percentile(scene, (0.5, 99.9)) == pytest.approx((0, 1), abs=1e-5)
    for bad in (np.ones((64, 64)), np.zeros((3, 64, 64)), np.zeros((20, 64)), np.full((64, 64), np.nan)):
        with pytest.raises(TrainingError, match="clean frame 0"):
            noise_bins.given_scenes([bad], 64)


def test_large_pixels_receive_the_mean_of_small_ones():
    fine = np.arange(36.0).reshape(6, 6)
    np.testing.assert_allclose(noise_bins.pixel_means(fine, 2), fine.reshape(3, 2, 3, 2).mean((1, 3)))
    np.testing.assert_array_equal(noise_bins.pixel_means(fine, 1), fine)


# --- blank fields ---


@pytest.mark.parametrize("noise", NOISES, ids=lambda n: n.name)
def test_a_noise_free_blank_has_no_detection_and_invented_spots_are_counted(noise):
    flat = np.full((128, 128), 30.0)
    assert count_detections(flat, 30.0, noise) == 0
    spots = np.zeros_like(flat)
    spots[[20, 60, 100], [30, 90, 64]] = 1
    shape = ndimage.gaussian_filter(spots, 1.5)
    shape /= shape.max()
    assert count_detections(flat + 1.05 * threshold_e(30.0, noise) * shape, 30.0, noise) == 3
    assert count_detections(flat + 0.95 * threshold_e(30.0, noise) * shape, 30.0, noise) == 0


def test_a_plateau_is_one_detection():
    field = np.zeros((64, 64))
    field[20:23, 30:33] = 100.0
    assert count_detections(field, 10.0, WHITE) == 1


def test_a_spots_mean_over_correlated_noise_varies_more():
    assert WHITE.block_mean_std(5) == pytest.approx(1 / 5)
    assert threshold_e(10.0, CORRELATED) > 1.5 * threshold_e(10.0, WHITE)
    assert Noise("same", np.ones(1)).correlation == 0


# --- gates ---


def test_each_loss_misses_its_own_gate_and_a_gain_misses_none():
    stage = GATES["stage"]
    teacher = figures()
    assert noise_bin(teacher, figures(29.91, 0.8971, -0.49)).failures(stage) == ()
    assert noise_bin(teacher, figures(31.0, 0.95)).failures(stage) == ()
    for student, word in (
        (figures(29.89), "PSNR"),
        (figures(ssim=0.8969), "SSIM"),
        (figures(bias_percent=-0.6), "bias"),
    ):
        (miss,) = noise_bin(teacher, student).failures(stage)
        assert word in miss
    assert noise_bin(teacher, figures(29.75)).failures(GATES["total"]) == ()
    assert len(noise_bin(teacher, figures(float("nan"), float("nan"), float("nan"))).failures(stage)) == 3


def test_the_photon_gate_judges_what_the_student_adds():
    assert noise_bin(figures(bias_percent=0.9), figures(bias_percent=-1.2)).added_bias_percent == pytest.approx(0.3)
    assert noise_bin(figures(bias_percent=-0.9), figures(bias_percent=0.1)).failures(GATES["stage"]) == ()


def test_blank_detections_fail_beyond_chance_only():
    assert excess_by_chance(0, 0) == 1
    assert excess_by_chance(0, 7) == pytest.approx(1 / 128)
    assert excess_by_chance(5, 3) > 0.5
    assert blank(3, 3).failures() == blank(0, 6).failures() == blank(40, 0).failures() == ()
    assert "7 detections, the teacher has 0" in blank(0, 7).failures()[0]
    assert blank_total_failures([blank(1, 3)] * 2) == ()
    assert blank_total_failures([blank(1, 3)] * 4)  # a small excess everywhere adds up
    assert blank_total_failures([]) == ()


def test_a_bin_with_a_large_share_of_chance_sums_exactly():
    from math import comb

    assert excess_by_chance(4, 6) == pytest.approx(sum(comb(10, k) for k in (6, 7, 8, 9, 10)) / 1024)
    assert excess_by_chance(0, 0) == 1
    assert 0 < excess_by_chance(499_000, 501_000) < 0.05  # many detections take no longer than few


# --- spectrum ---


def test_a_blur_lowers_the_power_at_high_frequencies():
    noise = np.random.default_rng(0).normal(size=(128, 128))
    sharp, soft = radial_power(noise), radial_power(ndimage.gaussian_filter(noise, 1.0))
    assert sharp[5:].mean() == pytest.approx(1.0, rel=0.05)  # white noise of variance 1
    frequency = (np.arange(32) + 0.5) / 64
    np.testing.assert_allclose(soft[3:15] / sharp[3:15], np.exp(-((2 * np.pi * frequency[3:15]) ** 2)), rtol=0.15)


# --- the whole ---


@pytest.fixture(scope="module")
def live_against_base():
    return validate("live", "base", **QUICK)


def test_a_bundle_passes_against_itself():
    same = validate("live", "live", **QUICK)
    assert same.passed
    assert all(b.psnr_loss_db == b.ssim_loss == b.added_bias_percent == 0 for b in same.bins)
    assert all(b.teacher == b.student for b in same.blanks)


def test_a_smaller_network_is_told_from_a_larger_one(live_against_base):
    found = live_against_base
    assert not found.passed
    assert {(b.noise, b.photons, b.camera) for b in found.bins} == {
        (n, p, c) for n in ("white", "correlated") for p in (10.0, 100.0) for c in ("known", "blind")
    }
    assert np.mean([b.psnr_loss_db for b in found.bins]) > 0.3
    assert all(b.frames == 2 for b in found.bins)
    assert found.student.parameters < found.teacher.parameters
    assert any("PSNR loss" in line for line in found.failures)


def test_the_same_call_gives_the_same_json(live_against_base):
    again = validate("live", "base", **QUICK)
    assert to_json(again) == to_json(live_against_base)
    other = validate("live", "base", **QUICK | {"seed": 1})
    assert to_json(other) != to_json(live_against_base)


def test_precisions_of_one_bundle_compare():
    found = validate("live", "live", precision="bf16", gates=GATES["stage"], **QUICK)
    assert (found.student.precision, found.teacher.precision) == ("bf16", "fp32")
    assert all(abs(b.psnr_loss_db) < 0.05 for b in found.bins)


def test_more_steps_compare_with_fewer():
    found = validate("live", "live", steps=2, **QUICK | {"blank_frames": 0})
    assert (found.student.steps, found.teacher.steps) == (2, 1)
    assert found.blanks == ()
    assert any(b.psnr_loss_db != 0 for b in found.bins)


def test_own_frames_get_bins_of_their_own(lysosome):
    found = validate("live", "live", frames=[lysosome], **QUICK | {"scenes": 0, "blank_frames": 0})
    assert {b.source for b in found.bins} == {"given"}
    assert found.examples
    with pytest.raises(TrainingError, match="no scene"):
        validate("live", "live", **QUICK | {"scenes": 0})


def test_the_pages_tell_the_verdict_and_need_no_other_file(live_against_base, tmp_path):
    page = to_html(live_against_base)
    assert "misses" in page
    assert not re.findall(r'(?:src|href)="(?!data:image/png;base64,)', page)
    assert page.count("data:image/png") == len(live_against_base.examples) + 2
    assert "| 10 |" in markdown(live_against_base)
    paths = [tmp_path / name for name in ("v.json", "v.html", "v.png")]
    written = write_reports(live_against_base, json_path=paths[0], html_path=paths[1], png_path=paths[2])
    assert written == tuple(paths)
    assert json.loads(paths[0].read_text())["passed"] is False
    assert paths[2].read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["v.html", "v.json", "v.png"]
    with pytest.raises(TrainingError, match="exists"):
        write_reports(live_against_base, json_path=paths[0])


def test_the_command_exits_with_the_verdict(capsys, tmp_path):
    quick = ["--scenes", "1", "--size", "64", "--blank-frames", "0"]
    assert command.main(["live", "--against", "live", *quick]) == 0
    assert "passes every gate" in " ".join(capsys.readouterr().out.split())
    assert command.main(["live", "--against", "base", *quick, "--gate", "stage"]) == 1
    assert command.main(["nothing", "--against", "base", *quick]) == 2
    assert "no bundle 'nothing'" in capsys.readouterr().err
    taken = tmp_path / "report.html"
    taken.write_text("precious")
    assert command.main(["live", "--against", "base", *quick, "--html", str(taken)]) == 2
    assert taken.read_text() == "precious"


def test_progress_counts_every_frame():
    seen = []
    validate("live", "live", **QUICK, progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    assert {total for _, total in seen} == {len(seen)}


def test_real_val_frames_are_photographed_too(shared_data):
    scenes = noise_bins.real_scenes(shared_data, 128)
    assert len(scenes) >= 6
    assert all(scene.shape == (128, 128) for scene in scenes)
