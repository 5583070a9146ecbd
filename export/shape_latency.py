"""How long a network of a given shape takes on this machine, without exporting it anew.

One graph is exported; convolutions take their shapes from their weights, so a narrower network is the same graph with
narrower weights. What was measured is kept in a table by shape: blocks of one level are interchangeable, so their
hidden widths are sorted in the key.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from ..models.network import Denoiser, NetworkConfig
from ..models.stem import strided_weight
from ..runtime.backends.choose import BACKENDS
from ..runtime.backends.protocol import Session
from ..runtime.errors import TrainingError
from .channels import Axis, blocks_of
from .onnx import INPUT_NAME, to_onnx

Measure = Callable[[NetworkConfig], float]


def shape_key(config: NetworkConfig) -> str:
    """Widths, and the sorted hidden widths of each level: networks of one key take the same time."""
    levels: dict[int, list[int]] = {}
    for block, (_, hidden) in zip(blocks_of(config), config.block_widths, strict=True):
        levels.setdefault(block.level, []).append(hidden)
    hidden_text = " ".join("+".join(map(str, sorted(levels[level]))) for level in sorted(levels))
    return f"{'-'.join(map(str, config.widths))} | {hidden_text}"


def neighbourhood(config: NetworkConfig, axis: Axis) -> str:
    """The widths that decide what a narrower axis saves: of the convolutions that produce or read its channels.

    What was saved in one network is saved in another with the same neighbourhood, so few candidates need a measurement.
    """
    blocks = list(zip(blocks_of(config), config.block_widths, strict=True))
    if axis.kind == "hidden":
        block, (stream, hidden) = blocks[axis.index]
        return f"level {block.level}: {stream} > {hidden}"
    level = axis.index
    hidden_text = "+".join(map(str, sorted(h for block, (_, h) in blocks if block.level == level)))
    return f"stream {level}: {'-'.join(map(str, config.widths[max(level - 1, 0) : level + 2]))} | {hidden_text}"


class ShapeGraph:
    """The exported graph of the widest network, given narrower weights on demand."""

    def __init__(self, widest: NetworkConfig) -> None:
        self._model = onnx.load_model_from_string(to_onnx(_filled(widest)))
        del self._model.graph.value_info[:]  # they spell out the widest network's channels

    def of(self, config: NetworkConfig, weights: dict[str, torch.Tensor] | None = None) -> bytes:
        """ONNX bytes of a narrower network; without ``weights``, of arbitrary ones."""
        weights = dict(weights if weights is not None else _filled(config).state_dict())
        weights["stem.weight"] = strided_weight(weights["stem.weight"], config.unshuffle)  # as `to_onnx` has it
        for initialiser in self._model.graph.initializer:
            if initialiser.name in weights:
                value = np.ascontiguousarray(weights[initialiser.name].numpy())
                initialiser.CopyFrom(numpy_helper.from_array(value, initialiser.name))
        content: bytes = self._model.SerializeToString()
        return content


def _filled(config: NetworkConfig) -> Denoiser:
    """No weight is zero: exporters leave out what is, and zeros or denormal numbers may be faster."""
    network = Denoiser(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / max(parameter[0].numel(), 8) ** 0.5)
    return network


class MeasuredLatency:
    """Milliseconds of one evaluation by shape, on the runtime's own backend.

    A machine is rarely idle while it trains. Every network therefore takes turns with the widest one, and its time is
    its share of that; on one thread the clock counts the processor's time, which waits for nobody.
    """

    def __init__(
        self, widest: NetworkConfig, *, frame_px: int, backend: str, precision: str, threads: int, runs: int = 6
    ) -> None:
        if backend not in BACKENDS:
            raise TrainingError(f"backend is {backend!r}; choose one of {', '.join(BACKENDS)}")
        self._backend, self._threads, self._runs = BACKENDS[backend], threads, runs
        able = self._backend.precisions("cpu")
        self._precision = ("bf16" if "bf16" in able else "fp32") if precision == "auto" else precision
        self._graph = ShapeGraph(widest)
        side = max(frame_px // widest.multiple, 1) * widest.multiple
        self._planes = np.random.default_rng(0).normal(size=(1, widest.planes, side, side)).astype(np.float32)
        self._clock = time.process_time if threads == 1 else time.perf_counter
        self._widest = self._open(widest)
        self._widest_ms = min(self._ms(self._widest) for _ in range(2 * runs))

    def __call__(self, config: NetworkConfig) -> float:
        session = self._open(config)
        turns = [(self._ms(session), self._ms(self._widest)) for _ in range(self._runs)]
        session.close()
        return self._widest_ms * min(ms for ms, _ in turns) / min(ms for _, ms in turns)

    def _open(self, config: NetworkConfig) -> Session:
        graph = self._graph.of(config)
        session: Session = self._backend.open(graph, device="cpu", precision=self._precision, threads=self._threads)
        self._ms(session)  # compiles
        return session

    def _ms(self, session: Session) -> float:
        start = self._clock()
        session.run({INPUT_NAME: self._planes})
        return 1000 * (self._clock() - start)


class LatencyTable:
    """Measurements by shape, kept in a JSON file, so that a later call chooses the same channels in no time."""

    def __init__(self, measure: Measure, path: Path | None = None) -> None:
        self._measure, self._path = measure, path
        self.ms: dict[str, float] = json.loads(path.read_text()) if path is not None and path.exists() else {}

    def __call__(self, config: NetworkConfig) -> float:
        key = shape_key(config)
        if key not in self.ms:
            self.ms[key] = round(self._measure(config), 4)
            if self._path is not None:
                partial = self._path.with_name(self._path.name + ".partial")
                partial.write_text(json.dumps(self.ms, indent=1) + "\n")
                partial.replace(self._path)
        return self.ms[key]
