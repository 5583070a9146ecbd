"""What a validation found: two subjects, bins, blank fields, examples, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from dataclasses import fields as dataclass_fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import TrainingError
from .gates import BlankBin, Figures, Gates, NoiseBin, blank_total_failures
from .noise_bins import Plane


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A bundle in one precision and plan: what was validated, or against what."""

    name: str
    version: str
    sha256: str
    precision: str
    steps: int
    parameters: int
    kmac_per_px: float
    network_bytes: int
    network_sha256: str

    @property
    def title(self) -> str:
        return f"{self.name} {self.version}, {self.precision}, K = {self.steps}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """One scene at one light level, in photoelectrons; the two detail pictures have texture at the price of PSNR."""

    photons: float
    noisy: Plane
    truth: Plane
    teacher: Plane
    student: Plane
    teacher_detail: Plane
    student_detail: Plane


@dataclass(frozen=True, kw_only=True, eq=False)
class Validation:
    """What was measured and what it means; `passed` is the verdict, `failures` its reasons."""

    student: Subject
    teacher: Subject
    gates: Gates
    bins: tuple[NoiseBin, ...]
    blanks: tuple[BlankBin, ...]
    settings: dict[str, Any]
    notes: tuple[str, ...] = ()
    examples: tuple[Example, ...] = ()
    spectra: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    @property
    def failures(self) -> tuple[str, ...]:
        """One line for every gate that a bin misses."""
        found = [f"{b.name}: {miss}" for b in self.bins for miss in b.failures(self.gates)]
        found += [f"{b.name}: {miss}" for b in self.blanks for miss in b.failures()]
        found += [f"all blank fields: {miss}" for miss in blank_total_failures(self.blanks)]
        return tuple(found)

    @property
    def passed(self) -> bool:
        return not self.failures

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Validation:
        """The inverse of `as_dict`, without pictures of scenes.

        Raises
        ------
        TrainingError : not what a validation wrote
        """
        try:
            return cls(
                student=Subject(**fields["student"]), teacher=Subject(**fields["teacher"]),
                gates=Gates(**fields["gates"]), bins=tuple(map(_noise_bin, fields["bins"])),
                blanks=tuple(BlankBin(**_own(BlankBin, b)) for b in fields["blank_fields"]),
                settings=dict(fields["settings"]), notes=tuple(fields["notes"]),
                spectra={name: np.asarray(power, np.float64) for name, power in fields["spectra"].items()},
            )  # fmt: skip
        except (KeyError, TypeError, AttributeError) as error:
            raise TrainingError(
                f"these are no results of a validation ({error}); make them with photonstep validate --json"
            ) from None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without pictures: what travels in a bundle's report."""
        return {
            "passed": self.passed,
            "failures": list(self.failures),
            "gates": asdict(self.gates),
            "student": asdict(self.student),
            "teacher": asdict(self.teacher),
            "settings": self.settings,
            "notes": list(self.notes),
            "bins": [
                asdict(b)
                | {"psnr_loss_db": b.psnr_loss_db, "ssim_loss": b.ssim_loss}
                | {"added_bias_percent": b.added_bias_percent, "failures": list(b.failures(self.gates))}
                for b in self.bins
            ],
            "blank_fields": [asdict(b) | {"failures": list(b.failures())} for b in self.blanks],
            "spectra": {name: [round(float(v), 6) for v in power] for name, power in self.spectra.items()},
        }


def _own(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Of a record the fields that the class has; what it computes is computed again."""
    return {f.name: values[f.name] for f in dataclass_fields(kind)}


def _noise_bin(values: Mapping[str, Any]) -> NoiseBin:
    sides = {who: Figures(**values[who]) for who in ("teacher", "student")}
    return NoiseBin(**{**_own(NoiseBin, values), **sides})
