"""The fused walk of photonstep's own networks is the plain walk of `samplers.sample`, for every sampler."""

import numpy as np
import pytest

from photonstep.kernels import native
from photonstep.runtime import samplers, schedule
from photonstep.runtime.bundle import Bundle
from photonstep.runtime.denoiser import Denoiser, NetworkInputs, Scene
from photonstep.runtime.restore import find_bundle
from photonstep.runtime.samplers import SAMPLERS, FrameNoise

SHAPE = (32, 1040)  # wider than the kernels' scratch
SCENE = Scene(noise_correlation=(0.2, 0.1), measurement=np.random.default_rng(1).normal(size=SHAPE).astype(np.float32))
NOISE = FrameNoise(key=(11, 12), shape=SHAPE)
MAP = np.random.default_rng(2).uniform(0.03, 0.2, SHAPE).astype(np.float32)


class Smooth:
    """Stands in for a network: a cheap function of all its planes, and a record of what it was fed."""

    def __init__(self):
        self.fed = []

    def run(self, inputs):
        (planes,) = inputs.values()
        self.fed.append(planes.copy())
        image, level, along_y, along_x = planes[0]
        return np.tanh(image + level * 0.5 + along_y - along_x, dtype=np.float32)[None, None]


@pytest.fixture(scope="module")
def manifest():
    return Bundle.load(find_bundle("live")).manifest


@pytest.fixture(params=["native", "reference"])
def kernels(request):
    if request.param == "native":
        if native.library() is None:
            pytest.skip(f"native kernels are {native.cause()}")
        yield
    else:
        with native.use_reference():
            yield


def both(manifest, rows, sigma):
    plain, fused = Smooth(), Smooth()
    scene, x = SCENE, SCENE.measurement * 0.3
    before = x.copy()
    expected = samplers.sample(
        x, rows, Denoiser(manifest, plain).at(scene), sigma_map=sigma, noise=NOISE, measurement=scene.measurement
    )
    result = Denoiser(manifest, fused).walk(x, rows, scene, sigma_map=sigma, noise=NOISE)
    np.testing.assert_array_equal(x, before)
    return expected, result, plain, fused


@pytest.mark.parametrize("sigma", [0.08, MAP], ids=["number", "map"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_fused_walk_is_the_plain_walk(kernels, manifest, name, sigma):
    rows = samplers.table(name, schedule.measured(3))
    expected, result, plain, fused = both(manifest, rows, sigma)
    assert len(fused.fed) == len(plain.fed) == len(rows)
    np.testing.assert_allclose(result, expected, atol=2e-6, rtol=2e-6)
    np.testing.assert_allclose(np.stack(fused.fed), np.stack(plain.fed), atol=3e-5, rtol=1e-5)


def test_anchored_and_random_rows_see_measurement_and_noise(kernels, manifest):
    rows = samplers.table("bridge", schedule.measured(3), anchor=0.5)
    expected, result, *_ = both(manifest, rows, 0.08)
    np.testing.assert_allclose(result, expected, atol=2e-6, rtol=2e-6)
    quiet = samplers.table("ddim", schedule.measured(3))
    random = samplers.table("ddim", schedule.measured(3), eta=0.7)
    assert np.abs(both(manifest, random, 0.08)[1] - both(manifest, quiet, 0.08)[1]).max() > 0.01


class OneOutput(Smooth):
    """Writes every output to the same memory, as sessions may."""

    def run(self, inputs):
        output = super().run(inputs)
        self.output = getattr(self, "output", np.empty_like(output))
        self.output[...] = output
        return self.output


@pytest.mark.parametrize("name", ["heun", "dpm_solver_pp_2m"])
def test_the_estimate_before_is_not_the_one_after(manifest, name):
    """A network that returns x0_hat itself: rows that weigh the previous one must not read the session's memory."""
    foreign = manifest.model_copy(
        update={"model": manifest.model.model_copy(update={"prediction": "x0", "input_scaling": "edm"})}
    )
    rows, x = samplers.table(name, schedule.measured(3)), SCENE.measurement * 0.3
    kept, overwritten = (
        Denoiser(foreign, session).walk(x, rows, SCENE, sigma_map=0.1, noise=None)
        for session in (Smooth(), OneOutput())
    )
    np.testing.assert_array_equal(overwritten, kept)


def test_planes_of_one_value_follow_the_level_from_row_to_row_and_from_map_to_number(manifest):
    inputs = NetworkInputs(manifest)
    x = SCENE.measurement
    for sigma in (0.1, MAP, 0.1, 0.05):  # what the level's plane held before is gone
        planes = inputs(x, sigma, SCENE)[manifest.model.input_names[0]]
        level = np.broadcast_to(np.log(np.maximum(sigma, manifest.operating_range.sigma_min)) / 4, SHAPE)
        np.testing.assert_allclose(planes[0, 1], level, atol=1e-5)
        assert (planes[0, 2] == np.float32(0.2)).all()
        assert (planes[0, 3] == np.float32(0.1)).all()


def test_a_frames_noise_is_the_same_in_every_tile():
    whole = FrameNoise.of(np.arange(80, dtype=np.uint16).reshape(8, 10), (64, 70), seed=3)
    rows, columns = slice(13, 50), slice(7, 66)
    part = whole.window((rows, columns))
    assert part.shape == (37, 59)
    np.testing.assert_array_equal(part(2), whole(2)[rows, columns])
    twice = part.window((slice(5, 9), slice(3, 20)))
    np.testing.assert_array_equal(twice(2), whole(2)[18:22, 10:27])


def test_a_frames_noise_depends_on_frame_seed_and_row():
    frame = np.arange(80, dtype=np.uint16).reshape(8, 10)
    other = frame.copy()
    other[3, 4] += 1
    drawn = [
        FrameNoise.of(frame, (16, 16))(0),
        FrameNoise.of(frame, (16, 16), seed=1)(0),
        FrameNoise.of(frame, (16, 16), seed=2**40)(0),
        FrameNoise.of(frame, (16, 16))(1),
        FrameNoise.of(other, (16, 16))(0),
        FrameNoise.of(frame[::-1], (16, 16))(0),
    ]
    for i, a in enumerate(drawn):
        for b in drawn[:i]:
            assert np.abs(a - b).max() > 0.5
    np.testing.assert_array_equal(FrameNoise.of(np.asfortranarray(frame), (16, 16))(0), drawn[0])
