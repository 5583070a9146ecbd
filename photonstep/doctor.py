"""``photonstep doctor``: what this machine can run, found out by running it.

A list of providers proves nothing: libraries name devices that they then cannot use. So every backend restores a real
frame here, is timed, and is compared with the result that the bundle says must come out.
"""

import ctypes
import shutil
import subprocess
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

import photonstep
from photonstep.demo import DEMO_FRAME
from photonstep.kernels import native
from photonstep.latency import Latency, measure_latency
from photonstep.runtime.backends import openvino
from photonstep.runtime.backends.choose import budget
from photonstep.runtime.backends.while_building import SessionWhileBuilding
from photonstep.runtime.camera import Camera
from photonstep.runtime.errors import PhotonstepError
from photonstep.runtime.images import open_image
from photonstep.runtime.restore import find_bundle

# (backend, device, precision) that a machine may have; `auto` chooses among them.
CANDIDATES = (
    ("openvino", "cpu", "int8"),
    ("openvino", "cpu", "bf16"),
    ("openvino", "cpu", "fp32"),
    ("onnxruntime", "cpu", "int8"),
    ("onnxruntime", "cpu", "fp32"),
    ("tensorrt_rtx", "cuda", "fp16"),
    ("tensorrt", "cuda", "fp16"),
    ("onnxruntime", "cuda", "fp16"),
    ("onnxruntime", "cuda", "fp32"),
)
RUN_BUDGET_S, RUNS = 1.0, 20


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One backend, tried: either it ran (``latency``), or ``cause`` says why not.

    ``difference_counts`` is the largest difference from the pixels that the bundle promises, ``error_in_noise`` its rms
    in units of the frame's noise. The promise is that of the fp32 network: INT8, a network of its own, has
    ``allowed_in_noise`` instead of ``tolerance_counts``.
    """

    name: str
    latency: Latency | None = None
    difference_counts: float | None = None
    tolerance_counts: float | None = None
    error_in_noise: float | None = None
    allowed_in_noise: float | None = None
    cause: str | None = None

    @property
    def is_right(self) -> bool:
        """Whether the restored test frame fits; True when there is nothing to compare with."""
        if self.error_in_noise is not None and self.allowed_in_noise is not None:
            return self.error_in_noise <= self.allowed_in_noise
        if self.difference_counts is None or self.tolerance_counts is None:
            return True
        return self.difference_counts <= self.tolerance_counts

    @property
    def comparison(self) -> str | None:
        """How far from the promised pixels, and how far is allowed; None when there is nothing to compare with."""
        if self.error_in_noise is not None and self.allowed_in_noise is not None:
            return f"{self.error_in_noise:.3f} of the noise apart, {self.allowed_in_noise:g} allowed"
        if self.difference_counts is None or self.tolerance_counts is None:
            return None
        return f"at most {self.difference_counts:g} counts apart, {self.tolerance_counts:g} allowed"


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What `examine` found; ``auto`` is the trial of what the automatic choice took, ``choice`` says why.

    ``kernels`` says what runs the per-pixel maths around the network: the native library, or the reference and why.
    """

    kernels: str
    devices: tuple[tuple[str, str], ...]
    trials: tuple[Trial, ...]
    auto: Trial
    choice: str

    @property
    def can_run(self) -> bool:
        """Whether the automatic choice restored a frame, and restored it to the pixels that the bundle promises."""
        return self.auto.latency is not None and self.auto.is_right


def examine(bundle: str) -> Diagnosis:
    """Try every backend on this machine with a bundle, and what ``auto`` chooses.

    Raises
    ------
    BundleError : no such bundle; one that is damaged is the cause of a trial that failed
    """
    find_bundle(bundle)
    trials = tuple(
        _try(f"{backend} {precision} on {device}", bundle, device=device, backend=backend, precision=precision)[0]
        for backend, device, precision in CANDIDATES
    )
    auto, restorer = _try("auto", bundle)
    choice = "nothing can run" if restorer is None else restorer.choice.reason
    if restorer is not None:
        name = f"{restorer.backend_name} {restorer.precision} on {restorer.device}"
        auto = Trial(**{**vars(auto), "name": name})
    return Diagnosis(kernels=kernels(), devices=devices(), trials=trials, auto=auto, choice=choice)


def kernels() -> str:
    """Return what runs the per-pixel maths, or why nothing can."""
    try:
        return native.describe()
    except native.KernelError as error:
        return f"none: {error}"


def devices() -> tuple[tuple[str, str], ...]:
    """Return (kind, what is known) of the devices beside the CPU."""
    found = [("NVIDIA GPU", _nvidia())]
    try:
        core = openvino.core()
        names = [f"{name} ({core.get_property(name, 'FULL_DEVICE_NAME')})" for name in core.available_devices]
        found.append(("OpenVINO devices", ", ".join(names)))
    except (ImportError, RuntimeError) as error:
        found.append(("OpenVINO devices", f"none: {error}"))
    return tuple(found)


def _nvidia() -> str:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "none: the driver's library libcuda.so.1 is not on this machine"
    if shutil.which("nvidia-smi") is None:
        return "the driver's library is there, nvidia-smi is not"
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return f"the driver does not answer ({error})"


def _try(name: str, bundle: str, **choices: Any) -> tuple[Trial, Any]:
    """Load, restore the test frame, compare and time; any refusal becomes the trial's cause."""
    try:
        restorer = photonstep.load(bundle, **choices)
        if isinstance(restorer.choice.session, SessionWhileBuilding):
            restorer.choice.session.wait()  # the engine is what was asked about, not what answers meanwhile
        frame, expected, camera, tolerance = _test_frame(restorer.bundle)
        result = restorer.restore(frame, camera=camera)
        latency = measure_latency(restorer, frame, camera=result.camera, budget_s=RUN_BUDGET_S, max_runs=RUNS)
    except PhotonstepError as error:
        return Trial(name=name, cause=str(error)), None
    compared: dict[str, float | None] = {}
    if expected is not None:
        compared["difference_counts"] = float(np.abs(result.image.astype(np.float64) - expected).max())
        noise_units = result.camera.stabilise(result.image) - result.camera.stabilise(expected)
        compared["error_in_noise"] = float(np.sqrt(np.mean(noise_units**2)))
        quantised = restorer.precision == "int8"
        compared["allowed_in_noise" if quantised else "tolerance_counts"] = budget("int8") if quantised else tolerance
    return Trial(name=name, latency=latency, **compared), restorer


def _test_frame(bundle: Any) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None, Camera | None, float | None]:
    """Return the bundle's test frame with what must come out; the demo's frame when the bundle has none."""
    test = bundle.manifest.test_frame
    if test is not None:
        frame, expected = bundle.read_array(test.input), bundle.read_array(test.expected)
        return frame, expected, Camera(**test.camera.model_dump()), test.tolerance_counts
    with open_image(DEMO_FRAME) as reader:
        return next(plane for _, plane in reader.planes()), None, None, None
