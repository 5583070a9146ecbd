"""Lower precision for a trained network: ``python -m photonstep.export.quantize RUN --precision int8 --data DATA``.

INT8 by calibration: ranges of the activations are observed over simulated frames of every noise level, real frames and
the float network's own trajectories (`export.states`); the percentile that bounds them is the one that loses least on
the calibration states, whose truth is known. Where that is too much, the most sensitive layers stay in float, one at a
time. What it costs is then measured on held-out states in every noise bin. The result goes to ``quantized/``:

    step_int8.onnx             U8S8 for CPUs            step_fp16.onnx       strongly typed, for TensorRT
    step_int8_symmetric.onnx   S8S8 for TensorRT        quantization.json    settings, losses by noise bin, sizes, speed
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.resources
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import onnx

from ..models.checkpoint import load_network, task_of
from ..models.network import Denoiser
from ..runtime.bundle import SUFFIX
from ..runtime.errors import PhotonstepError, TrainingError
from ..runtime.restore import shipped_bundles
from . import judge, states
from .activation_ranges import percentile_ranges
from .half import to_half
from .onnx import OPSET, to_onnx
from .qdq import Dialect, Range, quantisable, with_qdq

PRECISIONS: Final = ("int8", "fp16")
MARGIN: Final = 0.8  # of the gate, on the calibration states: held-out ones may lose a little more
GATE_DB: Final = 0.1  # PSNR that a network of lower precision may lose against its own float32, in every noise bin
PERCENTILES: Final = (99.9, 99.99, 99.995, 99.999, 100.0)
MOST_IN_FLOAT: Final = 4
REPORT, RANGES = "quantization.json", "ranges.json"
MEMBERS: Final[dict[str, str]] = {
    "int8": "step_int8.onnx", "int8_symmetric": "step_int8_symmetric.onnx", "fp16": "step_fp16.onnx",
}  # fmt: skip
DEMO_FRAME: Final = Path(str(importlib.resources.files("photonstep"))) / "demo_data" / "demo.tif"
DIALECTS: Final[dict[str, Dialect]] = {"int8": "cpu", "int8_symmetric": "tensorrt"}


@dataclass(frozen=True, kw_only=True)
class QuantizeSettings:
    """How a network is quantised; goes into the report.

    Parameters
    ----------
    percentiles : candidates for the share of the activations that a range holds
    per_bin, judged_per_bin : states of every noise level that calibrate and that judge
    in_float : layers that stay in float whatever their loss
    gate_db : largest loss in PSNR in any noise bin; more layers stay in float until it holds, at most ``most_in_float``
    frames : TIFF files whose first plane calibrates too
    """

    percentiles: tuple[float, ...] = PERCENTILES
    per_bin: int = 24
    judged_per_bin: int = 32
    in_float: tuple[str, ...] = ()
    most_in_float: int = MOST_IN_FLOAT
    gate_db: float = GATE_DB
    frames: tuple[str, ...] = (str(DEMO_FRAME),)
    seed: int = 20261124

    def __post_init__(self) -> None:
        if not self.percentiles or any(not 50 < p <= 100 for p in self.percentiles):
            raise TrainingError(f"percentiles are {self.percentiles}; expected numbers above 50, up to 100")
        if self.per_bin < 1 or self.judged_per_bin < 1:
            raise TrainingError(f"{self.per_bin} and {self.judged_per_bin} states per noise bin; expected 1 or more")


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """What `quantize` wrote: files of the precisions that pass their gate, and the report's entry of every one."""

    folder: Path
    files: dict[str, Path]
    entries: dict[str, dict[str, Any]]
    speed_ms: dict[str, float] = field(default_factory=dict)

    def passes(self, precision: str) -> bool:
        return bool(self.entries[precision]["passes"])


Progress = Callable[[str], None]


def quantize(
    source: str | Path,
    *,
    precision: str = "int8",
    data: Path | None = None,
    output: Path | None = None,
    settings: QuantizeSettings | None = None,
    progress: Progress = print,
) -> Quantised:
    """Write networks of lower precision beside a run's weights; one that misses its gate is reported, not written.

    Parameters
    ----------
    source : a run folder, or a bundle (path or shipped name)
    precision : "int8" (both INT8 networks) or "fp16"
    data : folder that holds ``clean/``; None leaves simulated fields, samples and the demo frame
    output : folder of the results; a run's own ``quantized/`` when None
    progress : called with a line of text after every part

    Raises
    ------
    TrainingError : no such run, an unknown precision, or a bundle without an output folder
    """
    if precision not in PRECISIONS:
        raise TrainingError(f"precision is {precision!r}; choose one of {', '.join(PRECISIONS)}")
    chosen, network = settings or QuantizeSettings(), load_network(source)
    folder = _folder(source, output)
    graph = to_onnx(network)
    work = _Work.of(network, graph, task_of(source), data, chosen, progress)
    made: dict[str, tuple[bytes, dict[str, Any]]] = {}
    speed_ms: dict[str, float] = {}
    if precision == "fp16":
        made["fp16"] = work.half()
    else:
        learnt = _learnt_ranges(source)
        candidates = learnt or percentile_ranges(graph, [s.planes for s in work.every], chosen.percentiles)
        made = {name: work.int8(name, candidates) for name in DIALECTS}
        speed_ms = judge.speed({"fp32": graph, "int8": made["int8"][0]}, network.config.planes, None)
        progress("512x512 in OpenVINO: " + ", ".join(f"{name} {ms:.1f} ms" for name, ms in speed_ms.items()))
    return _write(folder, made, chosen, speed_ms)


@dataclass(frozen=True, kw_only=True)
class _Work:
    """A float network with the states that calibrate and judge its quantised kin."""

    graph: bytes
    sigma_data: float
    settings: QuantizeSettings
    progress: Progress
    known: list[states.State]  # simulated for calibration: their truth is known
    every: list[states.State]
    judged: list[states.State]
    exact: dict[str, list[Any]]

    @classmethod
    def of(
        cls,
        network: Denoiser,
        graph: bytes,
        task: str,
        data: Path | None,
        settings: QuantizeSettings,
        progress: Progress,
    ) -> _Work:
        seed, config = settings.seed, network.config
        known = states.simulated_states(
            states.batches_of(task, data, split="train", seed=seed), config, per_bin=settings.per_bin, seed=seed
        )
        real = states.frame_states([Path(f) for f in settings.frames], config) if task == "denoise" else []
        walked = list(states.walked_states(network, [*known[::4], *real[::2]]))
        judged = states.simulated_states(
            states.batches_of(task, data, split="val", seed=seed + 1), config,
            per_bin=settings.judged_per_bin, seed=seed + 1,
        )  # fmt: skip
        progress(
            f"{len(known)} simulated states, {len(real)} tiles of real frames and {len(walked)} states of K = "
            f"{states.WALK_STEPS} trajectories calibrate; {len(judged)} held-out states judge"
        )
        evaluate = judge.evaluator(graph, "fp32")
        exact = {"known": judge.outputs(evaluate, known), "judged": judge.outputs(evaluate, judged)}
        return cls(
            graph=graph, sigma_data=config.sigma_data, settings=settings, progress=progress,
            known=known, every=[*known, *real, *walked], judged=judged, exact=exact,
        )  # fmt: skip

    def rows(self, network: bytes, precision: str, which: str) -> list[dict[str, Any]]:
        """Losses by noise bin on the calibration's states ("known") or on the held-out ones ("judged")."""
        chosen = self.known if which == "known" else self.judged
        low = judge.outputs(judge.evaluator(network, precision), chosen)
        return judge.by_bin(self.exact[which], low, chosen, self.sigma_data)

    def half(self) -> tuple[bytes, dict[str, Any]]:
        network = to_half(self.graph)
        return network, self._entry("fp16", network, {})

    def int8(
        self, precision: str, candidates: Mapping[float | str, Mapping[str, Range]]
    ) -> tuple[bytes, dict[str, Any]]:
        """The INT8 network of a dialect: the best ranges, then layers back to float until the gate holds."""
        dialect, in_float = DIALECTS[precision], list(self.settings.in_float)
        allowed = MARGIN * self.settings.gate_db
        tried: dict[str, float] = {}
        for name, ranges in candidates.items():
            rows = self.rows(with_qdq(self.graph, ranges, dialect, in_float=in_float), precision, "known")
            tried[str(name)] = judge.worst_loss_db(rows)
        best = min(candidates, key=lambda name: tried[str(name)])
        ranges, worst = candidates[best], tried[str(best)]
        told = ", ".join(f"{name}: {loss:.3f} dB" for name, loss in tried.items())
        self.progress(f"{precision}: worst loss of any noise bin on the calibration states by percentile: {told}")
        if worst > allowed and self.settings.most_in_float:
            in_float += self._most_sensitive(ranges, precision, in_float, allowed)
        network = with_qdq(self.graph, ranges, dialect, in_float=in_float)
        facts = {"ranges": str(best), "worst_loss_db_by_ranges": tried, "in_float": ["stem", *in_float, "head"]}
        return network, self._entry(precision, network, facts)

    def _most_sensitive(
        self, ranges: Mapping[str, Range], precision: str, in_float: Sequence[str], allowed: float
    ) -> list[str]:
        """Layers that cost most when they alone are quantised, as many as it takes to pass with a margin."""
        names = quantisable(onnx.load_model_from_string(self.graph))
        layers = [name for name in names if name not in in_float]
        dialect, alone = DIALECTS[precision], {}
        for layer in layers:
            network = with_qdq(self.graph, ranges, dialect, in_float=[n for n in names if n != layer])
            alone[layer] = judge.worst_loss_db(self.rows(network, precision, "known"))
        order = sorted(layers, key=lambda n: -alone[n])
        for count in range(1, self.settings.most_in_float + 1):
            network = with_qdq(self.graph, ranges, dialect, in_float=[*in_float, *order[:count]])
            worst = judge.worst_loss_db(self.rows(network, precision, "known"))
            self.progress(f"{precision}: with {', '.join(order[:count])} in float {worst:.3f} dB")
            if worst <= allowed:
                break
        return order[:count]

    def _entry(self, precision: str, network: bytes, facts: dict[str, Any]) -> dict[str, Any]:
        rows = self.rows(network, precision, "judged")
        worst = judge.worst_loss_db(rows)
        passes = worst <= self.settings.gate_db
        verdict = "passes" if passes else "MISSES"
        self.progress(f"{precision}: worst loss {worst:.3f} dB, {verdict} the gate of {self.settings.gate_db} dB")
        return {
            **facts, "float_sha256": hashlib.sha256(self.graph).hexdigest(), "size_bytes": len(network),
            "worst_loss_db": worst, "passes": passes, "by_noise": rows,
        }  # fmt: skip


def _write(
    folder: Path,
    made: Mapping[str, tuple[bytes, dict[str, Any]]],
    settings: QuantizeSettings,
    speed_ms: dict[str, float],
) -> Quantised:
    folder.mkdir(parents=True, exist_ok=True)
    report = _read_report(folder)
    files = {}
    for precision, (network, entry) in made.items():
        path = folder / MEMBERS[precision]
        report["networks"][precision] = {"member": path.name if entry["passes"] else None, "opset": OPSET, **entry}
        if entry["passes"]:
            files[precision] = path
            _replace(path, network)
        else:  # what is in this folder ships
            path.unlink(missing_ok=True)
    versions = {name: importlib.metadata.version(name) for name in ("onnx", "onnxruntime", "openvino", "torch")}
    described = {**vars(settings), "frames": [Path(frame).name for frame in settings.frames]}
    report |= {"tool": "photonstep.export.quantize", "versions": versions, "settings": described}
    if speed_ms:
        report["speed_ms_512x512_openvino"] = speed_ms
    _replace(folder / REPORT, (json.dumps(report, indent=1) + "\n").encode())
    entries = {precision: report["networks"][precision] for precision in made}
    return Quantised(folder=folder, files=files, entries=entries, speed_ms=speed_ms)


def _read_report(folder: Path) -> dict[str, Any]:
    """The report of an earlier call on other precisions, or an empty one."""
    path = folder / REPORT
    report: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"networks": {}}
    return report


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise TrainingError(f"cannot write {path}: {error}; free some space or choose another folder") from error


def _is_bundle(source: str | Path) -> bool:
    return str(source) in shipped_bundles() or Path(source).suffix == SUFFIX


def _folder(source: str | Path, output: Path | None) -> Path:
    if output is not None:
        return output
    if not Path(source).is_dir():
        raise TrainingError(f"{source} is no run folder, so it has no quantized/ of its own; name an output folder")
    return Path(source) / "quantized"


def _learnt_ranges(source: str | Path) -> dict[float | str, dict[str, Range]] | None:
    """Ranges that quantisation-aware training left in the run folder, if it did."""
    path = Path(source) / RANGES
    if not path.is_file():
        return None
    return {"learnt": {layer: (low, high) for layer, (low, high) in json.loads(path.read_text()).items()}}


def main() -> int:
    """The command; returns 1 where a network misses its gate, 2 where it could not be done."""
    parser = argparse.ArgumentParser(description="write networks of lower precision beside a run's weights")
    parser.add_argument("source", help="run folder, or a bundle (path or shipped name) together with --output")
    parser.add_argument("--precision", choices=PRECISIONS, default="int8")
    parser.add_argument("--data", type=Path, help="folder that holds clean/, for calibration and held-out states")
    parser.add_argument("--frames", type=Path, nargs="*", default=[], help="more real frames (TIFF) to calibrate on")
    parser.add_argument("--in-float", nargs="*", default=[], metavar="LAYER", help="layers that stay in float")
    parser.add_argument(
        "--percentiles", type=float, nargs="+", default=PERCENTILES, help="candidates for the share that a range holds"
    )
    parser.add_argument("-o", "--output", type=Path, help="default: RUN/quantized")
    arguments = parser.parse_args()
    frames = (*QuantizeSettings.frames, *map(str, arguments.frames))
    try:
        settings = QuantizeSettings(
            frames=frames, in_float=tuple(arguments.in_float), percentiles=tuple(arguments.percentiles)
        )
        result = quantize(
            arguments.source, precision=arguments.precision, data=arguments.data, output=arguments.output,
            settings=settings,
        )  # fmt: skip
    except PhotonstepError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for precision, entry in result.entries.items():
        written = f"wrote {result.files[precision]}" if result.passes(precision) else f"{precision} is not written"
        print(f"{written}, {entry['size_bytes'] / 1e6:.2f} MB")
        for row in entry["by_noise"]:
            print(
                f"  sigma {row['sigma']:>12}: {row['loss_db']:+.3f} dB, {row['error_in_noise']:.4f} of the noise apart"
            )
    if not all(result.passes(precision) for precision in result.entries):
        hint = "a network misses the gate: ship the higher precision, or fine-tune it with photonstep.export.qat"
        print(hint, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
