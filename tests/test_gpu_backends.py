"""How sessions on a GPU are opened, checked and replaced, as far as that can be tested without one.

TensorRT-RTX really builds its engines here. Where the driver is needed, small recorded stand-ins take the library's
place: they show in which order it is called and what is made of its refusals, not what it computes.
"""

import subprocess
import sys
import threading
import types

import numpy as np
import pytest
from fiber_device import FiberDevice
from test_cuda_path import CAMERA, HostNetwork

import photonstep as ps
from photonstep import BackendError
from photonstep.kernels import disk_cache
from photonstep.runtime.backends import (
    choose,
    cuda_device,
    engine_build,
    onnxruntime,
    openvino,
    tensorrt,
    tensorrt_engine,
    tensorrt_rtx,
)
from photonstep.runtime.backends.choose import Choice
from photonstep.runtime.backends.cuda_device import DeviceMemoryError
from photonstep.runtime.backends.while_building import SessionWhileBuilding
from photonstep.runtime.restore import Restorer


@pytest.fixture(scope="module")
def live():
    return ps.Bundle.load(ps.shipped_bundles()["live"])


def on_cpu(bundle, precision="fp32"):
    return openvino.open(bundle.network("fp32"), device="cpu", precision=precision, threads=1)


class SessionOnStandIn:
    """A session whose network runs on the fiber device, as the GPU's sessions have one."""

    backend, device, precision = "stand-in", "cuda", "fp32"

    def __init__(self, bundle):
        self.gpu = FiberDevice()
        self.on_device = HostNetwork(self.gpu, bundle)
        self._session = on_cpu(bundle)
        self.closed = False

    def run(self, inputs):
        return self._session.run(inputs)

    def close(self):
        self.closed = True
        self.gpu.close()


# --- the restorer ---


def test_a_restorer_takes_the_device_path_and_frees_it(live, confocal):
    session = SessionOnStandIn(live)
    restorer = Restorer(live, Choice(session=session, trials=(), reason="test"))
    frames = np.stack([confocal.raw[:64, :64], confocal.raw[64:128, :64]])
    result = restorer.restore(frames, camera=CAMERA, steps=2, report=True)
    assert session.gpu.calls().count("graph launch") == 2
    assert (result.backend, result.network_ms) == ("stand-in", 0.0)
    plain = Restorer(live, Choice(session=on_cpu(live), trials=(), reason="test"))
    wanted = plain.restore(frames, camera=CAMERA, steps=2, report=True)
    assert np.abs(result.image.astype(int) - wanted.image).max() <= 1
    assert result.flags == wanted.flags
    assert result.report == pytest.approx(wanted.report, rel=1e-3, abs=1e-4)
    restorer.close()
    assert session.gpu.live == []
    assert session.closed
    with pytest.raises(BackendError, match="closed"):
        restorer.restore(frames, camera=CAMERA)


def test_what_the_device_cannot_do_goes_through_the_general_path(live, confocal):
    session = SessionOnStandIn(live)
    restorer = Restorer(live, Choice(session=session, trials=(), reason="test"))
    frame = confocal.raw[:64, :64].astype(np.float32)
    frame[5, 6] = np.nan
    assert "non_finite" in restorer.restore(frame, camera=CAMERA).flags
    restorer.restore(confocal.raw[:64, :64], camera=CAMERA, fusion=restorer.fusion())
    assert session.gpu.calls() == []
    restorer.close()


# --- a fallback while an engine builds ---


class Gate:
    """A build that ends when the test says so."""

    def __init__(self, result):
        self._open, self._result = threading.Event(), result

    def __call__(self):
        assert self._open.wait(30)
        if isinstance(self._result, Exception):
            raise self._result
        return self._result

    def open(self):
        self._open.set()


def test_the_fallback_answers_until_the_engine_is_there(live, confocal):
    engine, fallback = SessionOnStandIn(live), on_cpu(live)
    gate = Gate(engine)
    session = SessionWhileBuilding(fallback, gate)
    restorer = Restorer(live, Choice(session=session, trials=(), reason="test"))
    frame = confocal.raw[:48, :64]
    first = restorer.restore(frame, camera=CAMERA)
    assert (first.backend, restorer.device, session.is_built) == ("openvino", "cpu", False)
    gate.open()
    assert session.wait(30)
    second = restorer.restore(frame, camera=CAMERA)
    assert (second.backend, restorer.device, session.is_built) == ("stand-in", "cuda", True)
    assert engine.gpu.calls().count("graph launch") == 1
    assert np.abs(first.image.astype(int) - second.image).max() <= 1
    restorer.close()
    assert engine.closed
    assert engine.gpu.live == []


@pytest.mark.parametrize("error", [BackendError("no kernel"), RuntimeError("the library's own")])
def test_a_build_that_fails_leaves_the_fallback_and_says_why(live, confocal, error, caplog):
    gate = Gate(error)
    session = SessionWhileBuilding(on_cpu(live), gate)
    gate.open()
    assert session.wait(30)
    assert str(error) in session.cause
    assert str(error) in caplog.text
    assert not session.is_built
    restorer = Restorer(live, Choice(session=session, trials=(), reason="test"))
    assert restorer.restore(confocal.raw[:32, :32], camera=CAMERA).backend == "openvino"
    restorer.close()


def test_a_gpu_that_was_asked_for_and_failed_is_an_error(live, confocal):
    gate = Gate(BackendError("no kernel for this GPU"))
    session = SessionWhileBuilding(on_cpu(live), gate, must=True)
    restorer = Restorer(live, Choice(session=session, trials=(), reason="test"))
    assert restorer.restore(confocal.raw[:32, :32], camera=CAMERA).backend == "openvino"
    gate.open()
    assert session.wait(30)
    with pytest.raises(BackendError, match="cannot be built: no kernel for this GPU"):
        restorer.restore(confocal.raw[:32, :32], camera=CAMERA)
    restorer.close()


@pytest.mark.parametrize("when", ["before", "after"])
def test_closing_while_an_engine_builds_leaves_no_engine(live, when):
    engine = SessionOnStandIn(live)
    gate = Gate(engine)
    session = SessionWhileBuilding(on_cpu(live), gate)
    if when == "after":
        gate.open()
        assert session.wait(30)
    session.close()
    gate.open()
    assert session.wait(30)
    assert engine.closed


# --- choosing ---


def test_without_a_gpu_every_candidate_names_its_cause(monkeypatch):
    if cuda_device.unavailable() is None:
        pytest.skip("this machine has a usable GPU")
    with pytest.raises(BackendError, match=r"'cuda' cannot be used: tensorrt_rtx: .*; tensorrt: .*; onnxruntime: "):
        ps.load("live", device="cuda")
    for module in choose.GPU_BACKENDS.values():
        assert module.unavailable("cuda")
        assert module.precisions("cuda") == ()
        with pytest.raises(BackendError):
            module.open(b"", device="cuda", precision="fp16", threads=None)
    for module in (tensorrt, tensorrt_rtx):
        assert "not on 'cpu'" in module.unavailable("cpu") or "NVIDIA GPUs only" in module.unavailable("cpu")


def test_auto_takes_the_cpu_where_there_is_no_gpu_and_says_so(monkeypatch):
    monkeypatch.setattr(engine_build, "find_gpu", lambda: None)
    restorer = ps.load("live", precision="fp32", threads=1)
    assert restorer.device == "cpu"
    assert "on the CPU, since there is no NVIDIA GPU or driver" in restorer.choice.reason
    restorer.close()
    asked = ps.load("live", device="cpu", precision="fp32", threads=1)
    assert "since" not in asked.choice.reason
    asked.close()


def pretend_gpu(monkeypatch, module):
    """As if there were a GPU that this backend can use."""
    gpu = engine_build.Gpu(name="stand-in", capability="sm_86", driver="13000")
    monkeypatch.setattr(engine_build, "find_gpu", lambda: gpu)
    monkeypatch.setattr(cuda_device, "unavailable", lambda: None)
    for other in choose.GPU_BACKENDS.values():
        monkeypatch.setattr(other, "unavailable", lambda device: "not in this test")
    monkeypatch.setattr(module, "unavailable", lambda device: None)


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_an_engine_in_the_cache_is_opened_at_once(live, monkeypatch, device):
    pretend_gpu(monkeypatch, tensorrt_rtx)
    asked = []
    monkeypatch.setattr(tensorrt_rtx, "is_built", lambda network, precision: True)
    monkeypatch.setattr(
        tensorrt_rtx, "open", lambda network, **options: asked.append((network, options)) or SessionOnStandIn(live)
    )
    restorer = ps.load(live, device=device, threads=1)
    ((network, options),) = asked
    assert network == live.network("fp16")
    assert options["precision"] == "fp16"
    assert restorer.backend_name == "stand-in"
    assert "the bundle's network for GPUs; tensorrt_rtx comes first" in restorer.choice.reason
    restorer.close()


def test_int8_on_a_gpu_is_the_symmetric_network(live, monkeypatch):
    pretend_gpu(monkeypatch, tensorrt_rtx)
    asked = []
    monkeypatch.setattr(tensorrt_rtx, "is_built", lambda network, precision: True)
    monkeypatch.setattr(
        tensorrt_rtx, "open", lambda network, **options: asked.append(network) or SessionOnStandIn(live)
    )
    ps.load(live, device="cuda", precision="int8", threads=1).close()
    assert asked == [live.network("int8_symmetric")]


def test_an_engine_that_is_not_there_is_built_while_the_cpu_answers(live, monkeypatch, confocal):
    pretend_gpu(monkeypatch, tensorrt_rtx)
    gate = Gate(SessionOnStandIn(live))
    monkeypatch.setattr(tensorrt_rtx, "is_built", lambda network, precision: False)
    monkeypatch.setattr(tensorrt_rtx, "open", lambda network, **options: gate())
    restorer = ps.load(live, device="cuda", threads=1)
    assert restorer.restore(confocal.raw[:32, :32], camera=CAMERA).backend == "openvino"
    assert "openvino fp32 answers while the engine is built" in restorer.choice.reason
    gate.open()
    assert restorer.choice.session.wait(30)
    assert restorer.restore(confocal.raw[:32, :32], camera=CAMERA).backend == "stand-in"
    restorer.close()


def test_an_engine_that_computes_something_else_is_refused(live, monkeypatch):
    pretend_gpu(monkeypatch, tensorrt_rtx)
    wrong = SessionOnStandIn(live)
    run = wrong.run
    monkeypatch.setattr(wrong, "run", lambda inputs: run(inputs) + 1)
    monkeypatch.setattr(tensorrt_rtx, "is_built", lambda network, precision: True)
    monkeypatch.setattr(tensorrt_rtx, "open", lambda network, **options: wrong)
    with pytest.raises(BackendError, match=r"tensorrt_rtx: fp16 lies \d+\.\d+ of the noise from fp32"):
        ps.load(live, device="cuda", threads=1)
    assert wrong.closed


def test_the_next_backend_serves_where_the_first_does_not_know_the_gpu(live, monkeypatch):
    pretend_gpu(monkeypatch, tensorrt_rtx)
    monkeypatch.setattr(onnxruntime, "unavailable", lambda device: None)
    monkeypatch.setattr(tensorrt_rtx, "is_built", lambda network, precision: False)

    def failing(network, **options):
        raise BackendError("this TensorRT-RTX knows sm_89")

    monkeypatch.setattr(tensorrt_rtx, "open", failing)
    monkeypatch.setattr(onnxruntime, "open", lambda network, **options: SessionOnStandIn(live))
    restorer = ps.load(live, device="cuda", threads=1)
    assert restorer.choice.session.wait(30)
    assert restorer.backend_name == "stand-in"
    restorer.close()
    monkeypatch.setattr(onnxruntime, "open", failing)
    restorer = ps.load(live, device="cuda", threads=1)
    assert restorer.choice.session.wait(30)
    assert "tensorrt_rtx: this TensorRT-RTX knows sm_89; onnxruntime: " in restorer.choice.session.cause
    restorer.close()


def test_auto_goes_to_the_cpu_where_the_gpu_fails_and_says_so(live, monkeypatch, caplog):
    pretend_gpu(monkeypatch, tensorrt_rtx)
    monkeypatch.setattr(tensorrt_rtx, "is_built", lambda network, precision: True)

    def failing(network, **options):
        raise BackendError("the GPU fell off the bus")

    monkeypatch.setattr(tensorrt_rtx, "open", failing)
    restorer = ps.load(live, precision="fp32", threads=1)
    assert restorer.device == "cpu"
    assert "fell off the bus" in restorer.choice.reason
    assert "fell off the bus" in caplog.text
    restorer.close()
    with pytest.raises(BackendError, match="fell off the bus"):
        ps.load(live, device="cuda", precision="fp32", threads=1)


# --- TensorRT ---


def rtx_or_skip():
    cause = engine_build.unavailable("rtx")
    if cause:
        pytest.skip(cause)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_runtime_builds_engines_of_its_own_for_a_gpu_that_is_not_here(live, precision, tmp_path):
    rtx_or_skip()
    network = live.network(tensorrt_engine.NETWORKS[precision])
    profile = engine_build.Profile(smallest=(32, 32), usual=(64, 64), largest=(128, 128))
    options = {"precision": precision, "flavour": "rtx", "profile": profile, "targets": ("sm_89",), "folder": tmp_path}
    made = engine_build.cached_engine(network, "ab", **options)
    again = engine_build.cached_engine(network, "ab", **options)
    assert (made.cached, again.cached) == (False, True)
    assert made.path.stat().st_size > 100_000


def test_engines_are_built_without_the_training_side():
    rtx_or_skip()
    code = """
import importlib.abc, sys
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "onnx", "scipy"):
            raise ImportError(name + " is blocked in this test")
sys.meta_path.insert(0, Blocked())
import photonstep as ps
from photonstep.runtime.backends import engine_build
network = ps.Bundle.load(ps.shipped_bundles()["live"]).network("fp16")
profile = engine_build.Profile(smallest=(32, 32), usual=(32, 32), largest=(32, 32))
print(len(engine_build.compile_engine(network, flavour="rtx", profile=profile, targets=("sm_89",))))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100_000


class RecordedTensorRt(types.SimpleNamespace):
    """The part of the library's interface that runs an engine; computes nothing."""

    def __init__(self, *, refuse=(), capturable=True):
        calls = self.calls = []

        def answer(name, *arguments):
            calls.append((name, *arguments))
            return name not in refuse

        class Context:
            def __init__(self):
                for name in ("set_tensor_address", "execute_async_v3"):
                    setattr(self, name, lambda *a, name=name: answer(name, *a))
                self.is_stream_capturable = lambda stream: capturable
                self.shape = ()

            def set_input_shape(self, name, shape):
                self.shape = shape
                return answer("set_input_shape", name, shape)

            def update_device_memory_size_for_shapes(self):
                return 1000 * self.shape[2]

            def set_device_memory(self, address, size):
                calls.append(("set_device_memory", size))

        class Engine:
            num_io_tensors = 2

            def get_tensor_name(self, index):
                return ("planes", "residual")[index]

            def get_tensor_mode(self, name):
                return name == "planes"

            def create_execution_context(self, strategy):
                assert strategy == "mine"
                return Context() if answer("create_execution_context") else None

        class Runtime:
            def __init__(self, log):
                pass

            def deserialize_cuda_engine(self, engine):
                return Engine() if answer("deserialize", len(engine)) else None

        class Severity:
            ERROR, INTERNAL_ERROR = "error", "internal"

        super().__init__(
            Runtime=Runtime, ILogger=type("ILogger", (), {"Severity": Severity}),
            TensorIOMode=types.SimpleNamespace(INPUT=True),
            ExecutionContextAllocationStrategy=types.SimpleNamespace(USER_MANAGED="mine"),
        )  # fmt: skip


def network_of(monkeypatch, **options):
    library = RecordedTensorRt(**options)
    monkeypatch.setattr(engine_build, "library", lambda flavour: library)
    device = FiberDevice()
    return tensorrt_engine.TensorRtNetwork(b"engine", device, "classic"), library.calls, device


def test_addresses_are_set_once_and_every_evaluation_is_one_call_on_our_stream(monkeypatch):
    network, calls, device = network_of(monkeypatch)
    assert network.prepare([(4, 64, 64), (4, 32, 64)], 100, 200) is True
    assert network.memory_bytes == device.used_bytes == 64_000  # the larger shape's memory serves both
    assert [c for c in calls if c[0] == "set_device_memory"] == [("set_device_memory", 64_000)] * 2
    calls.clear()
    before = len(device.record)
    for _ in range(3):
        network.enqueue(device.stream, (4, 64, 64), 100, 200)
    assert calls == [("execute_async_v3", device.stream)] * 3
    assert device.calls(before) == []
    network.enqueue(device.stream, (4, 64, 64), 300, 200)
    assert calls[3:] == [
        ("set_tensor_address", "planes", 300),
        ("set_tensor_address", "residual", 200),
        ("execute_async_v3", device.stream),
    ]
    network.release()
    assert device.live == []


@pytest.mark.parametrize(
    ("refused", "says"),
    [
        ("deserialize", "cannot load the engine"),
        ("create_execution_context", "makes no execution context"),
        ("set_input_shape", r"refuses an input of shape \(4, 64, 64\)"),
        ("set_tensor_address", "refuses the address of 'planes'"),
        ("execute_async_v3", r"failed on an input of shape \(4, 64, 64\)"),
    ],
)
def test_whatever_tensorrt_refuses_is_a_backend_error(monkeypatch, refused, says):
    with pytest.raises(BackendError, match=says):
        network_of(monkeypatch, refuse=(refused,))[0].prepare([(4, 64, 64)], 100, 200)


def test_an_engine_that_cannot_be_captured_says_so(monkeypatch):
    assert network_of(monkeypatch, capturable=False)[0].prepare([(4, 64, 64)], 1, 2) is False


def test_no_memory_for_an_engine_is_told_apart(monkeypatch):
    network, _, device = network_of(monkeypatch)
    device.free_bytes = 10
    with pytest.raises(DeviceMemoryError):
        network.prepare([(4, 64, 64)], 1, 2)


def test_the_host_reaches_an_engine_through_pinned_memory(live):
    device = FiberDevice()
    network = HostNetwork(device, live)
    evaluate = tensorrt_engine.HostEvaluation(network)
    for shape in ((32, 48), (32, 48), (64, 32)):
        planes = np.random.default_rng(0).normal(0, 0.5, (1, 4, *shape)).astype(np.float32)
        np.testing.assert_array_equal(evaluate(planes), on_cpu(live).run({"planes": planes}))
    assert device.calls().count("prepare") == 2  # once a shape
    evaluate.close()
    assert device.live == []


# --- ONNX Runtime ---


def recorded_onnxruntime(monkeypatch, *, got, fails=None):
    """The library as if it had a CUDA provider; what a session really got is the test's choice."""
    import onnxruntime as ort

    asked = []

    class Session:
        def __init__(self, network, options, **more):
            asked.append((options, more))
            if fails:
                raise fails

        def get_providers(self):
            return got

        def get_inputs(self):
            return [types.SimpleNamespace(name="planes")]

        def get_outputs(self):
            return [types.SimpleNamespace(name="residual")]

    monkeypatch.setattr(ort, "InferenceSession", Session)
    monkeypatch.setattr(ort, "preload_dlls", lambda: None, raising=False)
    return asked


def test_a_session_that_silently_went_to_the_cpu_is_an_error(monkeypatch):
    recorded_onnxruntime(monkeypatch, got=["CPUExecutionProvider"])
    device = FiberDevice()
    with pytest.raises(BackendError, match="gave CPUExecutionProvider where CUDAExecutionProvider was asked for"):
        onnxruntime.OnnxRuntimeCudaSession(b"", precision="fp32", device=device)
    assert device.closed


def test_the_session_is_asked_for_on_our_stream_and_whole_on_the_gpu(monkeypatch):
    asked = recorded_onnxruntime(monkeypatch, got=["CUDAExecutionProvider", "CPUExecutionProvider"])
    device = FiberDevice()
    session = onnxruntime.OnnxRuntimeCudaSession(b"", precision="fp16", device=device)
    ((options, more),) = asked
    ((provider, settings),) = more["providers"]
    assert provider == "CUDAExecutionProvider"
    assert settings["user_compute_stream"] == str(device.stream)
    assert more["enable_fallback"] == 0
    assert options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
    assert session.on_device.device is device
    session.close()
    assert device.closed


def test_a_refusal_of_the_gpu_provider_is_a_backend_error_and_frees_the_device(monkeypatch):
    recorded_onnxruntime(monkeypatch, got=[], fails=RuntimeError("libcudnn.so.9: cannot open shared object file"))
    device = FiberDevice()
    with pytest.raises(BackendError, match="libcudnn"):
        onnxruntime.OnnxRuntimeCudaSession(b"", precision="fp16", device=device)
    assert device.closed


def test_the_cpu_build_of_onnxruntime_names_the_other_package():
    import onnxruntime as ort

    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this onnxruntime has a CUDA provider")
    assert "onnxruntime-gpu" in onnxruntime.unavailable("cuda")


def test_the_cpu_network_runs_bound_to_memory_by_address(live):
    """`OnnxRuntimeNetwork`'s binding, on the CPU provider: names, shapes and dtypes fit the bundle's network."""
    session = onnxruntime.open(live.network("fp32"), device="cpu", precision="fp32", threads=1)._session
    planes = np.random.default_rng(0).normal(0, 0.5, (1, 4, 32, 48)).astype(np.float32)
    out = np.zeros((1, 1, 32, 48), np.float32)
    network = onnxruntime.OnnxRuntimeNetwork(session, FiberDevice())
    binding = session.io_binding()
    binding.bind_input(network._input, "cpu", 0, np.float32, planes.shape, planes.ctypes.data)
    binding.bind_output(network._output, "cpu", 0, np.float32, out.shape, out.ctypes.data)
    session.run_with_iobinding(binding, network._options)
    np.testing.assert_allclose(out, on_cpu(live).run({"planes": planes}), atol=1e-4)


def test_a_cache_of_engines_is_the_folder_of_the_kernels_too(monkeypatch, tmp_path):
    monkeypatch.setenv(disk_cache.VARIABLE, str(tmp_path))
    assert tensorrt_engine.cache_folder() == tmp_path
