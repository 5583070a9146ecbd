"""Backends agree with one another and with what every shipped bundle promises; what they cannot do, they say."""

import sys

import numpy as np
import pytest

import photonstep as ps
from photonstep import BackendError, Camera
from photonstep.runtime.backends import choose, onnxruntime, openvino
from photonstep.runtime.backends.choose import BACKENDS, PARITY_BUDGET, PRECISIONS
from photonstep.runtime.denoiser import NetworkInputs, output_weight

SHIPPED = sorted(ps.shipped_bundles())
COMBINATIONS = [("openvino", "fp32"), ("openvino", "bf16"), ("onnxruntime", "fp32")]


@pytest.fixture(scope="module", params=SHIPPED)
def bundle(request):
    return ps.Bundle.load(ps.shipped_bundles()[request.param])


def real_inputs(bundle, frame, shape=(96, 128), correlation=(0.1, 0.3)):
    """Network inputs of a real frame: its stabilised pixels in the model's range, at an ordinary noise level."""
    rows, columns = (n // bundle.manifest.model.multiple * bundle.manifest.model.multiple for n in shape)
    u = np.sqrt(frame[:rows, :columns].astype(np.float32)) / 16 - 0.5
    return NetworkInputs(bundle.manifest)(u, 0.06, correlation)


def opened(bundle, backend, precision="fp32"):
    return BACKENDS[backend].open(bundle.network("fp32"), device="cpu", precision=precision, threads=1)


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
    assert [t.precision for t in choice.trials] == list(openvino.precisions("cpu"))
    chosen = next(t for t in choice.trials if t.precision == restorer.precision)
    within = [t for t in choice.trials if t.error_in_noise <= PARITY_BUDGET]
    assert chosen in within
    assert chosen.best_ms == min(t.best_ms for t in within)
    for trial in choice.trials:
        assert f"{trial.precision} {trial.best_ms:.1f} ms" in choice.reason
    restorer.close()


def test_a_precision_that_is_wrong_is_not_chosen_however_fast(bundle, monkeypatch):
    if "bf16" not in openvino.precisions("cpu"):
        pytest.skip("this CPU has no bfloat16, so that auto has nothing to turn down")
    monkeypatch.setattr(choose, "PARITY_BUDGET", 1e-9)
    restorer = ps.load(bundle, threads=1)
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
