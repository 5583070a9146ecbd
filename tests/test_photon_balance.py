"""Restored light is brought to measured light, as far as the frame can tell."""

import numpy as np
import pytest

from photonstep.runtime.camera import Camera
from photonstep.runtime.photon_balance import photon_balance

CAMERA = Camera(offset_adu=100, gain_e_per_adu=0.5, readout_noise_e=1.5)


def frame_of(light, rng):
    electrons = rng.poisson(light) + rng.normal(0, 1.5, light.shape)
    return (electrons / 0.5 + 100).astype(np.float32)


@pytest.fixture
def light(rng):
    ramp = np.linspace(2, 60, 256)
    return np.broadcast_to(ramp, (256, 256)).astype(np.float32)


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def test_a_known_loss_is_found_and_undone(light, rng):
    frame = frame_of(light, rng)
    lost = ((light - 0.15) / 1.04).astype(np.float32)
    balance = photon_balance(frame, lost, CAMERA)
    assert balance.gain == pytest.approx(1.04, abs=0.01)
    assert balance.shift_e == pytest.approx(0.15, abs=0.12)
    assert balance.apply(lost).mean() == pytest.approx(light.mean(), rel=0.005)


def test_a_right_restoration_is_left_alone(light, rng):
    balance = photon_balance(frame_of(light, rng), light, CAMERA)
    assert balance.gain == pytest.approx(1, abs=0.01)
    assert balance.shift_e == pytest.approx(0, abs=0.12)


def test_a_small_dark_frame_is_hardly_corrected(rng):
    light = np.full((16, 16), 1.0, np.float32)
    frame = frame_of(light, rng) + 1.0  # half a photoelectron that 256 pixels cannot tell from noise for sure
    assert abs(photon_balance(frame, light, CAMERA).shift_e) < 0.25


def test_gain_is_bounded(light, rng):
    assert photon_balance(frame_of(light, rng), light / 3, CAMERA).gain == pytest.approx(1.1)


def test_excluded_pixels_do_not_count(light, rng):
    frame = frame_of(light, rng)
    excluded = np.zeros(frame.shape, bool)
    excluded[64:128, 64:128] = True
    spoilt = np.where(excluded, 60000, frame).astype(np.float32)
    clean = photon_balance(frame, light, CAMERA, excluded)
    assert photon_balance(spoilt, light, CAMERA, excluded) == clean
    assert photon_balance(spoilt, light, CAMERA, np.ones(frame.shape, bool)) == (1.0, 0.0)


def test_maps_and_numbers_agree(light, rng):
    frame = frame_of(light, rng)
    maps = Camera(offset_adu=np.full(frame.shape, 100.0), gain_e_per_adu=np.full(frame.shape, 0.5), readout_noise_e=1.5)
    assert photon_balance(frame, light, maps) == pytest.approx(photon_balance(frame, light, CAMERA), abs=1e-4)


def test_light_is_never_negative():
    electrons = np.array([[0.0, 1.0]], np.float32)
    balance = photon_balance(np.full((8, 8), 90, np.uint16), np.zeros((8, 8), np.float32), CAMERA)
    assert balance.apply(electrons).min() >= 0
