"""The device path against the path on the CPU: recorded on a stand-in for a GPU that really runs the kernels.

`fiber_device.FiberDevice` has the device layer's protocol, keeps a list of all calls, and runs kernels in the emulation
on host memory; the network on it is OpenVINO's. What only a GPU has is not tested here: the driver's own behaviour.
"""

import ctypes
import logging
import types

import numpy as np
import pytest
from fiber_device import FiberDevice

import photonstep as ps
from photonstep import BackendError, Camera
from photonstep.runtime.backends import openvino
from photonstep.runtime.backends.cuda_device import DeviceMemoryError
from photonstep.runtime.cuda_path import CudaPath, full_limit, unsupported
from photonstep.runtime.plan import Plan
from photonstep.runtime.restore import Restorer

CAMERA = Camera(offset_adu=4.0, gain_e_per_adu=0.6, readout_noise_e=1.2)


class HostNetwork:
    """A network on the stand-in: OpenVINO on the memory that the addresses name."""

    def __init__(self, device, bundle, *, capturable=True, memory_bytes=0):
        self.device, self.largest_side_px, self.capturable = device, 4096, capturable
        self._session = openvino.open(bundle.network("fp32"), device="cpu", precision="fp32", threads=1)
        self._bytes, self._held = memory_bytes, []

    @property
    def memory_bytes(self):
        return sum(memory.size for memory in self._held)

    def prepare(self, shapes, input_address, output_address):
        if self._bytes:
            self._held.append(self.device.allocate(self._bytes * max(height * width for _, height, width in shapes)))
        self.device.record.append(("prepare", *shapes))
        return self.capturable

    def enqueue(self, stream, shape, input_address, output_address):
        assert stream == self.device.stream
        self.device.fail_where_asked("network")

        def run():
            planes = np.ctypeslib.as_array((ctypes.c_float * int(np.prod(shape))).from_address(input_address))
            out = np.ctypeslib.as_array((ctypes.c_float * (shape[1] * shape[2])).from_address(output_address))
            out[:] = self._session.run({"planes": planes.reshape(1, *shape)}).ravel()

        self.device.put(("network", shape), run)

    def release(self):
        for memory in self._held:
            memory.close()
        self._held.clear()


@pytest.fixture(scope="module")
def live():
    return ps.Bundle.load(ps.shipped_bundles()["live"])


@pytest.fixture(scope="module")
def on_cpu(live):
    opened = ps.load(live, device="cpu", backend="openvino", precision="fp32", threads=1)
    yield opened
    opened.close()


@pytest.fixture
def device():
    opened = FiberDevice()
    yield opened
    opened.check()


def path_of(device, bundle, **options):
    return CudaPath(bundle.manifest, HostNetwork(device, bundle, **options))


def plan(steps=1, **more):
    return Plan(steps=steps, **{"sampler": "ddim", **more})


def restored(path, frame, camera, made, tracker, **more):
    out = np.empty(frame.shape, np.float32 if made.output == "photoelectrons" else frame.dtype)
    return out, path.restore(frame, camera, made, tracker, out, **more)


def maps(shape, seed=0):
    rng = np.random.default_rng(seed)
    return Camera(
        offset_adu=rng.normal(4, 0.5, shape), gain_e_per_adu=rng.uniform(0.5, 0.7, shape),
        readout_noise_e=rng.uniform(0.5, 3, shape),
    )  # fmt: skip


def apart(a, b):
    return float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max())


def assert_same(on_cpu, path, frame, camera, made, **more):
    """Pixels within a count, flags, level and report as on the CPU."""
    wanted = on_cpu.restore(
        frame, camera=camera, steps=made.steps, sampler=made.sampler, output=made.output, report=made.report,
        seed=made.seed, tile_px=more.pop("cpu_tile_px", None),
    )  # fmt: skip
    image, finding = restored(path, frame, camera, made, on_cpu.tracker(), **more)
    assert apart(image, wanted.image) <= (1 if made.output == "input" and frame.dtype.kind == "u" else 0.05)
    assert np.mean(np.rint(image) != np.rint(wanted.image)) < 0.01
    assert finding.flags == wanted.flags
    assert finding.sigma == pytest.approx(wanted.sigma, rel=1e-5)
    assert finding.report == pytest.approx(wanted.report, rel=1e-3, abs=1e-4)
    return image


# --- the CPU's pixels ---


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_real_frames_come_out_as_on_the_cpu(device, live, on_cpu, two_photon, steps):
    frame = two_photon.raw[:96, :128]
    image = assert_same(on_cpu, path_of(device, live), frame, CAMERA, plan(steps))
    assert image.std() < 0.9 * frame.std()


@pytest.mark.parametrize("shape", [(16, 16), (61, 83), (97, 64), (33, 190)])
def test_odd_sizes(device, live, on_cpu, confocal, shape):
    frame = confocal.raw[: shape[0], : shape[1]]
    assert_same(on_cpu, path_of(device, live), frame, CAMERA, plan(2))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("output", ["input", "photoelectrons"])
@pytest.mark.parametrize("has_maps", [False, True], ids=["scalars", "maps"])
def test_dtypes_outputs_and_maps(device, live, on_cpu, confocal, dtype, output, has_maps):
    frame = confocal.raw[:64, :80].astype(dtype)
    camera = maps(frame.shape) if has_maps else CAMERA
    assert_same(on_cpu, path_of(device, live), frame, camera, plan(1, output=output, report=True))


@pytest.mark.parametrize("sampler", ["heun", "dpm_solver_pp_2m", "ddpm", "bridge", "consistency"])
def test_other_samplers(device, live, on_cpu, two_photon, sampler):
    frame = two_photon.raw[:48, :64]
    assert_same(on_cpu, path_of(device, live), frame, CAMERA, plan(3, sampler=sampler, seed=7))


def test_fibers_in_reverse_give_the_same_bits(live, two_photon, on_cpu):
    frame = two_photon.raw[:48, :64]
    images = [
        restored(path_of(FiberDevice(reverse=reverse), live), frame, CAMERA, plan(2), on_cpu.tracker())[0]
        for reverse in (False, True)
    ]
    np.testing.assert_array_equal(*images)


def test_strided_and_big_endian_frames(device, live, on_cpu, confocal):
    frame = confocal.raw[:128:2, 160:64:-1].astype(">u2")
    native = frame.astype("u2")
    path = path_of(device, live)
    image = np.empty(frame.shape, "u2")
    path.restore(frame, CAMERA, plan(), on_cpu.tracker(), image)
    np.testing.assert_array_equal(image, restored(path, native, CAMERA, plan(), on_cpu.tracker())[0])


def test_a_sequence_shares_the_trackers_memory(device, live, on_cpu, confocal):
    frames = [confocal.raw[:64, :64], confocal.raw[8:72, :64], (confocal.raw[:64, :64] // 4).astype(np.uint8)]
    ours, theirs, path = on_cpu.tracker(), on_cpu.tracker(), path_of(device, live)
    for frame in frames:
        image, finding = restored(path, frame, CAMERA, plan(), ours)
        wanted = on_cpu.restore(frame, camera=CAMERA, steps=1, tracker=theirs)
        assert apart(image, wanted.image) <= 1
        assert finding.sigma == pytest.approx(wanted.sigma, rel=1e-5)


def test_saturated_blocks_are_left_out_and_flagged(device, live, on_cpu, confocal):
    frame = confocal.raw[:64, :64].copy()
    frame[10:14, 20:40] = 255
    finding = assert_same(on_cpu, path_of(device, live), frame, CAMERA, plan(1, report=True))
    assert finding.max() > 200
    assert "saturated" in restored(path_of(device, live), frame, CAMERA, plan(), on_cpu.tracker())[1].flags


@pytest.mark.parametrize(
    ("dtype", "saturation", "limit"),
    [("uint8", None, 255), ("uint16", 4095.5, 4096), ("uint8", 300, None), ("float32", None, None), ("float32", 9, 9)],
)
def test_the_limit_of_full_pixels(dtype, saturation, limit):
    assert full_limit(np.dtype(dtype), Camera(saturation_adu=saturation)) == limit


def test_a_preview_comes_with_the_frame(device, live, on_cpu, confocal):
    frame, path = confocal.raw[:48, :64], path_of(device, live)
    image, _ = restored(path, frame, CAMERA, plan(), on_cpu.tracker(), preview=(10.0, 120.0))
    exact = np.clip((image.astype(np.float64) - 10) * 255 / 110, 0, 255)
    assert np.abs(path.grey - exact).max() <= 0.51
    restored(path, frame, CAMERA, plan(), on_cpu.tracker())
    assert path.grey is None


# --- what needs another path ---


def test_pixels_without_a_count_are_left_to_the_general_path(device, live, on_cpu, confocal):
    frame = confocal.raw[:32, :32].astype(np.float32)
    frame[3, 4] = np.nan
    assert restored(path_of(device, live), frame, CAMERA, plan(), on_cpu.tracker())[1] is None


def test_bundles_that_the_device_cannot_serve_are_named(live):
    assert unsupported(live.manifest) is None
    assert "enlarges" in unsupported(ps.Bundle.load(ps.shipped_bundles()["sr2"]).manifest)


def test_maps_of_another_shape_are_refused(device, live, on_cpu, confocal):
    with pytest.raises(ps.ShapeError, match=r"maps are \(9, 9\)"):
        restored(path_of(device, live), confocal.raw[:32, :32], maps((9, 9)), plan(), on_cpu.tracker())


# --- the record ---

PER_FRAME = ["graph launch", "synchronise"]


@pytest.mark.parametrize("has_maps", [False, True], ids=["scalars", "maps"])
def test_a_frame_after_the_first_costs_one_launch_and_one_wait(device, live, on_cpu, confocal, has_maps):
    path, camera = path_of(device, live), maps((64, 64)) if has_maps else CAMERA
    restored(path, confocal.raw[:64, :64], camera, plan(2), on_cpu.tracker())
    for top in (8, 16):
        before = len(device.record)
        image, _ = restored(path, confocal.raw[top : top + 64, :64], camera, plan(2), on_cpu.tracker())
        assert device.calls(before) == PER_FRAME
        wanted = on_cpu.restore(confocal.raw[top : top + 64, :64], camera=camera, steps=2).image
        assert apart(image, wanted) <= 1


def test_other_numbers_of_the_camera_need_no_new_recording(device, live, on_cpu, confocal):
    path, frame = path_of(device, live), confocal.raw[:64, :64]
    restored(path, frame, CAMERA, plan(), on_cpu.tracker())
    before = len(device.record)
    other = Camera(offset_adu=1.0, gain_e_per_adu=0.9, readout_noise_e=0.2)
    image, _ = restored(path, frame, other, plan(), on_cpu.tracker())
    assert device.calls(before) == PER_FRAME
    assert apart(image, on_cpu.restore(frame, camera=other, steps=1).image) <= 1


def test_another_correlation_fills_its_planes_once(device, live, on_cpu, widefield):
    path, frame = path_of(device, live), widefield.raw[:64, :64]
    restored(path, frame, CAMERA, plan(), on_cpu.tracker())
    camera = Camera(offset_adu=4.0, gain_e_per_adu=0.6, readout_noise_e=1.2, noise_correlation=(0.2, 0.4))
    before = len(device.record)
    image, _ = restored(path, frame, camera, plan(), on_cpu.tracker())
    assert device.calls(before) == ["upload", "ps_fill", "ps_fill", *PER_FRAME]
    assert apart(image, on_cpu.restore(frame, camera=camera, steps=1).image) <= 1
    before = len(device.record)
    restored(path, frame, camera, plan(), on_cpu.tracker())
    assert device.calls(before) == PER_FRAME


def test_the_graph_holds_the_frame_from_upload_to_download(device, live, on_cpu, confocal):
    path = path_of(device, live)
    restored(path, confocal.raw[:64, :64], CAMERA, plan(2), on_cpu.tracker())
    captured = [entry[1] for entry in device.record if entry[0] == "captured"]
    assert captured[:2] == ["upload", "upload"]
    assert captured[-2:] == ["download", "download"]
    assert captured.count("network") == captured.count("ps_sampler_row") == 2
    assert captured.index("ps_range") < captured.index("network") < captured.index("ps_balance")
    assert device.calls().count("capture") == 1


def test_one_graph_for_each_shape_and_plan(device, live, on_cpu, confocal):
    path = path_of(device, live)
    frame, tracker = confocal.raw[:32, :48], on_cpu.tracker()
    for _ in range(2):
        for steps in (1, 2, 4):
            restored(path, frame, CAMERA, plan(steps), tracker)
    assert device.calls().count("capture") == 3
    assert device.calls().count("graph launch") == 6
    held = path.memory_bytes
    restored(path, frame, CAMERA, plan(4), tracker)
    assert path.memory_bytes == held <= device.used_bytes  # the parameters are counted by the device alone


def test_shapes_beyond_those_that_are_kept_give_their_memory_back(device, live, on_cpu, confocal):
    path = path_of(device, live)
    for side in (32, 48, 64, 80):
        restored(path, confocal.raw[:side, :side], CAMERA, plan(), on_cpu.tracker())
    alone = FiberDevice()
    other = path_of(alone, live)
    for side in (64, 80):
        restored(other, confocal.raw[:side, :side], CAMERA, plan(), on_cpu.tracker())
    assert device.used_bytes == alone.used_bytes


def test_a_network_that_cannot_be_captured_is_put_on_the_stream(device, live, on_cpu, confocal):
    path, frame = path_of(device, live, capturable=False), confocal.raw[:64, :64]
    restored(path, frame, CAMERA, plan(2), on_cpu.tracker())
    before = len(device.record)
    image, _ = restored(path, frame, CAMERA, plan(2), on_cpu.tracker())
    calls = device.calls(before)
    assert not {"allocate", "allocate pinned", "capture", "graph launch"} & set(calls)
    assert calls.count("synchronise") == 1 and calls[-1] == "synchronise"
    assert calls.count("network") == 2
    assert apart(image, on_cpu.restore(frame, camera=CAMERA, steps=2).image) <= 1


# --- what goes wrong ---


def test_a_capture_that_fails_is_logged_and_the_frame_restored(device, live, on_cpu, confocal, caplog):
    device.fail("capture", "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED: operation not permitted")
    path, frame = path_of(device, live), confocal.raw[:32, :32]
    with caplog.at_level(logging.WARNING):
        image, _ = restored(path, frame, CAMERA, plan(), on_cpu.tracker())
    assert "without a CUDA graph" in caplog.text and "CAPTURE_UNSUPPORTED" in caplog.text
    assert apart(image, on_cpu.restore(frame, camera=CAMERA, steps=1).image) <= 1


@pytest.mark.parametrize("call", ["graph launch", "synchronise"])
def test_a_launch_that_fails_gives_its_cause(device, live, on_cpu, confocal, call):
    path, frame = path_of(device, live), confocal.raw[:32, :32]
    restored(path, frame, CAMERA, plan(), on_cpu.tracker())
    device.fail(call)
    with pytest.raises(BackendError, match="unspecified launch failure"):
        restored(path, frame, CAMERA, plan(), on_cpu.tracker())
    path.close()
    assert device.live == []


def test_closing_frees_everything(device, live, on_cpu, confocal):
    path = path_of(device, live, memory_bytes=3)
    for steps, camera in ((1, CAMERA), (2, maps((48, 48)))):
        restored(path, confocal.raw[:48, :48], camera, plan(steps), on_cpu.tracker())
    assert path.memory_bytes > 0
    path.close()
    assert device.live == []
    assert device.calls().count("graph close") == device.calls().count("capture") == 2
    restored(path, confocal.raw[:48, :48], CAMERA, plan(), on_cpu.tracker())  # and can begin again
    path.close()
    assert device.live == []


@pytest.fixture(scope="module")
def near_sighted(live):
    """The live bundle as if its pixels saw 16 px far, so that a small frame can be cut into tiles."""
    model = live.manifest.model.model_copy(update={"receptive_radius_px": 16})
    return live.manifest.model_copy(update={"model": model})


def test_a_frame_that_does_not_fit_is_restored_in_tiles(live, near_sighted, on_cpu, confocal, caplog, monkeypatch):
    monkeypatch.setattr("photonstep.runtime.cuda_path.TILES_PX", (128, 64, 32))
    frame = confocal.raw[:150, :170]
    whole = FiberDevice()
    restored(CudaPath(near_sighted, HostNetwork(whole, live, memory_bytes=64)), frame, CAMERA, plan(), on_cpu.tracker())
    device = FiberDevice(free_bytes=whole.used_bytes * 2 // 3)
    path = CudaPath(near_sighted, HostNetwork(device, live, memory_bytes=64))
    with caplog.at_level(logging.WARNING):
        image, _ = restored(path, frame, CAMERA, plan(), on_cpu.tracker())
    assert "is restored in tiles of 64 px: the GPU's memory is short" in caplog.text
    same = Restorer(types.SimpleNamespace(manifest=near_sighted), on_cpu.choice)
    assert apart(image, same.restore(frame, camera=CAMERA, steps=1, tile_px=64).image) <= 1
    before = len(device.record)
    again, _ = restored(path, frame, CAMERA, plan(), on_cpu.tracker())
    assert device.calls(before) == PER_FRAME
    np.testing.assert_array_equal(image, again)
    path.close()
    assert device.live == []


def test_tiles_that_are_asked_for_agree_with_the_whole(device, live, on_cpu, confocal):
    """With the network's true reach the halo of a small frame is the frame: tiles change nothing."""
    frame, path = confocal.raw[:96, :112], path_of(device, live)
    whole, _ = restored(path, frame, CAMERA, plan(2), on_cpu.tracker())
    tiled, _ = restored(path, frame, CAMERA, plan(2, tile_px=48), on_cpu.tracker())
    assert apart(tiled, whole) <= 1
    again, _ = restored(path, frame, CAMERA, plan(2), on_cpu.tracker())
    np.testing.assert_array_equal(again, whole)


def test_a_frame_that_fits_in_no_tiles_is_an_error(live, on_cpu, confocal):
    device = FiberDevice(free_bytes=10_000)
    path = path_of(device, live)
    with pytest.raises(DeviceMemoryError, match=r"96x96 px fits the GPU neither whole nor in tiles"):
        restored(path, confocal.raw[:96, :96], CAMERA, plan(), on_cpu.tracker())
    assert device.live == []


def test_memory_of_other_shapes_is_given_up_first(live, on_cpu, confocal):
    one = FiberDevice()
    restored(path_of(one, live), confocal.raw[:96, :96], CAMERA, plan(), on_cpu.tracker())
    device = FiberDevice(free_bytes=int(one.used_bytes * 1.2))
    path = path_of(device, live)
    restored(path, confocal.raw[:80, :80], CAMERA, plan(), on_cpu.tracker())
    restored(path, confocal.raw[:96, :96], CAMERA, plan(), on_cpu.tracker())
    assert device.used_bytes == one.used_bytes


def test_a_network_that_gives_no_numbers_is_an_error(device, live, on_cpu, confocal):
    network = HostNetwork(device, live)
    network._session = types.SimpleNamespace(run=lambda inputs: np.full((1, 1, 32, 32), np.nan, np.float32))
    with pytest.raises(BackendError, match="not finite"):
        restored(CudaPath(live.manifest, network), confocal.raw[:32, :32], CAMERA, plan(), on_cpu.tracker())
