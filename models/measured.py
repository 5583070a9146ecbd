"""Training batches from measured frames, in the runtime's own coordinates.

A frame goes the runtime's way: the camera's transform, `RangeTracker`, model units. What the network should answer
depends on what is known about the scene:

- a reference: its transform, after a linear map onto the frame (references often have a gain and offset of their own);
- other frames of the scene: the transform of their mean, which is noisy but unbiased but for the transform's curvature,
  and that is put back (Noise2Noise);
- nothing: the frame's restoration, photographed again (`models/restored.py`); and to tell how well the network does,
  without a reference either, the frame recorrupted with more of its own noise (`models/recorrupt.py`). Each draw of
  that noise serves twice, with either sign: less chance is left in the figure.

Source: Lehtinen et al. 2018 (Noise2Noise), arXiv:1803.04189.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from ..kernels import ops, reference
from ..runtime.camera import Camera
from ..runtime.errors import TrainingError
from ..runtime.normalise import RangeTracker
from .data import NORMALISATION
from .guide import NetworkGuide
from .noise import Batch
from .recordings import Kind, PlaneAt, Scene, read_planes
from .recorrupt import BlindFrame, blind_frame, correlated_noise, recorrupt
from .restored import RestoredFrame, photograph, restored_frame, stabilise

Image = NDArray[np.float32]

CAMERA_FRAMES: Final = 8  # of a stack, to estimate its camera from
REPEATS_USED: Final = 64  # more frames of one scene change its mean by little
SIGMA_ERROR, CORRELATION_ERROR, LEVEL_ERROR = 0.05, 0.03, 0.05
LEAST_AGREEMENT: Final = 0.2
MOVE_BLOCK_PX: Final = 16
MOVED: Final = 0.4  # white noise gives 1/16, strongly correlated noise a quarter
CACHE_BYTES: Final = 1 << 30


@dataclass(frozen=True, eq=False)
class Observation:
    """One frame in model units: (H, W) float32 ``u`` and the target whose expectation is the clean frame."""

    u: Image
    target: Image
    sigma: float
    correlation: tuple[float, float]
    kind: Kind

    @property
    def shape(self) -> tuple[int, ...]:
        return self.u.shape

    @property
    def nbytes(self) -> int:
        return self.u.nbytes + self.target.nbytes


def observe_frame(
    frame: NDArray[Any], camera: Camera, kind: Kind, *, target: NDArray[Any], averaged: int = 1
) -> Observation:
    """Stabilise and normalise a measured frame as the runtime does, and its target with it.

    Parameters
    ----------
    frame : (H, W) uint8, uint16 or float32, ADU
    target : (H, W) ADU: the reference of a ``paired`` frame, the mean of the others of a ``repeated`` one
    averaged : frames that a ``repeated`` target is the mean of

    Returns
    -------
    Observation
    """
    z = camera.stabilise(frame)
    model_range = RangeTracker(NORMALISATION).update(z)
    if kind == "paired":
        target_z = camera.stabilise(fit_reference(frame, target))
    else:
        target_z = camera.stabilise(np.asarray(target, np.float32)) + curvature_bias(target, camera, averaged)
    return Observation(
        model_range.to_model(z), model_range.to_model(target_z), model_range.sigma, camera.noise_correlation, kind
    )


def fit_reference(frame: NDArray[Any], target: NDArray[Any]) -> Image:
    """The reference on the frame's scale, ``a * target + b`` by least squares; (H, W) float32, ADU.

    Raises
    ------
    TrainingError : the two do not show the same field
    """
    y, x = (np.asarray(image, np.float32) for image in (frame, target))
    blocks = [ops.block_means(image, 8).ravel() for image in (y, x)]
    agreement = float(np.corrcoef(*blocks)[0, 1])
    if not agreement >= LEAST_AGREEMENT:
        raise TrainingError(
            f"frame and reference correlate by {agreement:.2f} over blocks of 8 px; expected one field, unshifted: "
            "check the names"
        )
    mean_x, mean_y = float(x.mean(dtype=np.float64)), float(y.mean(dtype=np.float64))
    centred = (x - np.float32(mean_x)).astype(np.float64)
    slope = float(np.vdot(centred, y) / np.vdot(centred, centred))
    return (slope * centred + mean_y).astype(np.float32)


def check_agreement(scenes: Sequence[Scene]) -> None:
    """Before training: a reference shows its frame's field, and repeated frames stand still.

    Raises
    ------
    TrainingError : a reference of another field; names both files
    """
    for scene in scenes:
        if scene.reference is not None:
            frame, target = read_planes([scene.frames[0], scene.reference])
            try:
                fit_reference(frame, target)
            except TrainingError as error:
                raise TrainingError(f"{scene.frames[0]} and its reference {scene.reference}: {error}") from None
        elif scene.kind == "repeated":
            moved = movement(*read_planes([scene.frames[0], scene.frames[-1]]), scene.camera)
            if moved > MOVED:
                warnings.warn(
                    f"{scene.frames[0].path}: first and last frame differ by {moved:.1f} of the noise over blocks of "
                    f"{MOVE_BLOCK_PX} px: does the sample move? A time-lapse is --kind noisy",
                    stacklevel=4,
                )


def movement(first: NDArray[Any], last: NDArray[Any], camera: Camera | None) -> float:
    """How much block means of two frames differ, in units of the noise of a pixel; a common change counts nothing."""
    camera = camera or Camera.estimate(np.stack([first, last]))
    difference = (camera.stabilise(last) - camera.stabilise(first)) * np.float32(0.5**0.5)
    return float(ops.block_means(difference, MOVE_BLOCK_PX).std())


def curvature_bias(frame: NDArray[Any], camera: Camera, averaged: int) -> Image:
    """What the transform of a noisy mean lacks of the transform of the truth, ``f(E m) - E f(m)``, in units of noise.

    ``f`` is concave, so noise pulls its mean down, by ``var / (4 (e + 3/8 + r^2)^1.5)`` to second order; ``e`` is read
    off the smoothed frame.
    """
    readout_variance = np.square(camera.readout_noise_e)
    electrons = (np.asarray(frame, np.float32) - camera.offset_adu) * camera.gain_e_per_adu
    smooth = np.maximum(ndimage.gaussian_filter(electrons, 2.0), 0.0)
    variance = (smooth + readout_variance) / averaged
    return np.asarray(variance / (4.0 * (smooth + reference.ANSCOMBE_OFFSET + readout_variance) ** 1.5), np.float32)


Seen = Observation | BlindFrame | RestoredFrame


class MeasuredPool:
    """Scenes to draw samples from. Frames are read when drawn, and kept while they fit into the cache.

    Parameters
    ----------
    measured_share : of paired samples that stay at the frame's own noise level; the others lie on the way to zero
    guide : reads frames without any reference; needed where there are ``noisy`` scenes
    recorrupted : show such frames recorrupted, instead of their restorations photographed again
    """

    def __init__(
        self,
        scenes: Sequence[Scene],
        *,
        measured_share: float = 0.8,
        guide: NetworkGuide | None = None,
        recorrupted: bool = False,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.scenes = list(scenes)
        self._weights = np.array([s.share for s in self.scenes]) / sum(s.share for s in self.scenes)
        self._cache_bytes = cache_bytes
        self._held = 0
        self._measured_share = measured_share
        self._guide = guide
        self._recorrupted = recorrupted
        self._observations: OrderedDict[PlaneAt, Seen] = OrderedDict()
        self._cameras: dict[int, Camera] = {}
        self._means: OrderedDict[int, tuple[NDArray[np.float64], int]] = OrderedDict()

    def batch(self, count: int, size_px: int, rng: np.random.Generator) -> Batch:
        """Draw samples: random frames, patches, turns; (count, 1, size_px, size_px)."""
        samples: list[tuple[Image, Image, float, NDArray[np.float64]]] = []
        while len(samples) < count:
            where = int(rng.choice(len(self.scenes), p=self._weights))
            seen = self.observation(where, int(rng.integers(len(self.scenes[where].frames))))
            samples += _samples(seen, size_px, rng, self._measured_share)
        x, x0, sigma, correlation = zip(*samples[:count], strict=True)
        level = torch.tensor(sigma, dtype=torch.float32)[:, None, None, None]
        return Batch(
            x=torch.from_numpy(np.stack(x))[:, None],
            x0=torch.from_numpy(np.stack(x0))[:, None],
            sigma=level.expand(-1, 1, size_px, size_px),
            noise_correlation=torch.from_numpy(np.stack(correlation).astype(np.float32)),
        )

    def observation(self, scene_index: int, frame_index: int) -> Seen:
        """One frame as the network sees it, whole."""
        scene = self.scenes[scene_index]
        plane = scene.frames[frame_index]
        if plane in self._observations:
            self._observations.move_to_end(plane)
            return self._observations[plane]
        seen = self._observe(scene_index, scene, plane)
        self._observations[plane] = seen
        self._held += seen.nbytes
        while self._held > self._cache_bytes and len(self._observations) > 1:
            _, dropped = self._observations.popitem(last=False)
            self._held -= dropped.nbytes
        return seen

    def _observe(self, scene_index: int, scene: Scene, plane: PlaneAt) -> Seen:
        (frame,) = read_planes([plane])
        camera = self._camera(scene_index, scene)
        if scene.kind == "noisy":
            return self._without_reference(frame, camera)
        averaged = 1
        if scene.reference is not None:
            (target,) = read_planes([scene.reference])
        else:
            total, count = self._total(scene_index, scene)
            averaged = count - 1
            target = (total - frame) / averaged
        try:
            return observe_frame(frame, camera, scene.kind, target=target, averaged=averaged)
        except TrainingError as error:
            raise TrainingError(f"{plane} and its reference {scene.reference}: {error}") from None

    def _without_reference(self, frame: NDArray[Any], camera: Camera) -> Seen:
        if self._guide is None:
            raise TrainingError("noisy frames without any reference need a network as a guide, such as base")
        if self._recorrupted:
            return blind_frame(frame, camera, RangeTracker(NORMALISATION), guide=self._guide)
        return restored_frame(frame, camera, self._guide, lambda: RangeTracker(NORMALISATION))

    def _camera(self, scene_index: int, scene: Scene) -> Camera:
        if scene.camera is not None:
            return scene.camera
        if scene_index not in self._cameras:
            chosen = scene.frames[:: -(-len(scene.frames) // CAMERA_FRAMES)]
            self._cameras[scene_index] = Camera.estimate(np.stack(list(read_planes(chosen))))
        return self._cameras[scene_index]

    def _total(self, scene_index: int, scene: Scene) -> tuple[NDArray[np.float64], int]:
        """Sum over a scene's frames, and how many they are."""
        if scene_index not in self._means:
            total = sum(plane.astype(np.float64) for plane in read_planes(scene.frames))
            self._means[scene_index] = np.asarray(total), len(scene.frames)
            if len(self._means) > 64:
                self._means.popitem(last=False)
        return self._means[scene_index]


Sample = tuple[Image, Image, float, NDArray[np.float64]]  # x, x0, sigma and noise correlation told to the network


def _samples(seen: Seen, size_px: int, rng: np.random.Generator, measured_share: float) -> list[Sample]:
    """One patch as a sample, or as two where noise is added with either sign."""
    size = int(rng.integers(len(seen.photons))) if isinstance(seen, RestoredFrame) else 0
    shape = seen.photons[size].shape if isinstance(seen, RestoredFrame) else seen.shape
    sigma = seen.ranges[size].sigma if isinstance(seen, RestoredFrame) else seen.sigma
    turn = _Turn(shape, size_px, rng)
    correlation = turn.axes(seen.correlation)
    told = np.clip(np.array(correlation) + CORRELATION_ERROR * rng.normal(size=2), -0.2, 0.95)
    belief = sigma * float(np.exp(SIGMA_ERROR * rng.normal()))
    shift = np.float32(LEVEL_ERROR * rng.normal())
    if isinstance(seen, BlindFrame):
        patch = seen.map(turn)
        noise = correlated_noise(patch.shape, correlation, rng)
        pairs = [recorrupt(patch, sign * noise) for sign in (1, -1)]
        return [(x + shift, x0 + shift, belief, told) for x, x0 in pairs]
    if isinstance(seen, RestoredFrame):
        photons, readout = turn(seen.photons[size]), seen.readout_noise_e
        electrons = photograph(photons, readout, correlation, seen.variance_factor, rng)
        x, x0 = (seen.ranges[size].to_model(stabilise(image, readout)) + shift for image in (electrons, photons))
    else:
        x, x0 = turn(seen.u) + shift, turn(seen.target) + shift
    has_clean = isinstance(seen, RestoredFrame) or seen.kind == "paired"
    part = np.float32(0.08 ** rng.random() if has_clean and rng.random() > measured_share else 1.0)
    return [(x0 + part * (x - x0), x0, belief * float(part), told)]


class _Turn:
    """A random patch of a frame, flipped and turned; the frame is mirrored at its far edges where it is too small."""

    def __init__(self, shape: tuple[int, ...], size_px: int, rng: np.random.Generator) -> None:
        self._missing = [(0, max(0, size_px - n)) for n in shape]
        self._size_px = size_px
        self._top, self._left = (int(rng.integers(max(n, size_px) - size_px + 1)) for n in shape)
        self._turns, self._flipped = int(rng.integers(4)), bool(rng.random() < 0.5)

    def __call__(self, image: Image) -> Image:
        if any(after for _, after in self._missing):
            image = np.pad(image, self._missing, mode="reflect")
        patch = image[self._top : self._top + self._size_px, self._left : self._left + self._size_px]
        turned = np.rot90(patch, self._turns)
        return np.ascontiguousarray(turned[::-1] if self._flipped else turned)

    def axes(self, along: tuple[float, float]) -> tuple[float, float]:
        """Two numbers along (y, x) of the frame, along (y, x) of the patch."""
        return along if self._turns % 2 == 0 else (along[1], along[0])
