"""One frame's whole way on a GPU, recorded once for a shape and a plan and then run again with other numbers.

    upload -> stabilise -> block means -> order statistics -> range -> for every tile: network input -> K x (network,
    sampler row) -> electrons -> block means -> balance -> counts -> residual -> download

Nothing in it depends on a number that the host would have to read first, so all of it is one CUDA graph.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..kernels import grids
from . import photon_balance, start
from .backends.cuda_device import DeviceMemoryError, Graph
from .backends.protocol import DeviceNetwork
from .device_buffers import DeviceBuffers
from .errors import BackendError
from .manifest import Manifest, Normalisation
from .normalise import NEW_SCENE
from .parameter_block import ParameterBlock
from .plan import Output
from .prediction import require_sigma_data
from .tiling import Tile, plan_tiles

PIXEL_TYPES: Final = {"uint8": 0, "uint16": 1, "float32": 2}
BAND_PX: Final = 16  # as in kernels.ops.residual
MAPS: Final = ("scale", "bias", "gain", "dark", "constant", "per_gain", "offset")

log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a recording is made for. ``limited``: pixels can be full; ``maps``: the camera has a number a pixel."""

    shape: tuple[int, int]
    dtype: str
    sampler: str
    steps: int
    output: Output
    step: int
    maps: bool
    limited: bool
    tile_px: int
    preview: bool = False

    @property
    def out_dtype(self) -> str:
        return "float32" if self.output == "photoelectrons" else self.dtype


class DeviceFrame:
    """A recorded restoration of one frame.

    Parameters
    ----------
    network, manifest, normalisation : what restores
    buffers : memory of the frame's shape, shared with other recordings
    recipe : what to record

    Raises
    ------
    DeviceMemoryError : it does not fit; BackendError : the device or the network's library fails
    """

    def __init__(
        self, network: DeviceNetwork, manifest: Manifest, normalisation: Normalisation, buffers: DeviceBuffers,
        recipe: Recipe,
    ) -> None:  # fmt: skip
        self.recipe = recipe
        self._device, self._network, self._buffers = network.device, network, buffers
        self._manifest, self._normalisation = manifest, normalisation
        self._rows = start.rows(manifest, recipe.sampler, recipe.steps)
        self.tiles = self._plan_tiles()
        self._steps: list[Callable[[], None]] = []
        self._graph: Graph | None = None
        model = manifest.model
        self.constant_planes = 2 * model.noise_correlation_input + model.detail_input
        self._planes = 2 + self.constant_planes
        self.parameters = ParameterBlock(self._device, self._entries())
        try:
            self._lay_out()
            if self._prepare():
                self._capture()
        except BaseException:
            self.close()
            raise

    # --- what the path calls ---

    def run(self) -> None:
        """Put the whole frame on the stream. The frame and its numbers must be in pinned memory."""
        if self._graph is not None:
            self._graph.launch()
        else:
            self._work()

    def fill_constants(self) -> None:
        """Write the planes of one value; needed before `run` where they changed and the frame is one tile."""
        self.parameters.send()
        for index in range(self.constant_planes):
            self._launch_now("fill", "constants", index)

    @property
    def is_captured(self) -> bool:
        return self._graph is not None

    @property
    def frame(self) -> NDArray[Any]:
        """(H, W) of the recipe's dtype, pinned: where the frame is put."""
        return self._pinned_view("frame", self.recipe.dtype)

    @property
    def image(self) -> NDArray[Any]:
        """(H, W), pinned: where the restored frame comes back."""
        return self._pinned_view("image", self.recipe.out_dtype)

    @property
    def grey(self) -> NDArray[np.uint8]:
        """(H, W) uint8, pinned: where the preview comes back."""
        return self._pinned_view("grey", "uint8")

    def close(self) -> None:
        for held in (self._graph, self.parameters):
            if held is not None:
                with contextlib.suppress(BackendError):
                    held.close()
        self._graph = None

    # --- tiles ---

    @property
    def _padded(self) -> tuple[int, int]:
        multiple = self._manifest.model.multiple
        height, width = (-(-n // multiple) * multiple for n in self.recipe.shape)
        return height, width

    def _plan_tiles(self) -> tuple[Tile, ...]:
        model = self._manifest.model
        halo_px = model.receptive_radius_px * len(self._rows)  # every evaluation widens what a pixel has seen
        return plan_tiles(self._padded, tile_px=self.recipe.tile_px, halo_px=halo_px, multiple=model.multiple)

    @property
    def _tile_px(self) -> int:
        return max(height * width for height, width in map(_shape_of, self.tiles))

    # --- memory ---

    def _address(self, name: str, size: int) -> int:
        return self._buffers.on_device(name, size).address

    def _floats(self, name: str, count: int) -> int:
        return self._address(name, 4 * count)

    def _pinned_view(self, name: str, dtype: str) -> NDArray[Any]:
        height, width = self.recipe.shape
        pinned = self._buffers.pinned(name, height * width * np.dtype(dtype).itemsize)
        return pinned.array.view(dtype).reshape(height, width)

    def _entries(self) -> list[tuple[str, str, int]]:
        tiles, rows = len(self.tiles), len(self._rows)
        single = {
            "stabilise": "Stabilise", "blocks": "BlockMeans", "levels": "OrderStatistics", "range": "Range",
            "electrons": "Electrons", "restored": "BlockMeans", "measured": "BlockMeans", "full": "FullPixels",
            "balance": "Balance", "counts": "Counts", "preview": "Preview", "residual": "Residual",
        }  # fmt: skip
        return [
            *((name, kind, 1) for name, kind in single.items()),
            ("cuts", "Window", tiles), ("keeps", "Window", tiles), ("inputs", "NetworkInput", tiles),
            ("conditions", "Fill", tiles), ("constants", "Fill", max(self.constant_planes, 1)),
            ("constants_of_tiles", "Fill", max(self.constant_planes * tiles, 1)), ("rows", "SamplerRow", tiles * rows),
        ]  # fmt: skip

    # --- what happens, in order ---

    def _lay_out(self) -> None:
        height, width = self.recipe.shape
        pixels, item = height * width, np.dtype(self.recipe.dtype).itemsize
        self._steps = []
        frame, z = self._address("frame", pixels * item), self._floats("z", pixels)
        size = {"height": height, "width": width}
        seen = {"pixel_type": PIXEL_TYPES[self.recipe.dtype], **size}
        self._operation("stabilise", "stabilise", frame=frame, frame_stride=width * item, z=z, **seen)
        self._lay_out_range(z)
        x, stride = self._lay_out_walk(z)
        electrons = self._floats("electrons", pixels)
        self._operation("electrons", "electrons", u=x, u_stride=stride, electrons=electrons, **size)
        self._lay_out_balance(frame, electrons)
        out = np.dtype(self.recipe.out_dtype)
        image = self._address("image", pixels * out.itemsize)
        self._operation(
            "counts", "counts", electrons=electrons, pixel_type=PIXEL_TYPES[out.name], counts=image,
            counts_stride=width * out.itemsize, **size,
        )  # fmt: skip
        if self.recipe.preview:
            self._operation(
                "preview", "preview", image=image, image_stride=width * out.itemsize, pixel_type=PIXEL_TYPES[out.name],
                grey=self._address("grey", pixels), **size,
            )  # fmt: skip
        self._operation(
            "residual", "residual", z=z, u=x, u_stride=stride, band=BAND_PX, step=self.recipe.step, per_noise=1.0,
            **size,
        )  # fmt: skip

    def _lay_out_range(self, z: int) -> None:
        s, (height, width) = self._normalisation, self.recipe.shape
        block = min(s.block_px, height, width)
        count = (height // block) * (width // block)
        means = self._floats("means", count)
        self._operation(
            "block_means", "blocks", image=z, image_stride=4 * width, height=height, width=width, block=block,
            pixel_type=PIXEL_TYPES["float32"], scale=1.0, means=means,
        )  # fmt: skip
        places = [p / 100 * (count - 1) for p in (s.low_percent, s.high_percent)]
        low = [int(place) for place in places]
        ranks = [rank for first in low for rank in (first, min(first + 1, count - 1))]
        self._operation("order_statistics", "levels", values=means, count=count, ranks=len(ranks), rank=ranks)
        block_of = self.parameters.address
        self._operation(
            "range", "range", statistics=block_of("levels"),
            fraction=[place - first for place, first in zip(places, low, strict=True)], new_scene=NEW_SCENE,
            minimum_range=s.minimum_range_z, low_u=s.low_u, high_u=s.high_u,
            degradation=self._manifest.model.degradation_sigma,
            sigma_data=require_sigma_data(self._manifest.model.sigma_data),
            sigma_min=self._manifest.operating_range.sigma_min, inputs=len(self.tiles), conditions=len(self.tiles),
            rows=len(self.tiles) * len(self._rows), input=block_of("inputs"), condition=block_of("conditions"),
            row=block_of("rows"), electrons=block_of("electrons"), residual=block_of("residual"),
        )  # fmt: skip

    def _lay_out_walk(self, z: int) -> tuple[int, int]:
        """The sampler over all tiles; where its last state lies, and that state's row stride in bytes."""
        if len(self.tiles) == 1:
            padded = self._padded
            source = z if padded == self.recipe.shape else self._cut(0, self.tiles[0], z)
            return self._walk(0, self.tiles[0], source), 4 * padded[1]
        height, width = self._padded
        whole = self._floats("whole", height * width)
        for index, tile in enumerate(self.tiles):
            state = self._walk(index, tile, self._cut(index, tile, z))
            (y0, y1), (x0, x1) = ((s.start, s.stop) for s in tile.keep)
            read = _shape_of(tile)
            self._operation(
                "window", "keeps", index, **{"from": state}, from_stride=4 * read[1], from_height=read[0],
                from_width=read[1], top=tile.inner[0].start, left=tile.inner[1].start,
                to=whole + 4 * (y0 * width + x0), to_stride=4 * width, height=y1 - y0, width=x1 - x0,
            )  # fmt: skip
        return whole, 4 * width

    def _cut(self, index: int, tile: Tile, z: int) -> int:
        """A tile of the stabilised frame, mirrored beyond its lower and right edge."""
        (height, width), to = self.recipe.shape, self._floats("cut", self._tile_px)
        rows, columns = _shape_of(tile)
        self._operation(
            "window", "cuts", index, **{"from": z}, from_stride=4 * width, from_height=height, from_width=width,
            top=tile.read[0].start, left=tile.read[1].start, to=to, to_stride=4 * columns, height=rows, width=columns,
        )  # fmt: skip
        return to

    def _walk(self, index: int, tile: Tile, z: int) -> int:
        """One tile through all rows; where its last state lies."""
        height, width = _shape_of(tile)
        count, size = height * width, {"height": height, "width": width}
        planes, output = self._floats("planes", self._planes * self._tile_px), self._floats("output", self._tile_px)
        first, state = self._floats("first state", self._tile_px), self._floats("state", self._tile_px)
        self._operation("network_input", "inputs", index, z=z, factor=1, state=first, plane=planes, **size)
        self._operation("fill", "conditions", index, to=planes + 4 * count, count=count)
        for plane in range(self.constant_planes):
            to = planes + 4 * (2 + plane) * count
            if len(self.tiles) == 1:
                _assign(self.parameters.at("constants", plane), to=to, count=count)
            else:
                self._operation(
                    "fill", "constants_of_tiles", index * self.constant_planes + plane, to=to, count=count
                )  # fmt: skip
        model, last = self._manifest.model, len(self._rows) - 1
        before, x = 0, first
        for number, row in enumerate(self._rows):
            self._evaluate((self._planes, height, width), planes, output)
            is_seen = number < last and self._rows[number + 1].p != 0  # whether the next row weighs this x0_hat
            estimate = self._floats(f"estimate {number % 2}", self._tile_px) if is_seen else 0
            self._operation(
                "sampler_row", "rows", index * len(self._rows) + number, x=x, network=output, x0_before=before,
                measurement=first, sigma=row.sigma, sigma_next=row.sigma_next,
                sigma_data=require_sigma_data(model.sigma_data), sigma_min=self._manifest.operating_range.sigma_min,
                a=row.a, b=row.b, n=row.n, y=row.y, p=row.p, row=number, origin_y=tile.read[0].start,
                origin_x=tile.read[1].start, next=state, x0=estimate, plane=planes if number < last else 0,
                condition=planes + 4 * count if number < last else 0, **size,
            )  # fmt: skip
            before, x = estimate, state
        return state

    def _lay_out_balance(self, frame: int, electrons: int) -> None:
        height, width = self.recipe.shape
        block = photon_balance.BLOCK_PX
        count = (height // block) * (width // block)
        item = np.dtype(self.recipe.dtype).itemsize
        size = {"height": height, "width": width, "block": block}
        restored, measured = self._floats("restored", count), self._floats("measured", count)
        self._operation(
            "block_means", "restored", image=electrons, image_stride=4 * width, pixel_type=PIXEL_TYPES["float32"],
            scale=1.0, means=restored, **size,
        )  # fmt: skip
        seen = {"pixel_type": PIXEL_TYPES[self.recipe.dtype], **size}
        self._operation("block_means", "measured", image=frame, image_stride=width * item, means=measured, **seen)
        full = 0
        if self.recipe.limited:
            full = self._floats("full", count)
            self._operation("full_pixels", "full", frame=frame, frame_stride=width * item, blocks=full, **seen)
        self._operation(
            "balance", "balance", restored=restored, measured=measured, full=full, count=count,
            prior_gain=photon_balance.PRIOR_GAIN, prior_shift=photon_balance.PRIOR_SHIFT_E,
            largest_change=photon_balance.LARGEST_GAIN_CHANGE, counts=self.parameters.address("counts"),
        )  # fmt: skip

    # --- steps ---

    def _operation(self, op: str, name: str, index: int = 0, **fields: Any) -> None:
        """Fill a structure with what stays the same and add its kernels to the steps."""
        k = self.parameters.at(name, index)
        _assign(k, **fields)
        scratch = grids.scratch_bytes(op, k)
        if scratch:
            _assign(k, **{"scratch" if op == "order_statistics" else "parts": self._address(f"{op} sums", scratch)})
        address = self.parameters.address(name, index)
        for launch in grids.launches(op, k):
            self._steps.append(_launching(self._device.launch, launch, address))

    def _launch_now(self, op: str, name: str, index: int) -> None:
        for launch in grids.launches(op, self.parameters.at(name, index)):
            self._device.launch(launch.kernel, launch.grid, self.parameters.address(name, index))

    def _evaluate(self, shape: tuple[int, int, int], planes: int, output: int) -> None:
        network, stream = self._network, self._device.stream
        self._steps.append(lambda: network.enqueue(stream, shape, planes, output))

    def _prepare(self) -> bool:
        shapes = [(self._planes, *shape) for shape in dict.fromkeys(map(_shape_of, self.tiles))]
        planes = self._floats("planes", self._planes * self._tile_px)
        return self._network.prepare(shapes, planes, self._floats("output", self._tile_px))

    def _work(self) -> None:
        self.parameters.send()
        size = self.frame.nbytes
        self._device.upload(self._buffers.on_device("frame", size), self._buffers.pinned("frame", size))
        for step in self._steps:
            step()
        self.parameters.fetch()
        outputs = [("image", self.recipe.out_dtype), *([("grey", "uint8")] if self.recipe.preview else [])]
        for name, dtype in outputs:
            size = self._pinned_view(name, dtype).nbytes
            self._device.download(self._buffers.pinned(name, size), self._buffers.on_device(name, size))

    def _capture(self) -> None:
        try:
            self._graph = self._device.capture(self._work)
        except DeviceMemoryError:
            raise
        except BackendError as error:  # slower by the launches, and the same pixels
            log.warning("the frame's work runs without a CUDA graph: %s", error)


def _shape_of(tile: Tile) -> tuple[int, int]:
    rows, columns = tile.read
    return rows.stop - rows.start, columns.stop - columns.start


def _assign(k: Any, **fields: Any) -> None:
    for name, value in fields.items():
        if isinstance(getattr(k, name), ctypes.Array):
            getattr(k, name)[: len(value)] = value
        else:
            setattr(k, name, value)


def _launching(
    launch: Callable[[str, tuple[int, int], int], None], made: grids.Launch, address: int
) -> Callable[[], None]:
    return lambda: launch(made.kernel, made.grid, address)
