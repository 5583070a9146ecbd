"""Teacher and student side by side: the same frames restored by both, and what came of it counted, bin by bin."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from ..runtime.bundle import Bundle
from ..runtime.camera import Camera
from ..runtime.errors import CameraError
from ..runtime.metrics import psnr, ssim
from ..runtime.restore import Restorer, find_bundle, load
from . import noise_bins
from .blank_fields import count_detections
from .gates import BlankBin, CameraKind, Figures, NoiseBin
from .noise_bins import BLANK_PHOTONS, NOISES, Noise, Plane
from .spectrum import radial_power
from .validation import Example, Subject

CAMERAS: tuple[CameraKind, ...] = get_args(CameraKind)
DETAIL_STEPS = 4
BLANK_SEED = 10_000  # apart from the scenes' noise
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Side:
    """A loaded bundle with its plan."""

    restorer: Restorer
    steps: int

    def electrons(self, frame: NDArray[np.uint16], camera: Camera, **plan: Any) -> Plane:
        # float32 in, float32 out: rounding to counts would add an error that is not the network's
        options = {"steps": self.steps, **plan}
        image = self.restorer.restore(frame.astype(np.float32), camera=camera, **options).image
        return noise_bins.to_electrons(image)

    def detail(self, frame: NDArray[np.uint16], camera: Camera) -> Plane:
        """The knob turned to detail where there is one, otherwise the few-step walk."""
        if self.restorer.bundle.manifest.model.detail_input:
            return self.electrons(frame, camera, detail=1.0)
        return self.electrons(frame, camera, steps=max(DETAIL_STEPS, self.steps))

    def subject(self) -> Subject:
        bundle, precision = self.restorer.bundle, self.restorer.precision
        manifest = bundle.manifest
        record = next((n for n in manifest.networks if n.precision == precision), manifest.networks[0])
        network = bundle.read(record.member)
        return Subject(
            name=manifest.name, version=manifest.version, sha256=bundle.sha256, precision=precision, steps=self.steps,
            parameters=manifest.model.parameters, kmac_per_px=manifest.model.kmac_per_px,
            network_bytes=len(network), network_sha256=hashlib.sha256(network).hexdigest(),
        )  # fmt: skip


@dataclass
class Counter:
    """Says how far the work is."""

    report: Progress | None
    total: int
    done: int = 0

    def advance(self) -> None:
        self.done += 1
        if self.report is not None:
            self.report(self.done, self.total)


class Bench:
    """Photographs scenes, has both sides restore them, and keeps figures, examples and spectra."""

    def __init__(self, teacher: Side, student: Side, scale: int, seed: int, counter: Counter) -> None:
        self.teacher, self.student, self.scale, self.seed, self.counter = teacher, student, scale, seed, counter
        self.notes: list[str] = []
        self.examples: list[Example] = []
        self._powers: dict[str, list[NDArray[np.float64]]] = {}

    def noise_bins(
        self, source: str, scenes: Sequence[NDArray[np.float32]], levels: Sequence[float], *, pictured: bool
    ) -> Iterator[NoiseBin]:
        """All bins of one source of scenes; ``pictured`` keeps examples and spectra, white noise and known camera."""
        middle = levels[len(levels) // 3]  # texture is half buried in noise there
        for noise in NOISES:
            for peak in levels:
                scores: dict[CameraKind, list[NDArray[np.float64]]] = {kind: [] for kind in CAMERAS}
                for index, scene in enumerate(scenes):
                    truth = noise_bins.to_photons(scene, peak)
                    frame = self._photograph(truth, noise, (index, round(peak)))
                    for kind, camera in self._cameras(frame, noise, f"{source} {peak:g} photons"):
                        restored = [side.electrons(frame, camera) for side in (self.teacher, self.student)]
                        scores[kind].append(np.array([_score(truth, frame, r, peak) for r in restored]))
                        if pictured and noise is NOISES[0] and kind == "known":
                            shown = index == 0 and peak in levels[::2]
                            self._keep(peak, frame, camera, truth, restored, shown=shown, spectrum=peak == middle)
                    self.counter.advance()
                yield from (_noise_bin(source, noise, peak, kind, s) for kind, s in scores.items() if s)

    def blank_bins(self, size_px: int, frames: int) -> Iterator[BlankBin]:
        """Detections in empty fields, at every light level."""
        for noise in NOISES:
            for photons in BLANK_PHOTONS:
                counts: dict[CameraKind, list[tuple[int, int]]] = {kind: [] for kind in CAMERAS}
                empty = np.full((size_px * self.scale,) * 2, photons)
                for index in range(frames):
                    frame = self._photograph(empty, noise, (BLANK_SEED + index, round(photons)))
                    for kind, camera in self._cameras(frame, noise, f"blank field, {photons:g} photons"):
                        teacher, student = (side.electrons(frame, camera) for side in (self.teacher, self.student))
                        found = (count_detections(r, photons, noise, self.scale) for r in (teacher, student))
                        counts[kind].append((next(found), next(found)))
                    self.counter.advance()
                yield from (_blank_bin(noise, photons, kind, pairs) for kind, pairs in counts.items() if pairs)

    def spectra(self) -> dict[str, NDArray[np.float64]]:
        """Radially averaged power, mean over the simulated scenes at the middle light level."""
        return {name: np.mean(powers, axis=0) for name, powers in self._powers.items()}

    def _photograph(self, truth: Plane, noise: Noise, place: tuple[int, int]) -> NDArray[np.uint16]:
        rng = np.random.default_rng((self.seed, NOISES.index(noise), *place))
        return noise_bins.photograph(noise_bins.pixel_means(truth, self.scale), noise, rng)

    def _cameras(self, frame: NDArray[np.uint16], noise: Noise, where: str) -> Iterator[tuple[CameraKind, Camera]]:
        yield "known", noise_bins.camera_of(noise)
        try:
            yield "blind", Camera.estimate(frame)
        except CameraError as error:
            self.notes.append(f"{where}, {noise.name} noise: no blind camera ({error})")

    def _keep(
        self, peak: float, frame: NDArray[np.uint16], camera: Camera, truth: Plane, restored: Sequence[Plane],
        *, shown: bool, spectrum: bool,
    ) -> None:  # fmt: skip
        """A scene as a picture, as a term of the mean spectra, both or neither."""
        if not (shown or spectrum):
            return
        pictures = {
            "truth": truth, "noisy": noise_bins.to_electrons(frame), "teacher": restored[0], "student": restored[1],
            "teacher_detail": self.teacher.detail(frame, camera), "student_detail": self.student.detail(frame, camera),
        }  # fmt: skip
        if shown:
            self.examples.append(Example(photons=peak, **pictures))
        for name, picture in pictures.items():
            if spectrum and picture.shape == truth.shape:  # the frame of a super-resolution pair has another grid
                self._powers.setdefault(name, []).append(radial_power(picture))


def open_side(bundle: str | Path | Bundle, precision: str, steps: int | None, threads: int) -> Side:
    opened = bundle if isinstance(bundle, Bundle) else Bundle.load(find_bundle(bundle))
    restorer = load(opened, device="cpu", precision=precision, threads=threads)
    return Side(restorer, opened.manifest.defaults.steps if steps is None else steps)


def _score(truth: Plane, frame: NDArray[np.uint16], restored: Plane, peak: float) -> tuple[float, float, float, float]:
    """PSNR and SSIM on a range of the peak; restored light beyond the measured one, and the true light, per pixel.

    The measured total is unbiased, so against it the shot noise of the total cancels.
    """
    excess = float(restored.mean()) - float(noise_bins.to_electrons(frame).mean())
    return psnr(truth, restored, peak), ssim(truth, restored, peak), excess, float(truth.mean())


def _noise_bin(
    source: str, noise: Noise, peak: float, kind: CameraKind, scores: Sequence[NDArray[np.float64]]
) -> NoiseBin:
    table = np.stack(scores)  # (frames, teacher and student, psnr ssim excess light)
    sides = [
        Figures(
            psnr_db=float(side[:, 0].mean()),
            ssim=float(side[:, 1].mean()),
            bias_percent=float(100 * side[:, 2].sum() / side[:, 3].sum()),
        )
        for side in (table[:, 0], table[:, 1])
    ]
    loss = table[:, 0, 0] - table[:, 1, 0]
    error = float(loss.std(ddof=1) / len(loss) ** 0.5) if len(loss) > 1 else 0.0
    return NoiseBin(
        source=source, noise=noise.name, photons=peak, camera=kind, frames=len(table), teacher=sides[0],
        student=sides[1], psnr_loss_error_db=error,
    )  # fmt: skip


def _blank_bin(noise: Noise, photons: float, kind: CameraKind, pairs: Sequence[tuple[int, int]]) -> BlankBin:
    return BlankBin(
        noise=noise.name, photons=photons, camera=kind, frames=len(pairs),
        teacher=sum(teacher for teacher, _ in pairs), student=sum(student for _, student in pairs),
    )  # fmt: skip
