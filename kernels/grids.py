"""How the kernels of ``csrc/*.cu`` are launched: for an operation and its arguments, which kernels on which grid.

    for launch in grids.launches("counts", arguments): ...    # ps_counts, then ps_counts_finish
    scratch = grids.scratch_bytes("counts", arguments)        # its ``parts`` must point at so much device memory

Every block has `THREADS` threads in one row; no kernel asks for dynamic shared memory.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

THREADS: Final = 256  # as in csrc/reduce.cuh
PIXELS_EACH: Final = 4  # as in csrc/pixels.cu
ORDER_BYTES: Final = 4 * (3 * 8 * 2048 + 2 * 8)  # as in csrc/frame_numbers.cu
TILE_PX: Final = (8, 32)  # (y, x), as in csrc/temporal.cu
ORDER_BLOCKS: Final = 64  # enough for block means, whose number is a sixteenth of the pixels or less


class Launch(NamedTuple):
    """A kernel and its grid, (x, y) blocks."""

    kernel: str
    grid: tuple[int, int]


def launches(op: str, arguments: ctypes.Structure) -> tuple[Launch, ...]:
    """The kernels that carry out ``op``, in order; they share one argument structure.

    Parameters
    ----------
    op : a key of `OPERATIONS`
    arguments : the structure of that operation, sizes filled in
    """
    return OPERATIONS[op](arguments)


def scratch_bytes(op: str, arguments: Any) -> int:
    """Bytes of device memory that ``parts`` or ``scratch`` of the arguments must point at; 0 where there is none."""
    if op == "counts":
        return 8 * _spans(arguments.width) * int(arguments.height)
    if op == "residual":
        return 8 * 4 * _blocks(arguments.width) * _bands(arguments)
    if op == "balance":
        return 8 * 5 * _blocks(arguments.count)
    if op == "similarity":
        return 8 * 2 * _blocks(_blocks(arguments.width, arguments.block)) * _blocks(arguments.height, arguments.block)
    return ORDER_BYTES if op == "order_statistics" else 0


def _blocks(count: int, each: int = THREADS) -> int:
    return max(-(-int(count) // each), 1)


def _spans(width: int) -> int:
    return _blocks(width, PIXELS_EACH * THREADS)


def _bands(k: Any) -> int:
    return -(-int(k.height) // int(k.band * k.step))


def _rows(kernel: str, *, inset: int = 0) -> Callable[[Any], tuple[Launch, ...]]:
    def made(k: Any) -> tuple[Launch, ...]:
        return (Launch(kernel, (_spans(k.width - inset), int(k.height) - inset)),)

    return made


def _counts(k: Any) -> tuple[Launch, ...]:
    return (*_rows("ps_counts")(k), Launch("ps_counts_finish", (1, 1)))


def _residual(k: Any) -> tuple[Launch, ...]:
    return Launch("ps_residual", (_blocks(k.width), _bands(k))), Launch("ps_residual_finish", (1, 1))


def _order_statistics(k: Any) -> tuple[Launch, ...]:
    across = min(_blocks(k.count, 4 * THREADS), ORDER_BLOCKS)
    passes: list[Launch] = [Launch("ps_order_clear", (_blocks(ORDER_BYTES // 4), 1))]
    for number in range(3):
        passes.append(Launch(f"ps_order_count_{number}", (across, int(k.ranks) if number else 1)))
        passes.append(Launch(f"ps_order_pick_{number}", (int(k.ranks), 1)))
    return tuple(passes)


def _block_means(k: Any) -> tuple[Launch, ...]:
    return (Launch("ps_block_means", (_blocks(k.width // k.block), int(k.height // k.block))),)


def _full_pixels(k: Any) -> tuple[Launch, ...]:
    return (Launch("ps_full_pixels", (_blocks(-(-k.width // k.block)), -(-int(k.height) // int(k.block)))),)


def _balance(k: Any) -> tuple[Launch, ...]:
    return Launch("ps_balance", (_blocks(k.count), 1)), Launch("ps_balance_finish", (1, 1))


def _tiles(kernel: str) -> Callable[[Any], tuple[Launch, ...]]:
    return lambda k: (Launch(kernel, (_blocks(k.width, TILE_PX[1]), _blocks(k.height, TILE_PX[0]))),)


def _similarity(k: Any) -> tuple[Launch, ...]:
    grid = _blocks(_blocks(k.width, k.block)), _blocks(k.height, k.block)
    return Launch("ps_similarity", grid), Launch("ps_similarity_finish", (1, 1))


OPERATIONS: Final[Mapping[str, Callable[[Any], tuple[Launch, ...]]]] = {
    "stabilise": _rows("ps_stabilise"),
    "network_input": _rows("ps_network_input"),
    "sampler_row": _rows("ps_sampler_row"),
    "normal": _rows("ps_normal"),
    "electrons": _rows("ps_electrons"),
    "counts": _counts,
    "block_means": _block_means,
    "residual": _residual,
    "order_statistics": _order_statistics,
    "laplacian": _rows("ps_laplacian", inset=2),
    "preview": _rows("ps_preview"),
    "content": _rows("ps_content"),
    "window": _rows("ps_window"),
    "fill": lambda k: (Launch("ps_fill", (_spans(k.count), 1)),),
    "full_pixels": _full_pixels,
    "range": lambda k: (Launch("ps_range", (1, 1)),),
    "balance": _balance,
    "fuse": _tiles("ps_fuse"),
    "fused_noise": _tiles("ps_fused_noise"),
    "similarity": _similarity,
}
KERNELS: Final = (
    "ps_stabilise", "ps_network_input", "ps_sampler_row", "ps_normal", "ps_electrons", "ps_counts",
    "ps_counts_finish", "ps_block_means", "ps_residual", "ps_residual_finish", "ps_laplacian", "ps_preview",
    "ps_content", "ps_window", "ps_fill", "ps_full_pixels", "ps_order_clear", "ps_order_count_0", "ps_order_count_1",
    "ps_order_count_2", "ps_order_pick_0", "ps_order_pick_1", "ps_order_pick_2", "ps_range", "ps_balance",
    "ps_balance_finish", "ps_fuse", "ps_fused_noise", "ps_similarity", "ps_similarity_finish",
)  # fmt: skip
