"""Quantisation-aware fine-tuning: ``python -m photonstep.export.qat RUN -o RUN-int8 --steps 1000 --data DATA``.

For networks that lose too much by calibration alone. The network computes in float but rounds where the INT8 graph of
`export.qdq` will round: the input of every inner convolution to its unsigned grid, weights per output channel.
Gradients pass straight through the rounding; ranges are learnt with the weights, and the float network is the teacher.
The result is a run folder with ``ranges.json``, which `export.quantize` writes into the graph as it is.

Source: straight-through gradients, Bengio et al. 2013, arXiv:1308.3432; learnt step sizes, Esser et al. 2020 (LSQ),
arXiv:1902.08153.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..models.checkpoint import load_network, task_of
from ..models.loop import LoopSettings, run_loop
from ..models.network import Denoiser
from ..models.noise import Batch
from ..models.run_folder import run_settings, write_weights
from ..models.train import network_planes
from ..runtime.errors import PhotonstepError, TrainingError
from . import states
from .activation_ranges import percentile_ranges
from .onnx import to_onnx
from .qdq import UNSIGNED_LEVELS, WEIGHT_LEVELS, Range
from .quantize import DEMO_FRAME, RANGES

START_PERCENTILE = 99.99


@dataclass(frozen=True, kw_only=True)
class QatSettings(LoopSettings):
    """One fine-tuning; in float32, since bfloat16 is coarser than the steps that are to be learnt."""

    learning_rate: float = 1e-4
    warmup_steps: int = 20
    ema_decay: float = 0.99
    precision: str = "fp32"
    validate_every: int = 100
    per_bin: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.precision != "fp32":
            raise TrainingError(f"precision is {self.precision!r}; fine-tuning for INT8 needs fp32")


class RoundedConv2d(nn.Conv2d):
    """A convolution that rounds its input and its weights as the INT8 graph does; the range of the input is learnt."""

    def __init__(self, plain: nn.Conv2d, limits: Range) -> None:
        shape: tuple[Any, ...] = (plain.kernel_size, plain.stride, plain.padding)
        super().__init__(plain.in_channels, plain.out_channels, *shape, bias=plain.bias is not None)
        self.load_state_dict(plain.state_dict())
        self.low = nn.Parameter(torch.tensor(min(limits[0], 0.0)), requires_grad=limits[0] < 0)
        self.high = nn.Parameter(torch.tensor(max(limits[1], 1e-6)))

    @property
    def limits(self) -> Range:
        return min(float(self.low.detach()), 0.0), max(float(self.high.detach()), 1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(self._rounded_input(x), _rounded_weight(self.weight), self.bias)

    def _rounded_input(self, x: Tensor) -> Tensor:
        low, high = self.low.clamp_max(0.0), self.high.clamp_min(1e-6)
        scale = (high - low) / UNSIGNED_LEVELS
        zero_point = _round(-low / scale)
        return (torch.clamp(_round(x / scale) + zero_point, 0, UNSIGNED_LEVELS) - zero_point) * scale


def _rounded_weight(weight: Tensor) -> Tensor:
    largest = weight.detach().flatten(1).abs().amax(1).clamp_min(WEIGHT_LEVELS * 1e-8)
    scale = (largest / WEIGHT_LEVELS)[:, None, None, None]
    return torch.clamp(_round(weight / scale), -WEIGHT_LEVELS, WEIGHT_LEVELS) * scale


def _round(x: Tensor) -> Tensor:
    """Nearest integer, half to even as in ONNX; its gradient is that of the identity."""
    return x + (torch.round(x) - x).detach()


def rounded(network: Denoiser, ranges: dict[str, Range]) -> Denoiser:
    """A copy of a network whose convolutions named in ``ranges`` round their inputs and weights."""
    copy = Denoiser(network.config)
    copy.load_state_dict(network.state_dict())
    for layer, limits in ranges.items():
        parent, _, name = layer.rpartition(".")
        setattr(copy.get_submodule(parent), name, RoundedConv2d(copy.get_submodule(layer), limits))  # type: ignore[arg-type]
    return copy


def learnt(network: Denoiser) -> tuple[Denoiser, dict[str, Range]]:
    """The plain network under a rounding one, and the ranges that it learnt, by layer name."""
    ranges = {name: m.limits for name, m in network.named_modules() if isinstance(m, RoundedConv2d)}
    ours = {f"{layer}.{end}" for layer in ranges for end in ("low", "high")}
    plain = Denoiser(network.config)
    plain.load_state_dict({name: value for name, value in network.state_dict().items() if name not in ours})
    return plain.eval(), ranges


def qat(source: str | Path, output: Path, settings: QatSettings, *, data: Path | None = None) -> Path:
    """Fine-tune a network for INT8, with its own float self as the teacher.

    Parameters
    ----------
    source : run folder or bundle
    output : a new run folder; gets ``weights.pt`` and ``ranges.json``, and resumes if interrupted
    data : folder that holds ``clean/``; None leaves simulated fields and samples

    Returns
    -------
    path of ``weights.pt``

    Raises
    ------
    TrainingError : no such run, or the folder holds a run of other settings
    """
    teacher, task = load_network(source).requires_grad_(False), task_of(source)
    batch = states.batches_of(task, data, split="train", seed=settings.seed)
    held_out = states.batches_of(task, data, split="val", seed=settings.seed + 1)
    student = rounded(teacher, _first_ranges(teacher, task, batch, settings))
    teachers = {torch.device("cpu"): teacher}

    def loss(network: nn.Module, seen: Batch) -> Tensor:
        planes = _planes(seen, teacher)
        if planes.device not in teachers:
            teachers[planes.device] = load_network(source).requires_grad_(False).to(planes.device)
        exact: Tensor = teachers[planes.device](planes)
        return (network(planes).float() - exact).square().mean()

    @torch.no_grad()
    def distance(network: nn.Module) -> float:
        on_cpu = rounded(teacher, _ranges_of(network))
        on_cpu.load_state_dict({name: value.cpu() for name, value in network.state_dict().items()})
        return float(sum(loss(on_cpu, held_out(index)) for index in range(4)) / 4)

    record = run_settings("quantize", settings, student, task=task, started_from=source, teacher=source)
    run_loop(student, settings, output, batch=batch, loss=loss, held_out=distance, record=record)
    return _finish(student, output)


def _finish(student: Denoiser, output: Path) -> Path:
    """Split what the loop left into plain weights and ranges."""
    averaged = torch.load(output / "weights.pt", weights_only=True, map_location="cpu")
    student.cpu().load_state_dict(averaged["state"])
    plain, ranges = learnt(student)
    (output / RANGES).write_text(json.dumps(ranges, indent=1) + "\n")
    return write_weights(plain, output, averaged["step"])


def _first_ranges(network: Denoiser, task: str, batch: object, settings: QatSettings) -> dict[str, Range]:
    known = states.simulated_states(batch, network.config, per_bin=settings.per_bin, seed=settings.seed)  # type: ignore[arg-type]
    real = states.frame_states([DEMO_FRAME], network.config) if task == "denoise" else []
    planes = [state.planes for state in (*known, *real)]
    return percentile_ranges(to_onnx(network), planes, (START_PERCENTILE,))[START_PERCENTILE]


def _ranges_of(network: nn.Module) -> dict[str, Range]:
    return {name: m.limits for name, m in network.named_modules() if isinstance(m, RoundedConv2d)}


def _planes(batch: Batch, network: Denoiser) -> Tensor:
    """What the network sees; the detail knob, where there is one, takes a place of its own per batch entry."""
    planes = network_planes(batch, network.config.sigma_data)
    missing = network.config.planes - planes.shape[1]
    if missing:
        knob = torch.linspace(0, 1, len(planes), device=planes.device)[:, None, None, None]
        planes = torch.cat([planes, knob.expand(-1, missing, *planes.shape[2:])], 1)
    return planes.contiguous(memory_format=torch.channels_last)


def main() -> int:
    """The command; returns 2 where it could not be done."""
    parser = argparse.ArgumentParser(description="fine-tune a network for INT8")
    parser.add_argument("source", help="run folder, or a bundle (path or shipped name)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="a new run folder")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--data", type=Path, help="folder that holds clean/")
    parser.add_argument("--learning-rate", type=float, default=QatSettings.learning_rate)
    arguments = parser.parse_args()
    try:
        settings = QatSettings(steps=arguments.steps, learning_rate=arguments.learning_rate)
        written = qat(arguments.source, arguments.output, settings, data=arguments.data)
    except PhotonstepError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {written}; next: photonstep quantize")
    return 0


if __name__ == "__main__":
    sys.exit(main())
