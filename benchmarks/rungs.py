"""The rungs of the ladder: a teacher's 50-step loop in plain PyTorch, its best K, and each stage of compression.

A rung takes a run folder or a bundle. Runs are packed into a bundle in a temporary folder, so that every rung goes
through the runtime's own front end: camera, stabilisation, inverse and photon balance are the same for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

import photonstep as ps
from photonstep.demo import DEMO_FRAME
from photonstep.runtime.backends.choose import Choice
from photonstep.runtime.bundle import SUFFIX, Bundle
from photonstep.runtime.restore import Restorer, find_bundle, shipped_bundles

LOOP, LOOP_STEPS = "loop", 50
TEACHER_STEPS = (1, 2, 4)
STAGES = ("distilled", "pruned", "int8")


class TorchSession:
    """A network in plain PyTorch, float32, eager, as a training script would run it."""

    backend, device, precision = "pytorch", "cpu", "fp32"

    def __init__(self, network: Any, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._torch, self._network = torch, network.eval()

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        (planes,) = inputs.values()
        with self._torch.inference_mode():
            output: NDArray[np.float32] = self._network(self._torch.from_numpy(planes)).numpy()
        return output

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One row of the ladder: a network, how it is run, and what it costs.

    ``limit`` is the number of frames of each set that it restores, None for all.
    """

    name: str
    title: str
    restorer: Restorer
    steps: int
    network_bytes: int
    limit: int | None = None

    @property
    def kmac_per_px(self) -> float:
        """Of a whole restoration."""
        return self.restorer.bundle.manifest.model.kmac_per_px * self.steps

    @property
    def settings(self) -> str:
        """Everything besides the frame that decides the pixels."""
        model = self.restorer
        return f"{model.bundle.sha256} {model.backend_name} {model.precision} K={self.steps}"

    def restore(self, frame: NDArray[Any], camera: ps.Camera) -> NDArray[np.float32]:
        """(H, W) frame to (H, W) float32 in frame units, not rounded; clipped as writing the file would."""
        image = self.restorer.restore(frame.astype(np.float32), camera=camera, steps=self.steps).image
        if frame.dtype.kind == "u":
            image = np.clip(image, 0, np.iinfo(frame.dtype).max)
        return np.asarray(image, np.float32)

    def facts(self) -> dict[str, Any]:
        return {
            "name": self.name, "title": self.title, "steps": self.steps, "backend": self.restorer.backend_name,
            "precision": self.restorer.precision, "kmac_per_px": self.kmac_per_px, "bytes": self.network_bytes,
            "limit": self.limit, "sha256": self.restorer.bundle.sha256,
        }  # fmt: skip


@contextmanager
def opened(
    teacher: str,
    stages: Mapping[str, str],
    *,
    threads: int,
    loop_limit: int | None,
    loop_steps: int = LOOP_STEPS,
    steps: int | None = None,
) -> Iterator[list[Rung]]:
    """The ladder from top to bottom.

    Parameters
    ----------
    teacher : run folder or bundle
    stages : run folder or bundle by name of `STAGES`; with "int8" alone, its own float32 network stands for the stage
        before it
    loop_limit : frames of each set that the loop restores
    steps : evaluations that the stages take; None takes each bundle's default
    """
    with TemporaryDirectory() as folder:
        bundles: dict[str, Bundle] = {}

        def bundle_of(source: str) -> Bundle:
            if source not in bundles:
                bundles[source] = pack(source, Path(folder) / f"rung{len(bundles)}{SUFFIX}")
            return bundles[source]

        of_teacher = bundle_of(teacher)
        rungs = [
            _loop(of_teacher, teacher, threads, loop_limit, loop_steps),
            *(_rung(f"teacher_k{k}", f"teacher, K = {k}", of_teacher, "fp32", k, threads) for k in TEACHER_STEPS),
        ]
        for name in STAGES:
            source = stages.get(name) or (stages.get("int8") if name == "pruned" else None)
            if source is None:
                continue
            bundle, precision = bundle_of(source), "int8" if name == "int8" else "fp32"
            taken = steps or bundle.manifest.defaults.steps
            title = {"distilled": "distilled", "pruned": "pruned, float32", "int8": "INT8"}[name]
            rungs.append(_rung(name, f"{title}, K = {taken}", bundle, precision, taken, threads))
        try:
            yield rungs
        finally:
            for rung in rungs:
                rung.restorer.close()


def torch_restorer(bundle: Bundle, source: str, threads: int) -> Restorer:
    """The runtime's whole path around the network in plain PyTorch."""
    from photonstep.models.checkpoint import load_network

    session = TorchSession(load_network(source), threads)
    return Restorer(bundle, Choice(session=session, trials=(), reason="plain PyTorch, the baseline"))


def _loop(bundle: Bundle, source: str, threads: int, limit: int | None, steps: int) -> Rung:
    restorer = torch_restorer(bundle, source, threads)
    title = f"teacher, {steps} DDIM steps in plain PyTorch"
    return Rung(
        name=LOOP, title=title, restorer=restorer, steps=steps, limit=limit,
        network_bytes=len(bundle.network("fp32")),
    )  # fmt: skip


def _rung(name: str, title: str, bundle: Bundle, precision: str, steps: int, threads: int) -> Rung:
    restorer = ps.load(bundle, device="cpu", precision=precision, threads=threads)
    member = {n.precision: n.member for n in bundle.manifest.networks}[precision]
    return Rung(name=name, title=title, restorer=restorer, steps=steps, network_bytes=len(bundle.read(member)))


def pack(source: str, packed: Path) -> Bundle:
    """A bundle by name or path as it is, or a run folder packed into a new one."""
    if source in shipped_bundles() or source.endswith(SUFFIX):
        return Bundle.load(find_bundle(source))
    from photonstep.export.package import package

    return package(
        Path(source), packed, name="rung", version="1.0.0", test_frame=DEMO_FRAME, frame_steps=(), precisions=()
    )
