"""The gates that a compressed student must pass against its teacher, in every noise bin. Numbers in, verdicts out.

A bin is one light level, one kind of noise, one kind of camera and one source of scenes. Losses are the teacher's
figure minus the student's: a student that is better has a negative loss. ``docs/validation.md`` says how they are
measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.stats import binom

CameraKind = Literal["known", "blind"]
CHANCE_BIN, CHANCE_TOTAL = 0.01, 0.05


@dataclass(frozen=True, kw_only=True)
class Gates:
    """Largest losses that still pass: dB, SSIM, and percentage points of the photon count."""

    name: str
    psnr_loss_db: float
    ssim_loss: float = 0.003
    photon_bias_percent: float = 0.5


GATES = {
    "stage": Gates(name="stage", psnr_loss_db=0.1),  # one step: distilled, pruned or quantised
    "total": Gates(name="total", psnr_loss_db=0.3),  # all steps together
}


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Means over the frames of a bin: dB, SSIM, and the restored light's excess over the measured one in percent."""

    psnr_db: float
    ssim: float
    bias_percent: float


@dataclass(frozen=True, kw_only=True)
class NoiseBin:
    """One bin: what was photographed, how, and how teacher and student restored it.

    ``psnr_loss_error_db`` is the standard error of the mean loss over the frames.
    """

    source: str
    noise: str
    photons: float
    camera: CameraKind
    frames: int
    teacher: Figures
    student: Figures
    psnr_loss_error_db: float

    @property
    def psnr_loss_db(self) -> float:
        return self.teacher.psnr_db - self.student.psnr_db

    @property
    def ssim_loss(self) -> float:
        return self.teacher.ssim - self.student.ssim

    @property
    def added_bias_percent(self) -> float:
        """By how much the student's photon count is farther off than the teacher's."""
        return abs(self.student.bias_percent) - abs(self.teacher.bias_percent)

    @property
    def name(self) -> str:
        return f"{self.source}, {self.photons:g} photons, {self.noise} noise, {self.camera} camera"

    def failures(self, gates: Gates) -> tuple[str, ...]:
        """What misses a gate, with number and limit; a figure that is not finite misses its gate."""
        measured = (
            ("PSNR loss", self.psnr_loss_db, gates.psnr_loss_db, "{:.3f} dB"),
            ("SSIM loss", self.ssim_loss, gates.ssim_loss, "{:.4f}"),
            ("added photon bias", self.added_bias_percent, gates.photon_bias_percent, "{:.2f} %"),
        )
        return tuple(
            f"{what} {form.format(value)}, at most {form.format(limit)}"
            for what, value, limit, form in measured
            if not value <= limit
        )


@dataclass(frozen=True, kw_only=True)
class BlankBin:
    """Detections in restored frames of nothing: one light level, kind of noise and kind of camera."""

    noise: str
    photons: float
    camera: CameraKind
    frames: int
    teacher: int
    student: int

    @property
    def name(self) -> str:
        return f"blank field, {self.photons:g} photons, {self.noise} noise, {self.camera} camera"

    def failures(self) -> tuple[str, ...]:
        return _more_than_chance(self.teacher, self.student, CHANCE_BIN)


def blank_total_failures(blanks: Sequence[BlankBin]) -> tuple[str, ...]:
    """The same over all blank fields together, where a small excess in every bin adds up."""
    teacher, student = sum(b.teacher for b in blanks), sum(b.student for b in blanks)
    return _more_than_chance(teacher, student, CHANCE_TOTAL)


def excess_by_chance(teacher: int, student: int) -> float:
    """Probability that the student's share is this high or higher when both detect equally often.

    Given ``n`` detections in all, each is the student's with probability 1/2 (exact binomial test, one-sided).
    """
    return float(binom.sf(student - 1, teacher + student, 0.5))


def _more_than_chance(teacher: int, student: int, level: float) -> tuple[str, ...]:
    chance = excess_by_chance(teacher, student)
    if student <= teacher or chance >= level:
        return ()
    return (f"{student} detections, the teacher has {teacher}; by chance with probability {chance:.2g}",)
