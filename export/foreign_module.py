"""A torch module made elsewhere, looked at from outside: how it is called, what it needs, and its ONNX graph.

Nothing is assumed of the module but that it maps an image and a noise level to an image. What a bundle must say about
it is found by trying: the grid that height and width must fit, and how far an output pixel sees.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..runtime.errors import TrainingError
from ..runtime.manifest import MAX_SIDE_PX
from .onnx import graph_of

IMAGE, LEVEL, MEASUREMENT, OUTPUT = "image", "level", "measurement", "prediction"
MULTIPLES: Final = (1, 2, 4, 8, 16, 32, 64, 128)
PROBE_SIDES_PX: Final = (128, 256, 512)  # for the receptive radius; beyond, a network counts as seeing everything
TRIED_SIDE_PX: Final = 48

Told = Literal["timestep", "gamma", "sqrt_gamma", "sigma", "sigma_map"]
Order = Literal["first", "last"]
Call = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class Calling:
    """How a module is called and what it is told of the noise level.

    Parameters
    ----------
    told : ``timestep``: the index, or the entry of ``timesteps`` at it. ``gamma``: alpha_bar; ``sqrt_gamma``: its root.
        ``sigma``: a number, ``sigma_map``: a plane (1, 1, H, W), both ``log(sigma) / 4`` with EDM scaling. All numbers
        come as tensors of shape (1,)
    integer_timestep : the index is whole (int64); False: any number in between (float32)
    timesteps : what the network is told at each index, where that is not the index itself
    measurement : where the frame is concatenated to the image's channel, or None for a module that does not look at it
    call : ``call(module, image, level, measurement)`` in place of ``module(image, level)``, for other signatures; the
        frame is then passed on as it is (None without one)
    """

    told: Told
    integer_timestep: bool = True
    timesteps: tuple[float, ...] | None = None
    measurement: Order | None = None
    call: Call | None = None


class Adapter(nn.Module):
    """The module behind the inputs and the output that a bundle's network has.

    Every input takes part in the output, times 0: backends drop inputs that a module ignores, and then refuse them.
    """

    timesteps: Tensor | None

    def __init__(self, module: nn.Module, calling: Calling) -> None:
        super().__init__()
        self.module, self.calling = module, calling
        table = None if calling.timesteps is None else torch.tensor(calling.timesteps, dtype=torch.float32)
        self.register_buffer("timesteps", table)

    def forward(self, image: Tensor, level: Tensor) -> Tensor:
        """(1, 1, H, W) and the level as the runtime gives it -> (1, 1, H, W)."""
        return self.run(image, level, None) + 0 * level.sum()

    def run(self, image: Tensor, level: Tensor, measurement: Tensor | None) -> Tensor:
        calling, told = self.calling, self._told(level)
        if calling.call is not None:
            return image_of(calling.call(self.module, image, told, measurement))
        if measurement is not None:
            parts = [measurement, image] if calling.measurement == "first" else [image, measurement]
            image = torch.cat(parts, dim=1)
        return image_of(self.module(image, told))

    def _told(self, level: Tensor) -> Tensor:
        calling = self.calling
        if calling.told == "sigma_map":
            return level
        if calling.told == "sigma":
            return level[0, 0, 0, :1]
        if calling.told == "sqrt_gamma":
            level = level**0.5
        if self.timesteps is not None:
            if calling.integer_timestep:
                level = self.timesteps[level]
            else:
                below = level.floor().clamp(0, len(self.timesteps) - 2).long()
                low, high = self.timesteps[below], self.timesteps[below + 1]
                level = low + (level - below) * (high - low)
        return level.reshape(1)


class ConditionalAdapter(Adapter):
    """An adapter of a module that looks at the measured frame, too."""

    def forward(self, image: Tensor, level: Tensor, measurement: Tensor) -> Tensor:  # type: ignore[override]
        """As `Adapter.forward`; the measurement is (1, 1, H, W) in model units."""
        return self.run(image, level, measurement) + 0 * (level.sum() + measurement[..., :1, :1])


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What was found out about a module: grid, receptive radius in px (`MAX_SIDE_PX`: the whole frame), size, cost."""

    multiple: int
    receptive_radius_px: int
    parameters: int
    kmac_per_px: float


def image_of(output: Any) -> Tensor:
    """The tensor in a module's output: itself, its ``sample``, or the first of a tuple."""
    if isinstance(output, dict) and "sample" in output:
        output = output["sample"]
    elif not isinstance(output, Tensor) and hasattr(output, "sample"):
        output = output.sample
    elif isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise TrainingError(
            f"the module returns a {type(output).__name__}; expected a tensor (N, 1, H, W), an object with .sample or "
            "a tuple that begins with it: pass call=..., which returns the tensor"
        )
    return output


def adapt(module: nn.Module, calling: Calling, *, takes_measurement: bool) -> Adapter:
    """A copy of the module on the CPU, float32, in evaluation mode, behind an adapter. The original is left alone.

    Raises
    ------
    TrainingError : no module, one that cannot be copied, or weights that are not finite
    """
    if not isinstance(module, nn.Module):
        raise TrainingError(f"module is a {type(module).__name__}; expected a torch.nn.Module")
    try:
        own = copy.deepcopy(module)
    except Exception as error:  # whatever a foreign module's attributes raise
        raise TrainingError(
            f"the module cannot be copied: {_first_line(error)}; remove hooks and open files"
        ) from error
    nn.Module.to(own, "cpu", torch.float32)  # not the module's own method, which may log or refuse
    own.eval().requires_grad_(False)
    for name, value in own.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise TrainingError(f"weight {name!r} holds NaN or infinite values; expected finite ones: train again")
    return (ConditionalAdapter if takes_measurement else Adapter)(own, calling).eval()


def examine(adapter: Adapter, multiple: int | None, receptive_radius_px: int | None) -> Findings:
    """Try the module out; what is given is believed.

    Raises
    ------
    TrainingError : it takes no image of any tried size, or does not return one image of the same size, always the same
    """
    multiple = _multiple(adapter) if multiple is None else multiple
    side = multiple * -(-TRIED_SIDE_PX // multiple)
    inputs = example(adapter, side, side)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        once = _checked(adapter, inputs, f"{side}x{side}")
    if not torch.equal(once, adapter(*inputs)):
        raise TrainingError("the module returns another output each time; expected no randomness: switch dropout off")
    return Findings(
        multiple=multiple,
        receptive_radius_px=_radius_px(adapter, multiple) if receptive_radius_px is None else receptive_radius_px,
        parameters=max(1, sum(p.numel() for p in adapter.module.parameters())),
        kmac_per_px=max(1e-6, round(counter.get_total_flops() / 2e3 / side**2, 3)),
    )


def example(adapter: Adapter, height: int, width: int, level: float | None = None) -> tuple[Tensor, ...]:
    """Inputs of an adapter by position: noise, a level (default: somewhere inside), and, if taken, a measurement."""
    draw = torch.Generator().manual_seed(0)
    image, told = torch.randn(1, 1, height, width, generator=draw), adapter.calling.told
    if told in ("sigma", "sigma_map"):
        given = torch.full((1, 1, height, width), -0.25 if level is None else level)
    elif told == "timestep":
        given = torch.tensor(1 if level is None else level)
        given = given.round().long() if adapter.calling.integer_timestep else given.float()
    else:
        given = torch.tensor(0.5 if level is None else level)
    if not isinstance(adapter, ConditionalAdapter):
        return image, given
    return image, given, torch.randn(1, 1, height, width, generator=draw)


def to_graph(adapter: Adapter, multiple: int) -> bytes:
    """The adapter as ONNX with free height and width: inputs image, level [, measurement], output prediction.

    Raises
    ------
    TrainingError : the module cannot be captured as one graph
    """
    inputs = example(adapter, 4 * multiple, 6 * multiple)
    plane = {2: multiple * torch.export.Dim("h", min=1), 3: multiple * torch.export.Dim("w", min=1)}
    shapes = tuple(plane if tensor.ndim else {} for tensor in inputs)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # notes on the exporter's own internals
            program = torch.export.export(adapter, inputs, dynamic_shapes=shapes, strict=False)
        return graph_of(
            program, (), dynamic_shapes=None, inputs=(IMAGE, LEVEL, MEASUREMENT)[: len(inputs)], output=OUTPUT
        )
    except Exception as error:  # torch.export raises a dozen kinds
        raise TrainingError(
            f"the module cannot become one graph: {_first_line(error)}; expected no Python branch on the values or on "
            "the size of a tensor (if x.max() > 1, .item(), fixed position tables): write it with torch.where, or pass "
            "call=... that goes round it"
        ) from error


def _multiple(adapter: Adapter) -> int:
    """The smallest power of two that height and width must be a multiple of, by trying odd numbers of cells."""
    problem: Exception | None = None
    for multiple in MULTIPLES:
        cells = -(-TRIED_SIDE_PX // multiple) | 1
        try:
            with torch.no_grad():
                for height, width in ((cells, cells + 2), (cells + 2, cells)):
                    _checked(adapter, example(adapter, height * multiple, width * multiple), f"grid of {multiple} px")
        except Exception as error:  # a foreign module may raise anything
            problem = error
        else:
            return multiple
    raise TrainingError(
        f"the module takes no image (1, {1 + (adapter.calling.measurement is not None)}, H, W) with sides of any "
        f"multiple up to {MULTIPLES[-1]} px: {_first_line(problem)}; check conditioning, measurement= and call="
    ) from problem


def _checked(adapter: Adapter, inputs: tuple[Tensor, ...], where: str) -> Tensor:
    output: Tensor = adapter(*inputs)
    if output.shape != inputs[0].shape or output.dtype != torch.float32:
        raise TrainingError(
            f"{where}: the module returns {tuple(output.shape)} {output.dtype}; expected {tuple(inputs[0].shape)} "
            "float32: one channel of the same size (pass call=... that picks it)"
        )
    return output


def _radius_px(adapter: Adapter, multiple: int) -> int:
    """How far an output pixel sees, measured: NaN goes in at the centre, and where it comes out depends on it.

    NaN passes every weight, zero included, so this is the structure's radius and not one input's. A network that
    normalises over space or attends to it sees everything.
    """
    if any(_sees_everything(part) for part in adapter.module.modules()):
        return MAX_SIDE_PX
    before: int | None = None
    for wanted in PROBE_SIDES_PX:
        radius = _radius_within(adapter, multiple, wanted)
        if radius is not None and radius == before:  # dilated layers may reach past the smaller image unseen
            return radius
        before = radius
    return MAX_SIDE_PX


def _radius_within(adapter: Adapter, multiple: int, side_px: int) -> int | None:
    """The radius in an image of about this side, or None where its border was reached."""
    cells = -(-side_px // multiple) | 1
    side, first = cells * multiple, cells // 2 * multiple
    inputs = [tensor.clone() for tensor in example(adapter, side, side)]
    for tensor in (inputs[0], *inputs[2:]):
        tensor[..., first : first + multiple, first : first + multiple] = torch.nan
    with torch.no_grad():
        touched = torch.isnan(adapter(*inputs))[0, 0]
    rows, columns = (torch.nonzero(touched.any(dim=d)).flatten().tolist() for d in (1, 0))
    if not rows:  # the module swallows NaN, so nothing can be said
        return None
    low, high = min(rows[0], columns[0]), max(rows[-1], columns[-1])
    if low == 0 or high == side - 1:
        return None
    # from the far edge of the cell that was touched: any of its pixels may be the one that is seen
    return int(max(first + multiple - 1 - low, high - first))


def _sees_everything(part: nn.Module) -> bool:
    kinds = (nn.GroupNorm, nn.InstanceNorm2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.MultiheadAttention)
    return isinstance(part, kinds) or "attention" in type(part).__name__.lower()


def _first_line(error: BaseException | None) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"
