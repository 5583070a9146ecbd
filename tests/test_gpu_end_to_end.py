"""Real frames on a real GPU, by every backend that can be used there, against the CPU. Skipped where there is none."""

import numpy as np
import pytest

import photonstep as ps
from photonstep import Camera
from photonstep.runtime.backends import choose
from photonstep.runtime.backends.while_building import SessionWhileBuilding

CAMERA = Camera(offset_adu=4.0, gain_e_per_adu=0.6, readout_noise_e=1.2)
# largest difference in counts: the same arithmetic in another order, or half precision inside the network
ALLOWED = {"fp32": 1, "fp16": 3}


@pytest.fixture(params=[(name, p) for name in choose.GPU_BACKENDS for p in ALLOWED], ids="-".join)
def on_gpu(request):
    name, precision = request.param
    cause = choose.GPU_BACKENDS[name].unavailable("cuda")
    if cause:
        pytest.skip(cause)
    restorer = ps.load("live", device="cuda", backend=name, precision=precision)
    if isinstance(restorer.choice.session, SessionWhileBuilding):
        assert restorer.choice.session.wait(600), "the engine is not built after ten minutes"
    yield restorer
    restorer.close()


@pytest.fixture(scope="module")
def on_cpu():
    opened = ps.load("live", device="cpu", backend="openvino", precision="fp32", threads=1)
    yield opened
    opened.close()


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_frames_come_out_as_on_the_cpu(on_gpu, on_cpu, confocal, steps):
    for frame in (confocal.raw, confocal.raw[:101, :173].astype(np.uint16)):
        got = on_gpu.restore(frame, camera=CAMERA, steps=steps, report=True)
        wanted = on_cpu.restore(frame, camera=CAMERA, steps=steps, report=True)
        assert np.abs(got.image.astype(int) - wanted.image).max() <= ALLOWED[on_gpu.precision]
        assert got.flags == wanted.flags
        assert got.report == pytest.approx(wanted.report, rel=0.02, abs=0.01)


def test_frames_stay_on_the_device_in_one_graph(on_gpu, confocal):
    on_gpu.restore(confocal.raw, camera=CAMERA)
    path = on_gpu._on_device.path
    assert path is not None
    assert path.latest.is_captured
    held = path.memory_bytes
    first, again = (on_gpu.restore(confocal.raw, camera=CAMERA).image for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert path.memory_bytes == held > 0


def test_closing_frees_the_gpus_memory_and_the_program_goes_on(on_gpu, on_cpu, confocal):
    on_gpu.restore(confocal.raw, camera=CAMERA)
    path = on_gpu._on_device.path
    on_gpu.close()
    assert path.memory_bytes == 0
    assert on_cpu.restore(confocal.raw, camera=CAMERA).image.shape == confocal.raw.shape
