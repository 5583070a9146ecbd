"""Backends agree with one another and with what every shipped bundle promises; what they cannot do, they say."""

import json
import subprocess
import sys

import numpy as np
import pytest

import photonstep as ps
from photonstep import BackendError, Camera, doctor
from photonstep.export.activation_ranges import observed_ranges
from photonstep.export.qdq import with_qdq
from photonstep.runtime.backends import choose, onnxruntime, openvino
from photonstep.runtime.backends.choose import BACKENDS, INT8_BUDGET, PARITY_BUDGET, PRECISIONS
from photonstep.runtime.bundle import write_bundle
from photonstep.runtime.denoiser import NetworkInputs, Scene, output_weight

SHIPPED = sorted(ps.shipped_bundles())
COMBINATIONS = [("openvino", "fp32"), ("openvino", "bf16"), ("onnxruntime", "fp32")]


@pytest.fixture(scope="module", params=SHIPPED)
def bundle(request):
    return ps.Bundle.load(ps.shipped_bundles()[request.param])


@pytest.fixture(scope="module")
def float_bundle(bundle, tmp_path_factory):
    """The bundle with its float32 network alone."""
    import json

    fields = json.loads(bundle.manifest.to_json())
    for name in ("format", "format_version", "members", "frame_graphs", "model_card", "report"):
        fields.pop(name, None)
    fields["networks"] = [n for n in fields["networks"] if n["precision"] == "fp32"]
    kept = [fields["networks"][0]["member"], *(fields["test_frame"][k]["member"] for k in ("input", "expected"))]
    path = tmp_path_factory.mktemp("float") / "float.photonstep"
    return write_bundle(path, fields, {name: bundle.read(name) for name in kept})


def real_inputs(bundle, frame, shape=(96, 128), correlation=(0.1, 0.3)):
    """Network inputs of a real frame: its stabilised pixels in the model's range, at an ordinary noise level."""
    multiple = bundle.manifest.model.multiple
    rows, columns = (max(n // multiple, 1) * multiple for n in shape)
    u = np.sqrt(frame[:rows, :columns].astype(np.float32)) / 16 - 0.5
    return NetworkInputs(bundle.manifest)(u, 0.06, Scene(noise_correlation=correlation))


def opened(bundle, backend, precision="fp32"):
    return BACKENDS[backend].open(bundle.network("fp32"), device="cpu", precision=precision, threads=1)


@pytest.fixture(scope="module")
def int8_network(bundle, confocal):
    """The bundle's network with INT8 convolutions, its ranges taken from one real frame."""
    network = bundle.network("fp32")
    states = [real_inputs(bundle, confocal.raw)["planes"].copy()]
    return with_qdq(network, observed_ranges(network, states), "cpu")


def with_int8(bundle, int8_network, folder):
    """The same bundle, holding the INT8 network too."""
    fields = json.loads(bundle.read("manifest.json"))
    opset = fields["networks"][0]["opset"]
    fields["networks"].append({"precision": "int8", "member": "step_int8.onnx", "opset": opset})
    members = {name: bundle.read(name) for name in bundle.members if name != "manifest.json"}
    kept = {name: value for name, value in fields.items() if name not in ("format", "format_version", "members")}
    return write_bundle(folder / "quantised.photonstep", kept, members | {"step_int8.onnx": int8_network})


@pytest.fixture(scope="module")
def int8_bundle(float_bundle, int8_network, tmp_path_factory):
    return with_int8(float_bundle, int8_network, tmp_path_factory.mktemp("bundle"))


def skip_unless_offered(backend, precision):
    cause = BACKENDS[backend].unavailable("cpu")
    if cause:
        pytest.skip(cause)
    if precision not in BACKENDS[backend].precisions("cpu"):
        pytest.skip(f"{backend} offers {', '.join(BACKENDS[backend].precisions('cpu'))} on this CPU, not {precision}")


# --- they agree ---


@pytest.mark.parametrize("shape", [(16, 16), (96, 128), (256, 48)])
def test_openvino_and_onnx_runtime_compute_the_same(bundle, confocal, shape):
    skip_unless_offered("onnxruntime", "fp32")
    inputs = real_inputs(bundle, confocal.raw, shape)
    one, other = opened(bundle, "openvino"), opened(bundle, "onnxruntime")
    a, b = one.run(inputs).copy(), other.run(inputs).copy()
    one.close()
    other.close()
    assert a.dtype == b.dtype == np.float32
    assert a.shape == b.shape == (1, 1, *next(iter(inputs.values())).shape[-2:])
    assert np.abs(a - b).max() <= 1e-4 * np.abs(b).max()
    assert np.abs(b).max() > 0.1  # a network that says nothing agrees with everything


@pytest.mark.parametrize(("backend", "precision"), [c for c in COMBINATIONS if c[1] != "fp32"])
def test_lower_precision_stays_within_the_parity_budget(bundle, confocal, backend, precision):
    skip_unless_offered(backend, precision)
    inputs = real_inputs(bundle, confocal.raw)
    exact, low = opened(bundle, backend), opened(bundle, backend, precision)
    error = np.sqrt(np.mean((low.run(inputs) - exact.run(inputs)) ** 2)) * output_weight(bundle.manifest, 0.06)
    assert 0 < error <= PARITY_BUDGET


@pytest.mark.parametrize("backend", BACKENDS)
def test_int8_runs_on_every_backend_within_its_budget(bundle, int8_network, confocal, backend):
    skip_unless_offered(backend, "int8")
    inputs = real_inputs(bundle, confocal.raw)
    exact = opened(bundle, backend)
    low = BACKENDS[backend].open(int8_network, device="cpu", precision="int8", threads=1)
    error = np.sqrt(np.mean((low.run(inputs) - exact.run(inputs)) ** 2)) * output_weight(bundle.manifest, 0.06)
    assert low.precision == "int8"
    assert 1e-4 < error <= INT8_BUDGET / 2  # another network than the float one, and well within


@pytest.mark.parametrize("layer", ["down_blocks.0.0.conv2", "up_blocks.0.0.conv1"])
def test_an_int8_layer_is_the_same_in_openvino_and_onnx_runtime(bundle, confocal, layer):
    """A layer alone: through many, a difference in rounding grows to that of two independent quantisations."""
    for backend in BACKENDS:
        skip_unless_offered(backend, "int8")
    inputs = real_inputs(bundle, confocal.raw)
    network = bundle.network("fp32")
    ranges = observed_ranges(network, [inputs["planes"].copy()])
    quantised = with_qdq(network, ranges, "cpu", in_float=set(ranges) - {layer})
    exact = opened(bundle, "onnxruntime").run(inputs)
    one = openvino.OpenVinoSession(quantised, precision="fp32", threads=1).run(inputs)  # INT8 as it is, all else fp32
    other = BACKENDS["onnxruntime"].open(quantised, device="cpu", precision="int8", threads=1).run(inputs)
    apart, from_exact = (float(np.sqrt(np.mean((other - a) ** 2))) for a in (one, exact))
    assert from_exact > 1e-3
    assert apart < 0.05 * from_exact


def test_int8_costs_as_much_in_openvino_as_in_onnx_runtime(bundle, int8_network, confocal):
    for backend in BACKENDS:
        skip_unless_offered(backend, "int8")
    inputs = real_inputs(bundle, confocal.raw)
    exact = opened(bundle, "onnxruntime").run(inputs)
    errors = {}
    for backend in BACKENDS:
        output = BACKENDS[backend].open(int8_network, device="cpu", precision="int8", threads=1).run(inputs)
        errors[backend] = float(np.sqrt(np.mean((output - exact) ** 2)))
    # OpenVINO's layers in float are bfloat16 where the CPU has it
    bf16 = opened(bundle, "openvino", "bf16").run(inputs) if "bf16" in openvino.precisions("cpu") else exact
    of_bf16 = float(np.mean((bf16 - exact) ** 2))
    assert errors["openvino"] < 1.2 * np.sqrt(errors["onnxruntime"] ** 2 + of_bf16)


@pytest.mark.parametrize(("backend", "precision"), COMBINATIONS)
def test_every_bundle_restores_its_test_frame_as_promised(bundle, backend, precision):
    skip_unless_offered(backend, precision)
    promised = bundle.manifest.test_frame
    assert promised is not None
    restorer = ps.load(bundle, backend=backend, precision=precision, threads=1)
    camera = Camera(**promised.camera.model_dump())
    restored = restorer(bundle.read_array(promised.input), camera=camera)
    restorer.close()
    difference = np.abs(restored.astype(int) - bundle.read_array(promised.expected).astype(int))
    assert difference.max() <= promised.tolerance_counts
    if precision == "fp32":
        assert np.mean(difference > 0) < 0.01  # the expected pixels are those of the fp32 network


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sessions_result_does_not_depend_on_what_it_saw_before(bundle, confocal, backend):
    skip_unless_offered(backend, "fp32")
    session = opened(bundle, backend)
    wanted = session.run(real_inputs(bundle, confocal.raw)).copy()
    for side in range(32, 32 + 16 * (openvino.SHAPES_KEPT + 2), 16):  # more shapes than are kept compiled
        session.run(real_inputs(bundle, confocal.raw, (side, 64)))
    np.testing.assert_array_equal(session.run(real_inputs(bundle, confocal.raw)), wanted)
    session.close()


# --- choosing ---


def test_auto_takes_the_fastest_within_the_budget_and_says_why(bundle):
    restorer = ps.load(bundle, threads=1)
    choice = restorer.choice
    assert restorer.backend_name == "openvino"  # the core dependency comes first
    assert [t.precision for t in choice.trials] == [
        p for p in openvino.precisions("cpu") if p != "int8" or "int8" in bundle.networks
    ]
    chosen = next(t for t in choice.trials if t.precision == restorer.precision)
    within = [t for t in choice.trials if t.error_in_noise <= PARITY_BUDGET]
    assert chosen in within
    assert chosen.best_ms == min(t.best_ms for t in within)
    for trial in choice.trials:
        assert f"{trial.precision} {trial.best_ms:.1f} ms" in choice.reason
    restorer.close()


def test_auto_times_int8_where_the_bundle_has_one(int8_bundle):
    skip_unless_offered("openvino", "int8")
    restorer = ps.load(int8_bundle, threads=1)
    choice = restorer.choice
    trials = {t.precision: t for t in choice.trials}
    assert set(trials) == set(openvino.precisions("cpu"))
    assert PARITY_BUDGET / 1000 < trials["int8"].error_in_noise <= INT8_BUDGET
    assert trials[restorer.precision].best_ms == min(t.best_ms for t in choice.trials)
    restorer.close()


def test_int8_that_is_computed_wrongly_is_not_chosen(int8_bundle, monkeypatch):
    skip_unless_offered("openvino", "int8")
    run = openvino.OpenVinoSession.run

    def saturating(session, inputs):
        output = run(session, inputs)
        return np.clip(output, -0.5, 0.5) if session.precision == "int8" else output

    monkeypatch.setattr(openvino.OpenVinoSession, "run", saturating)
    restorer = ps.load(int8_bundle, threads=1)
    assert restorer.precision != "int8"
    assert next(t for t in restorer.choice.trials if t.precision == "int8").error_in_noise > INT8_BUDGET
    restorer.close()


def test_a_precision_that_the_library_refuses_is_passed_over(int8_bundle, monkeypatch):
    skip_unless_offered("openvino", "int8")
    compiled = openvino.OpenVinoSession._compile

    def refusing(session, inputs, key):
        if session.precision != "fp32":
            raise BackendError("no such kernel")
        return compiled(session, inputs, key)

    monkeypatch.setattr(openvino.OpenVinoSession, "_compile", refusing)
    restorer = ps.load(int8_bundle, threads=1)
    assert restorer.precision == "fp32"
    assert "int8 cannot run here: no such kernel" in restorer.choice.reason
    restorer.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_int8_by_name_restores_the_test_frame(int8_bundle, backend):
    skip_unless_offered(backend, "int8")
    trial, restorer = doctor._try("int8", int8_bundle, backend=backend, precision="int8", threads=1)
    assert restorer.precision == "int8"
    assert trial.is_right, trial.comparison
    assert "of the noise apart" in trial.comparison
    restorer.close()


def test_int8_is_refused_where_the_bundle_has_none(float_bundle):
    with pytest.raises(BackendError, match="holds fp32 and no int8 network"):
        ps.load(float_bundle, precision="int8")


def test_a_precision_that_is_wrong_is_not_chosen_however_fast(float_bundle, monkeypatch):
    if "bf16" not in openvino.precisions("cpu"):
        pytest.skip("this CPU has no bfloat16, so that auto has nothing to turn down")
    monkeypatch.setattr(choose, "PARITY_BUDGET", 1e-9)
    restorer = ps.load(float_bundle, threads=1)
    assert restorer.precision == "fp32"
    restorer.close()


def test_what_is_asked_for_is_taken_without_a_trial(bundle):
    restorer = ps.load(bundle, backend="openvino", precision="fp32", threads=1)
    assert restorer.choice.trials == ()
    assert "asked for" in restorer.choice.reason
    restorer.close()


# --- refusals ---


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_no_network_is_refused(backend):
    skip_unless_offered(backend, "fp32")
    with pytest.raises(BackendError, match="refuses the network"):
        BACKENDS[backend].open(b"not a network", device="cpu", precision="fp32", threads=None)


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_that_do_not_fit_are_a_backend_error_with_their_shape(bundle, backend):
    skip_unless_offered(backend, "fp32")
    session = opened(bundle, backend)
    wrong = {name: np.zeros((1, 3, 32, 32), np.float32) for name in bundle.manifest.model.input_names}
    with pytest.raises(BackendError, match=r"\(1, 3, 32, 32\)"):
        session.run(wrong)
    session.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gpu_is_refused_with_the_cause(backend):
    assert "cuda" in BACKENDS[backend].unavailable("cuda")
    assert BACKENDS[backend].precisions("cuda") == ()
    with pytest.raises(BackendError, match="cuda"):
        BACKENDS[backend].open(b"", device="cuda", precision="fp32", threads=None)


@pytest.mark.parametrize("module", [openvino, onnxruntime], ids=BACKENDS)
def test_a_library_that_is_not_installed_is_named_with_its_remedy(module, monkeypatch, bundle):
    monkeypatch.setitem(sys.modules, module.name, None)
    assert "python -m pip install" in module.unavailable("cpu")
    with pytest.raises(BackendError, match=f"{module.name} cannot be imported"):
        ps.load(bundle, backend=module.name)


def test_every_backend_tells_its_version_and_its_precisions():
    for module in BACKENDS.values():
        skip_unless_offered(module.name, "fp32")
        assert module.version()[0].isdigit()
        assert module.precisions("cpu")[0] == "fp32"
        assert set(module.precisions("cpu")) <= set(PRECISIONS)


def test_ctrl_c_stops_a_program_that_has_used_and_closed_restorers():
    program = """
import os, signal, time
import numpy as np
import photonstep as ps
frame = np.random.default_rng(0).poisson(50, (64, 64)).astype(np.uint16)
restorers = [ps.load("live", device="cpu"), ps.load("live", device="cpu", precision="fp32")]
while restorers:
    restorers[0].restore(frame)
    restorers.pop(0).close()
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(10)
except KeyboardInterrupt:
    print("stopped in good order")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout.strip()) == (0, "stopped in good order"), ended.stderr
