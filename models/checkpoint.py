"""Trained weights in: from a run folder, a ``weights.pt``, or the fp32 network of a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..runtime.bundle import SUFFIX, Bundle
from ..runtime.errors import TrainingError
from ..runtime.restore import find_bundle, shipped_bundles
from .network import Denoiser, NetworkConfig, config_of
from .stem import unshuffled_weight

WEIGHTS, CHECKPOINT, CONFIG = "weights.pt", "checkpoint.pt", "config.json"


def load_network(source: str | Path) -> Denoiser:
    """The network of a training run or of a bundle, in evaluation mode on the CPU.

    Parameters
    ----------
    source : a run folder (its averaged weights, finished or so far), a ``weights.pt``, a ``.photonstep`` file, or the
        name of a shipped bundle

    Raises
    ------
    TrainingError : nothing there, or weights of another kind
    BundleError : a damaged bundle
    """
    path = Path(source)
    if str(source) in shipped_bundles() or path.suffix == SUFFIX:
        return network_of_bundle(Bundle.load(find_bundle(source)))
    if path.is_dir():
        return _of_run(path)
    if not path.is_file():
        raise TrainingError(
            f"no weights at {path}; expected a run folder, a {WEIGHTS}, a {SUFFIX} file or one of "
            f"{', '.join(shipped_bundles())}"
        )
    saved = _read(path)
    return _filled(NetworkConfig.from_dict(saved["network"]), saved["state"])


def network_of_bundle(bundle: Bundle) -> Denoiser:
    """The torch network that a bundle's fp32 ONNX graph was exported from; its weights carry torch's names."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load_model_from_string(bundle.network("fp32")).graph
    state = {i.name: torch.from_numpy(numpy_helper.to_array(i).copy()) for i in graph.initializer if "." in i.name}
    if "stem.weight" in state:
        state["stem.weight"] = unshuffled_weight(state["stem.weight"])
    try:
        config = config_of(state, sigma_data=bundle.manifest.model.sigma_data)
    except ValueError as error:
        raise TrainingError(
            f"{bundle.path.name} was not made of a photonstep network: {error}; train from a run"
        ) from None
    return _filled(config, state)


def task_of(source: str | Path) -> str:
    """denoise or super_resolution: what the network of a run or bundle was made for; files that do not say denoise."""
    path = Path(source)
    if str(source) in shipped_bundles() or path.suffix == SUFFIX:
        return Bundle.load(find_bundle(source)).manifest.task
    folder = path if path.is_dir() else path.parent
    return str(run_record(folder).get("task", "denoise")) if (folder / CONFIG).is_file() else "denoise"


def steps_of(source: str | Path) -> int:
    """Evaluations that a restoration with a run or bundle takes: more than one for what was distilled to that many."""
    path = Path(source)
    if str(source) in shipped_bundles() or path.suffix == SUFFIX:
        return Bundle.load(find_bundle(source)).manifest.defaults.steps
    folder = path if path.is_dir() else path.parent
    settings = run_record(folder).get("settings", {}) if (folder / CONFIG).is_file() else {}
    return int(settings.get("student_steps", 1))


def run_record(run: Path) -> dict[str, Any]:
    """``config.json`` of a run folder.

    Raises
    ------
    TrainingError : the folder holds none
    """
    try:
        record: dict[str, Any] = json.loads((run / CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise TrainingError(f"{run} is no run folder: {error}; expected {CONFIG} of photonstep train") from None
    return record


def _of_run(run: Path) -> Denoiser:
    if (run / WEIGHTS).exists():
        saved = _read(run / WEIGHTS)
        return _filled(NetworkConfig.from_dict(saved["network"]), saved["state"])
    config = NetworkConfig.from_dict(run_record(run)["network"])
    if not (run / CHECKPOINT).exists():
        raise TrainingError(f"{run} has neither {WEIGHTS} nor {CHECKPOINT}; let the training go on")
    return _filled(config, _read(run / CHECKPOINT)["average"])


def _read(path: Path) -> dict[str, Any]:
    try:
        saved: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises several kinds for a damaged file
        raise TrainingError(f"{path} cannot be read as weights: {error}; the file may be damaged") from error
    return saved


def _filled(config: NetworkConfig, state: dict[str, Tensor]) -> Denoiser:
    network = Denoiser(config)
    network.load_state_dict(state)
    return network.eval()
