"""photonstep: microscope frames restored at camera speed with few-step diffusion models.

>>> import photonstep as ps
>>> restorer = ps.load("base")
>>> restored = restorer(frame, camera=ps.Camera(offset_adu=100, gain_e_per_adu=0.46, readout_noise_e=1.6))
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path as _Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_checkout = _Path(__file__).resolve().parent.parent
if (_checkout / "setup.py").is_file() and (_checkout / "kernels").is_dir():
    # In a source checkout the rooms lie beside this folder; an installed package has them inside it.
    __path__.append(str(_checkout))

if TYPE_CHECKING:
    from .runtime.bundle import Bundle
    from .runtime.camera import Camera
    from .runtime.control import ControlLoop
    from .runtime.errors import (
        BackendError,
        BundleError,
        CameraError,
        DeadlineMissed,
        ImageError,
        PhotonstepError,
        PlanError,
        ShapeError,
        StreamError,
        StreamFull,
    )
    from .runtime.plan import Result
    from .runtime.restore import Restorer, load, shipped_bundles

# Public name -> module that defines it; imported when first used, so that `import photonstep` costs next to nothing.
_HOMES = {
    "Bundle": "bundle",
    "Camera": "camera",
    "ControlLoop": "control",
    "Restorer": "restore",
    "Result": "plan",
    "load": "restore",
    "shipped_bundles": "restore",
    "PhotonstepError": "errors",
    "BackendError": "errors",
    "BundleError": "errors",
    "CameraError": "errors",
    "DeadlineMissed": "errors",
    "ImageError": "errors",
    "PlanError": "errors",
    "ShapeError": "errors",
    "StreamError": "errors",
    "StreamFull": "errors",
    "TrainingError": "errors",
}

__all__ = [
    "BackendError",
    "Bundle",
    "BundleError",
    "Camera",
    "CameraError",
    "ControlLoop",
    "DeadlineMissed",
    "ImageError",
    "PhotonstepError",
    "PlanError",
    "Restorer",
    "Result",
    "ShapeError",
    "StreamError",
    "StreamFull",
    "TrainingError",
    "__version__",
    "load",
    "shipped_bundles",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'photonstep' has no attribute {name!r}")
    return getattr(import_module(f".runtime.{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
