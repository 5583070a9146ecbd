"""Kernels: GB/s of every operation beside a copy of the same amount of memory, on the CPU and on a GPU where one is.

    python -m benchmarks.kernels --json kernels.json

An operation's bytes are those of the arrays that it must read and write once. The copy beside it moves as many bytes,
half of them read and half written, with as many threads as the library. Nothing is allocated inside the timed part.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from photonstep.kernels import grids, native
from photonstep.kernels.arguments import structure
from photonstep.runtime.backends import cuda_device

from . import machine

SIZES_PX: Final = (512, 1024, 2048)
SHARES: Final = {"cpu": 0.6, "gpu": 0.7}  # of the copy's bandwidth, the goal at the largest size
BUDGET_S: Final = 0.3
FLOAT, UINT16 = 2, 1


@dataclass(frozen=True, kw_only=True)
class Case:
    """An operation with its arrays: inputs by field, outputs as (shape, dtype), everything else as numbers."""

    name: str
    op: str
    kind: str
    inputs: dict[str, NDArray[Any]]
    outputs: dict[str, tuple[tuple[int, ...], str]] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        written = sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in self.outputs.values())
        return written + sum(array.nbytes for array in self.inputs.values())

    def arguments(self, addresses: dict[str, int]) -> Any:
        k = structure(self.kind)()
        for name, value in {**self.numbers, **addresses}.items():
            if isinstance(value, list):
                getattr(k, name)[: len(value)] = value
            else:
                setattr(k, name, value)
        return k


def cases(side: int) -> Iterator[Case]:
    """Every operation of the restore path on a square frame."""
    rng = np.random.default_rng(0)
    shape = (side, side)
    frame = rng.integers(90, 4000, shape).astype(np.uint16)
    z = rng.uniform(2, 90, shape).astype(np.float32)
    u = rng.uniform(-0.5, 0.5, shape).astype(np.float32)
    size = {"height": side, "width": side}
    whole, seen = (shape, "float32"), {"pixel_type": UINT16, **size}
    counts = {"gain": 1.01, "shift": 0.1, "per_gain": 2.1, "offset": 100.0, "counts_stride": 2 * side}
    row = {"sigma": 0.1, "sigma_next": 0.03, "sigma_data": 0.25, "sigma_min": 0.002, "b": 0.7, "a": 0.3, **size}
    scale = {"scale": 1.84, "bias": -170.0}
    yield Case(
        name="stabilise", op="stabilise", kind="Stabilise", inputs={"frame": frame}, outputs={"z": whole},
        numbers={"frame_stride": 2 * side, **seen, **scale},
    )  # fmt: skip
    yield Case(
        name="stabilise, maps", op="stabilise", kind="Stabilise", outputs={"z": whole},
        inputs={"frame": frame, "scale_map": np.full(shape, 1.84, np.float32), "bias_map": -z},
        numbers={"frame_stride": 2 * side, **seen},
    )  # fmt: skip
    yield Case(
        name="network input", op="network_input", kind="NetworkInput", inputs={"z": z},
        outputs={"state": whole, "plane": whole},
        numbers={"factor": 1, "per_span": 0.01, "shift": 0.5, "c_in": 3.5, **size},
    )  # fmt: skip
    yield Case(
        name="sampler row", op="sampler_row", kind="SamplerRow", inputs={"x": u, "network": z},
        outputs={"next": whole, "plane": whole, "condition": whole}, numbers=row,
    )  # fmt: skip
    yield Case(
        name="sampler row, last", op="sampler_row", kind="SamplerRow", inputs={"x": u, "network": z},
        outputs={"next": whole}, numbers={**row, "a": 0.0, "b": 1.0, "sigma_next": 0.0},
    )  # fmt: skip
    yield Case(
        name="electrons", op="electrons", kind="Electrons", inputs={"u": u}, outputs={"electrons": whole},
        numbers={"u_stride": 4 * side, "span": 80.0, "centre": 40.0, "constant": 3.0, **size},
    )  # fmt: skip
    yield Case(
        name="counts and light", op="counts", kind="Counts", inputs={"electrons": z},
        outputs={"counts": (shape, "uint16")}, numbers={**counts, **seen},
    )  # fmt: skip
    for block, image, type_ in ((4, z, FLOAT), (8, frame, UINT16)):
        yield Case(
            name=f"block means, {block} px of {image.dtype}", op="block_means", kind="BlockMeans",
            inputs={"image": image}, outputs={"means": ((side // block, side // block), "float32")},
            numbers={"image_stride": image.strides[0], "block": block, "scale": 1.0, "pixel_type": type_, **size},
        )  # fmt: skip
    yield Case(
        name="residual", op="residual", kind="Residual", inputs={"z": z, "u": u},
        numbers={"u_stride": 4 * side, "band": 16, "step": 1, "span": 80.0, "centre": 40.0, "per_noise": 1.0, **size},
    )  # fmt: skip
    yield Case(
        name="Laplacian", op="laplacian", kind="Laplacian", inputs={"image": z},
        outputs={"magnitude": ((side - 2, side - 2), "float32")}, numbers={"image_stride": 4 * side, **size},
    )  # fmt: skip
    yield Case(
        name="preview", op="preview", kind="Preview", inputs={"image": frame}, outputs={"grey": (shape, "uint8")},
        numbers={"image_stride": 2 * side, "low": 100.0, "per_range": 0.07, **seen},
    )  # fmt: skip
    for hashed in (0, 1):
        yield Case(
            name="content" if hashed else "full pixels", op="content", kind="Content", inputs={"frame": frame},
            numbers={"frame_stride": 2 * side, "full": 4095.0, "hashed": hashed, **seen},
        )  # fmt: skip
    values = z.ravel()[: side * side // 16].copy()
    ranks = [values.size // 200, values.size // 200 + 1, values.size - values.size // 500, values.size - 1]
    yield Case(
        name="order statistics of block means", op="order_statistics", kind="OrderStatistics",
        inputs={"values": values}, numbers={"count": values.size, "ranks": 4, "rank": ranks},
    )  # fmt: skip
    yield Case(
        name="normal noise", op="normal", kind="Normal", inputs={}, outputs={"noise": whole},
        numbers={"row": 1, "key_low": 2, "key_high": 3, **size},
    )  # fmt: skip


def least_seconds(run: Callable[[], object], *, budget_s: float = BUDGET_S) -> float:
    """The least disturbed of as many runs as the budget has room for, 3 or more."""
    run()
    ends, best, runs = time.perf_counter() + budget_s, float("inf"), 0
    while runs < 3 or time.perf_counter() < ends:
        started = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - started)
        runs += 1
    return best


def copy_seconds(nbytes: int, threads: int, *, budget_s: float = BUDGET_S) -> float:
    """Of a copy that moves ``nbytes`` in all: one thread, or parts in several, whichever is faster."""
    source, target = np.ones(nbytes // 2, np.uint8), np.zeros(nbytes // 2, np.uint8)
    best = least_seconds(lambda: np.copyto(target, source), budget_s=budget_s)
    if threads < 2:
        return best
    parts = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
    with ThreadPoolExecutor(threads) as pool:

        def together() -> None:
            list(pool.map(lambda pair: np.copyto(*pair), parts))

        return min(best, least_seconds(together, budget_s=budget_s))


def on_cpu(case: Case, library: native.Library, *, budget_s: float = BUDGET_S) -> float:
    """Seconds of one call of the native library."""
    outputs = {name: np.empty(shape, dtype) for name, (shape, dtype) in case.outputs.items()}
    addresses = {name: array.ctypes.data for name, array in (case.inputs | outputs).items()}
    k = case.arguments(addresses)
    return least_seconds(lambda: library.call(case.op, k), budget_s=budget_s)


class OnGpu:
    """Times operations on a GPU with events around many launches."""

    LAUNCHES: Final = 50

    def __init__(self, device: cuda_device.Device) -> None:
        self._device = device

    def operation(self, case: Case) -> float:
        held = {name: self._put(array.tobytes()) for name, array in case.inputs.items()}
        for name, (shape, dtype) in case.outputs.items():
            held[name] = self._device.allocate(int(np.prod(shape)) * np.dtype(dtype).itemsize)
        k = case.arguments({name: memory.address for name, memory in held.items()})
        scratch = grids.scratch_bytes(case.op, k)
        if scratch:
            held["scratch"] = self._device.allocate(scratch)
            setattr(k, "scratch" if case.op == "order_statistics" else "parts", held["scratch"].address)
        held["arguments"] = self._put(bytes(k))
        made, address = grids.launches(case.op, k), held["arguments"].address

        def run() -> None:
            for launch in made:
                self._device.launch(launch.kernel, launch.grid, address)

        return self._seconds(run, held)

    def copy(self, nbytes: int) -> float:
        held: dict[str, Any] = {name: self._device.allocate(nbytes // 2) for name in ("to", "source")}
        return self._seconds(lambda: self._device.copy(held["to"], held["source"]), held)

    def _put(self, content: bytes) -> Any:
        memory, pinned = self._device.allocate(len(content)), self._device.allocate_pinned(len(content))
        pinned.array[:] = np.frombuffer(content, np.uint8)
        self._device.upload(memory, pinned)
        self._device.synchronise()
        pinned.close()
        return memory

    def _seconds(self, run: Callable[[], None], held: dict[str, Any]) -> float:
        def many() -> None:
            for _ in range(self.LAUNCHES):
                run()

        graph = self._device.capture(many)
        best = float("inf")
        for _ in range(5):
            start = self._device.event()
            graph.launch()
            end = self._device.event()
            self._device.synchronise()
            best = min(best, end.since(start) * 1e-3 / self.LAUNCHES)
        graph.close()
        for memory in held.values():
            memory.close()
        return best


def entry(case: Case, side: int, where: str, seconds: float, copied: float) -> dict[str, Any]:
    """One line of the table."""
    return {
        "where": where, "side_px": side, "operation": case.name, "bytes": case.nbytes,
        "gb_per_s": case.nbytes / seconds * 1e-9, "copy_gb_per_s": case.nbytes / copied * 1e-9,
        "share_of_copy": copied / seconds, "reaches_goal": copied / seconds >= SHARES[where],
    }  # fmt: skip


def measure(sizes: tuple[int, ...] = SIZES_PX, *, budget_s: float = BUDGET_S) -> dict[str, Any]:
    """Machine, what could not be measured, and the lines of the table."""
    library, cause = native.library(), cuda_device.unavailable()
    result: dict[str, Any] = {"machine": machine.record(), "lines": []}
    gpu = None if cause else OnGpu(cuda_device.open_device())
    result["cpu"] = native.describe()
    result["gpu"] = f"not measured: {cause}" if gpu is None else "measured"
    for side in sizes:
        for case in cases(side):
            if library is not None:
                copied = copy_seconds(case.nbytes, library.threads, budget_s=budget_s)
                seconds = on_cpu(case, library, budget_s=budget_s)
                result["lines"].append(entry(case, side, "cpu", seconds, copied))
            if gpu is not None:
                result["lines"].append(entry(case, side, "gpu", gpu.operation(case), gpu.copy(case.nbytes)))
    return result


def table(result: dict[str, Any]) -> str:
    """The lines for people."""
    rows = [f"CPU: {result['cpu']}; GPU: {result['gpu']}"]
    for line in result["lines"]:
        mark = "yes" if line["reaches_goal"] else "no"
        rows.append(
            f"{line['where']}  {line['side_px']:5d}  {line['operation']:32} {line['gb_per_s']:7.2f} GB/s   copy "
            f"{line['copy_gb_per_s']:7.2f}   {100 * line['share_of_copy']:5.0f} %   goal {mark}"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="bandwidth of the kernels beside a copy")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES_PX))
    parser.add_argument("--threads", type=int, help="of the native library and the copy; default: as it chooses")
    arguments = parser.parse_args()
    library = native.library()
    if arguments.threads and library is not None:
        library.set_threads(arguments.threads)
    result = measure(tuple(arguments.sizes))
    print(table(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
