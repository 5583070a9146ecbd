"""Every row of the quality table by name: the raw frame, the peers, and photonstep at K = 1, 2 and 4.

A method that this machine cannot run (a package or a bundle is absent) is reported with the reason, never dropped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import photonstep as ps
from photonstep.machine import package_version
from photonstep.runtime.errors import PhotonstepError

from . import baselines

Float = NDArray[np.float32]
CameraKind = Literal["none", "blind", "oracle"]
STEPS = (1, 2, 4)


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row of the table.

    Parameters
    ----------
    name : its key in JSON and on the command line
    title : its name in a table
    restore : (H, W) frame and Camera -> (H, W) float32, frame units
    camera : the camera it is given: none, estimated from the frame, or fitted to the ground truth
    settings : everything that decides the result, for the record and for resuming
    """

    name: str
    title: str
    restore: Callable[[NDArray[Any], Any], Float]
    camera: CameraKind
    settings: str

    def __call__(self, frame: NDArray[Any], camera: ps.Camera | None) -> Float:
        """Restore a frame; values beyond the frame's dtype are clipped, as writing the file would, but not rounded."""
        image = self.restore(frame, camera)
        if frame.dtype.kind != "u":
            return image
        return np.clip(image, 0, np.iinfo(frame.dtype).max)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to make a method when it is asked for; ``make`` may raise ImportError or PhotonstepError."""

    name: str
    title: str
    camera: CameraKind
    make: Callable[[], tuple[Callable[[NDArray[Any], Any], Float], str]]

    def method(self) -> Method:
        restore, settings = self.make()
        return Method(name=self.name, title=self.title, restore=restore, camera=self.camera, settings=settings)


def build(recipes: Sequence[Recipe]) -> tuple[list[Method], dict[str, str]]:
    """Methods that this machine can run, and for each of the others why not."""
    methods: list[Method] = []
    not_measured: dict[str, str] = {}
    for recipe in recipes:
        try:
            methods.append(recipe.method())
        except (ImportError, PhotonstepError) as error:
            not_measured[recipe.name] = f"not measured ({error})"
    return methods, not_measured


def select(recipes: Sequence[Recipe], wanted: Sequence[str] | None) -> list[Recipe]:
    """Recipes whose name is wanted, or begins with a wanted word (``base`` takes every base row); None takes all.

    Raises
    ------
    ValueError : a wanted word matches no recipe
    """
    if wanted is None:
        return list(recipes)
    for word in wanted:
        if not any(_matches(recipe.name, word) for recipe in recipes):
            raise ValueError(f"no method {word!r}; choose from {', '.join(recipe.name for recipe in recipes)}")
    return [recipe for recipe in recipes if any(_matches(recipe.name, word) for word in wanted)]


def recipes(*, base: str = "base", live: str = "live", threads: int = 2) -> list[Recipe]:
    """All rows, in the order of the table.

    Parameters
    ----------
    base, live : bundles, by name or path
    threads : CPU threads of Open Image Denoise and of photonstep
    """
    loaded: dict[str, ps.Restorer] = {}

    def restorer(bundle: str) -> ps.Restorer:
        if bundle not in loaded:
            loaded[bundle] = ps.load(bundle, device="cpu", threads=threads)
        return loaded[bundle]

    rows = [Recipe(name="raw", title="raw frame", camera="none", make=lambda: (_raw, ""))]
    rows += [_gaussian(sigma_px) for sigma_px in baselines.GAUSSIAN_SIGMAS]
    rows += [
        _peer("nlm", "non-local means", baselines.non_local_means, "skimage", baselines.NLM),
        _peer("tv", "total variation", baselines.total_variation, "skimage", baselines.TV),
        _peer("wavelet", "wavelet, BayesShrink", baselines.wavelet, "pywt", baselines.WAVELET),
        _peer("bm3d", "BM3D", baselines.bm3d, "bm3d", {}),
    ]
    for quality in ("fast", "high"):
        make = partial(_open_image_denoise, quality, threads)
        rows.append(Recipe(name=f"oidn_{quality}", title=f"Open Image Denoise, {quality}", camera="blind", make=make))
    for tier, bundle in (("base", base), ("live", live)):
        for k in STEPS:
            make = partial(_photonstep, restorer, bundle, k)
            rows.append(Recipe(name=f"{tier}_k{k}", title=f"photonstep {tier}, K = {k}", camera="blind", make=make))
    rows.append(
        Recipe(
            name="base_k1_oracle",
            title="photonstep base, K = 1, camera fitted to the ground truth",
            camera="oracle",
            make=partial(_photonstep, restorer, base, 1),
        )
    )
    return rows


def _matches(name: str, word: str) -> bool:
    return name == word or name.startswith(f"{word}_")


def _raw(frame: NDArray[Any], camera: object) -> Float:
    del camera
    return np.asarray(frame, dtype=np.float32)


def _gaussian(sigma_px: float) -> Recipe:
    def make() -> tuple[Callable[[NDArray[Any], Any], Float], str]:
        _need("scipy")
        return partial(baselines.gaussian, sigma_px=sigma_px), ""

    name, title = f"gaussian_{sigma_px:g}", f"Gaussian, sigma {sigma_px:g} px"
    return Recipe(name=name, title=title, camera="none", make=make)


def _peer(name: str, title: str, restore: Callable[..., Float], package: str, settings: dict[str, Any]) -> Recipe:
    def make() -> tuple[Callable[[NDArray[Any], Any], Float], str]:
        return restore, f"{_need(package)} {json.dumps(settings, sort_keys=True)}"

    return Recipe(name=name, title=title, camera="blind", make=make)


def _open_image_denoise(quality: str, threads: int) -> tuple[Callable[[NDArray[Any], Any], Float], str]:
    version = _need("pyoidn")
    denoiser = baselines.OpenImageDenoise(quality, threads)
    return denoiser, f"{version} span {baselines.OIDN_SPAN:g} srgb {baselines.OIDN_SRGB}"


def _photonstep(
    restorer: Callable[[str], ps.Restorer], bundle: str, steps: int
) -> tuple[Callable[[NDArray[Any], Any], Float], str]:
    model = restorer(bundle)

    def restore(frame: NDArray[Any], camera: ps.Camera) -> Float:
        # a float32 frame gives float32 counts: an integer one would add a rounding error that no peer has
        image = model.restore(frame.astype(np.float32), camera=camera, steps=steps).image
        return np.asarray(image, dtype=np.float32)

    return restore, f"{model.bundle.sha256} {model.backend_name} {model.precision} K={steps}"


DISTRIBUTIONS = {"skimage": "scikit-image", "pywt": "PyWavelets"}


def _need(package: str) -> str:
    """Version of an importable package; ImportError names the extra that brings it."""
    distribution = DISTRIBUTIONS.get(package, package)
    version = package_version(distribution)
    if version is None:
        where = "pip install bm3d, non-commercial licence" if package == "bm3d" else "pip install '.[bench]'"
        raise ImportError(f"{distribution} is not installed: {where}")
    return f"{distribution} {version}"
