"""Who takes part in the comparison with the peers: as methods that are scored, and as rivals that are timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

import photonstep as ps
from photonstep.runtime.backends.choose import Choice
from photonstep.runtime.bundle import SUFFIX, Bundle
from photonstep.runtime.errors import PhotonstepError
from photonstep.runtime.restore import Restorer, find_bundle

from . import baselines, methods
from .methods import Method, Recipe
from .naive import FrameGraph, StepNetwork
from .rungs import LOOP, TorchSession, pack, torch_restorer

SCORED_PEERS = ("raw", "oidn")
TIERS = ("base", "live")
STEPS = (1, 2)
ORT_PRECISIONS = ("fp32", "int8")
TIMED_TITLES = {
    "oidn_fast_filter": "Open Image Denoise, fast, its filter alone",
    "oidn_high_filter": "Open Image Denoise, high, its filter alone",
    "oidn_fast": "Open Image Denoise, fast, frame in to frame out",
    "oidn_high": "Open Image Denoise, high, frame in to frame out",
    **{f"{t}_k{k}": f"photonstep {t}, K = {k}" for t, k in product(TIERS, STEPS)},
    **{f"ort_{t}_frame": f"ONNX Runtime by hand: {t}'s frame_1.onnx" for t in TIERS},
    **{
        f"ort_{t}_{p}": f"ONNX Runtime by hand: {t}'s step_{p}.onnx, NumPy around it"
        for p, t in product(ORT_PRECISIONS, TIERS)
    },
    LOOP: "the teacher's DDIM loop in plain PyTorch",
}
Run = Callable[[int], object]


def scored(restorers: Mapping[str, Restorer], *, threads: int, loop: Restorer | None, loop_steps: int) -> list[Recipe]:
    """What restores the frames that are scored; the loop only where its weights mean something.

    Parameters
    ----------
    restorers : photonstep's own by tier, the same that are timed
    loop : the teacher with its trained weights, or None
    """
    chosen = methods.select(methods.recipes(threads=threads), SCORED_PEERS)
    for tier, k in product(TIERS, STEPS):
        name = f"{tier}_k{k}"
        chosen.append(_recipe(name, partial(_unrounded, restorers[tier], k)))
    for tier, precision in product(TIERS, ORT_PRECISIONS):
        name = f"ort_{tier}_{precision}"
        chosen.append(_recipe(name, partial(_step_network, restorers[tier].bundle, precision)))
    if loop is not None:
        chosen.append(_recipe(LOOP, partial(_unrounded, loop, loop_steps)))
    return chosen


def _recipe(name: str, make: Callable[[], tuple[Callable[[NDArray[Any], Any], Any], str]]) -> Recipe:
    return Recipe(name=name, title=TIMED_TITLES[name], camera="blind", make=make)


def timed(
    frames: Sequence[NDArray[np.uint16]],
    restorers: Mapping[str, Restorer],
    *,
    threads: int,
    loop: Restorer,
    loop_steps: int,
) -> tuple[dict[str, Run], dict[str, str]]:
    """Functions of a round's number that restore its frame, camera given; and why others could not be made.

    Parameters
    ----------
    frames : (H, W) uint16 each, restored in turn
    """
    cameras = [ps.Camera.estimate(frame) for frame in frames]
    runs: dict[str, Run] = {}
    absent: dict[str, str] = {}

    def add(name: str, make: Callable[[], Run]) -> None:
        try:
            runs[name] = make()
        except (ImportError, PhotonstepError) as error:
            absent[name] = f"not measured ({error})"

    def on_frames(restore: Callable[[NDArray[np.uint16], ps.Camera], object]) -> Run:
        return lambda index: restore(frames[index % len(frames)], cameras[index % len(frames)])

    def whole_way(kind: Callable[..., Callable[[NDArray[np.uint16], ps.Camera], object]], *settings: Any) -> Run:
        return on_frames(kind(*settings))

    for quality in ("fast", "high"):
        add(f"oidn_{quality}_filter", partial(_filter_alone, quality, threads, frames, cameras))
        add(f"oidn_{quality}", partial(whole_way, baselines.OpenImageDenoise, quality, threads))
    for tier in TIERS:
        restorer = restorers[tier]
        for k in STEPS:
            runs[f"{tier}_k{k}"] = on_frames(partial(_restored, restorer, k))
        add(f"ort_{tier}_frame", partial(whole_way, FrameGraph, restorer.bundle))
        for precision in ORT_PRECISIONS:
            add(f"ort_{tier}_{precision}", partial(whole_way, StepNetwork, restorer.bundle, precision))
    runs[LOOP] = on_frames(partial(_restored, loop, loop_steps))
    return runs, absent


@contextmanager
def teacher_loop(teacher: str | None, *, threads: int) -> Iterator[Restorer]:
    """The runtime's path around the teacher's network in plain PyTorch.

    Parameters
    ----------
    teacher : run folder or bundle; None builds a network of the teacher's shape, whose time is the same and whose
        pixels mean nothing
    """
    if teacher is None:
        yield _shape_of_a_teacher(threads)
        return
    with TemporaryDirectory() as folder:
        yield torch_restorer(pack(teacher, Path(folder) / f"teacher{SUFFIX}"), teacher, threads)


def _shape_of_a_teacher(threads: int) -> Restorer:
    import torch

    from photonstep.models.network import TIERS as SHAPES
    from photonstep.models.network import Denoiser

    torch.manual_seed(0)
    network = Denoiser(SHAPES["teacher"])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.01)  # new networks hold zeros, whose products could come cheaper
    session = TorchSession(network, threads)
    bundle = Bundle.load(find_bundle("base"))  # how the network is fed and read; the teacher's is the same
    return Restorer(bundle, Choice(session=session, trials=(), reason="plain PyTorch, untrained, for its time"))


def _restored(restorer: Restorer, steps: int, frame: NDArray[np.uint16], camera: ps.Camera) -> NDArray[np.uint16]:
    image: NDArray[np.uint16] = restorer.restore(frame, camera=camera, steps=steps).image
    return image


def _filter_alone(
    quality: str, threads: int, frames: Sequence[NDArray[np.uint16]], cameras: Sequence[ps.Camera]
) -> Run:
    """Open Image Denoise on frames that were stabilised and scaled before."""
    denoiser = baselines.OpenImageDenoise(quality, threads)
    images = []
    for frame, camera in zip(frames, cameras, strict=True):
        z = camera.stabilise(frame)
        images.append(((z - z.min()) / max(float(np.ptp(z)), 1e-6) * baselines.OIDN_SPAN).astype(np.float32))
    return lambda index: denoiser.execute(images[index % len(images)])


def _step_network(bundle: Bundle, precision: str) -> tuple[Callable[[NDArray[Any], Any], Any], str]:
    network = StepNetwork(bundle, precision)
    return lambda frame, camera: network(frame.astype(np.float32), camera), f"{bundle.sha256} onnxruntime {precision}"


def _unrounded(restorer: Restorer, steps: int) -> tuple[Callable[[NDArray[Any], Any], Any], str]:
    def restore(frame: NDArray[Any], camera: ps.Camera) -> NDArray[np.float32]:
        # a float32 frame gives float32 counts: an integer one would add a rounding error that no peer has
        return np.asarray(restorer.restore(frame.astype(np.float32), camera=camera, steps=steps).image, np.float32)

    return restore, f"{restorer.bundle.sha256} {restorer.backend_name} {restorer.precision} K={steps}"


def split_loop(made: Sequence[Method]) -> tuple[list[Method], Method | None]:
    """The loop apart from the others: it takes seconds a frame, and restores a few only."""
    loop = next((method for method in made if method.name == LOOP), None)
    return [method for method in made if method.name != LOOP], loop
