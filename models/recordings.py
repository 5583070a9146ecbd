"""A user's own recordings as training material: what lies in a folder, and which field each file shows.

Four kinds of data:

- ``paired``: noisy frames and a reference of the same field. Two folders, ``noisy/`` and ``clean/`` (or
  ``reference/``), with equal file names; or files whose first axis holds noisy captures and, last, the reference.
- ``repeated``: several noisy frames of a field that does not move, along T, or a first axis that is not C or Z.
- ``clean``: frames with next to no noise of their own, photographed by simulated cameras; those below
  ``MINIMUM_FIELD_PX`` a side are left out.
- ``noisy``: single noisy frames or time-lapses without any reference.

A field of view is a file, or a subfolder: whatever shows one place of the sample belongs to one field, and a field is
never on both sides of the split. Pixels are read plane by plane when they are needed.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..kernels import ops
from ..runtime.camera import Camera
from ..runtime.errors import ShapeError, TrainingError
from ..runtime.images import ImageReader, is_image_path, open_image
from .data import MINIMUM_FIELD_PX
from .zarr_images import ZarrReader, is_zarr

Kind = Literal["paired", "repeated", "clean", "noisy"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
REFERENCE_FOLDERS: Final = ("clean", "reference")
CAMERA_FILE: Final = "camera.json"
MINIMUM_SIDE_PX: Final = 64
CHECKED_PIXELS: Final = 1 << 29  # look at every plane before training where that takes seconds, else at one a file

Index = tuple[int, ...]
HOW_TO_TELL = (
    "say --kind paired (each file: noisy frames, the reference last), repeated (frames of a field that does not move), "
    "noisy (single frames or a time-lapse) or clean; or sort the files into folders called noisy/ and clean/"
)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a user's data lies.

    Parameters
    ----------
    path : a folder, an image file, or an OME-Zarr store
    kind : what it holds; None finds out where the folders' names say so
    camera : of all its frames; None takes ``camera.json`` beside the files, or estimates one from the frames
    share : of this source among the user's sources, relative to theirs
    licence : of the data, for the record
    """

    path: Path
    kind: Kind | None = None
    camera: Camera | None = None
    share: float = 1.0
    licence: str = "unknown"

    def __post_init__(self) -> None:
        if self.kind is not None and self.kind not in KINDS:
            raise TrainingError(f"kind is {self.kind!r}; expected one of {', '.join(KINDS)}")
        if not (math.isfinite(self.share) and self.share > 0):
            raise TrainingError(f"the share of {self.path} is {self.share}; expected a number above 0")


@dataclass(frozen=True)
class PlaneAt:
    """One (H, W) plane of a file."""

    path: Path
    index: Index

    def __str__(self) -> str:
        return f"{self.path}, plane {self.index}" if self.index else str(self.path)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Frames of one place under one camera: every frame can be an input.

    ``reference`` is its clean plane for paired data. The frames of a ``repeated`` scene are each other's references;
    those of a ``noisy`` one may differ.
    """

    field: str
    kind: Kind
    frames: tuple[PlaneAt, ...]
    reference: PlaneAt | None = None
    camera: Camera | None = None
    share: float = 1.0


def find_scenes(source: Source) -> list[Scene]:
    """All scenes of a source, in the order of their names; reads structure, not pixels.

    Raises
    ------
    TrainingError : nothing there, a kind that cannot be told, pairs without partners or of other shapes, repeated
        frames that lie along no axis of their own, clean frames that are all too small
    ImageError : a file that cannot be read
    CameraError : a damaged ``camera.json``
    """
    kind, noisy_root, reference_root = _layout(source)
    camera = source.camera or _camera_beside(source.path, noisy_root)
    files = image_files(noisy_root)
    if not files:
        raise TrainingError(f"no image in {noisy_root}; expected TIFF, PNG or OME-Zarr files there")
    partners = _partners(files, noisy_root, reference_root) if reference_root is not None else {}
    scenes: list[Scene] = []
    small: list[Path] = []
    for path in files:
        axes, shape = _structure(path)
        _check_size(path, shape, camera)
        if kind == "clean" and min(shape[-2:]) < MINIMUM_FIELD_PX:
            small.append(path)
            continue
        for frames, reference in _groups(path, axes, shape, kind, partners.get(path)):
            scenes.append(
                Scene(field=_field_name(path, noisy_root), kind=kind, frames=frames, reference=reference, camera=camera)
            )
    _tell_small(small, len(files))
    total = sum(len(scene.frames) for scene in scenes)
    return [replace(scene, share=source.share * len(scene.frames) / total) for scene in scenes]


def image_files(root: Path) -> list[Path]:
    """Image files and OME-Zarr stores at or below ``root``, sorted; hidden ones and stores' insides left out."""
    if is_zarr(root) or root.is_file():
        return [root]
    found: list[Path] = []
    for path in sorted(root.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            found += image_files(path)
        elif is_image_path(path):
            found.append(path)
    return found


def split_fields(scenes: Sequence[Scene], held_out_share: float) -> tuple[list[Scene], list[Scene]]:
    """Scenes for training and held out, by field of view.

    A field's name alone decides its side: the SHA-256 of the name, as a number from 0 to 1, lies below
    ``held_out_share`` or not. So the share is met on average only, and more fields do not move the ones there were.

    The exception: with two fields or more, each side gets one. Where all lie on one side, the field of the lowest
    number is held out, or the one of the highest is trained on, and further fields may move that one back. A single
    field is trained on.
    """
    numbers = {scene.field: _number_of(scene.field) for scene in scenes}
    held_out = {name for name, number in numbers.items() if number < held_out_share}
    if len(numbers) < 2:
        held_out = set()
    elif not held_out:
        held_out = {min(numbers, key=numbers.__getitem__)}
    elif len(held_out) == len(numbers):
        held_out.remove(max(numbers, key=numbers.__getitem__))
    return [s for s in scenes if s.field not in held_out], [s for s in scenes if s.field in held_out]


def _number_of(name: str) -> float:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64


def open_frames(path: Path) -> ImageReader | ZarrReader:
    """A reader of planes for any supported file."""
    return ZarrReader(path) if is_zarr(path) else open_image(path)


def read_planes(planes: Sequence[PlaneAt]) -> Iterator[NDArray[Any]]:
    """(H, W) planes, checked, each file opened once where they follow one another.

    Raises
    ------
    TrainingError : a plane that is constant or not finite; names it
    """
    reader: ImageReader | ZarrReader | None = None
    try:
        for plane in planes:
            if reader is None or reader.path != plane.path:
                if reader is not None:
                    reader.close()
                reader = open_frames(plane.path)
            image = reader.plane(plane.index)
            _check_pixels(plane, image)
            yield image
    finally:
        if reader is not None:
            reader.close()


def check_scenes(scenes: Sequence[Scene]) -> None:
    """Read what training will read, before it starts: every plane of a small collection, one a scene of a large one."""
    shapes = {scene.frames[0].path: _structure(scene.frames[0].path)[1] for scene in scenes}
    everything = sum(math.prod(shape) for shape in shapes.values()) <= CHECKED_PIXELS
    for scene in scenes:
        frames = scene.frames if everything else scene.frames[:1]
        for _ in read_planes([*frames, *([scene.reference] if scene.reference else [])]):
            pass


def _layout(source: Source) -> tuple[Kind, Path, Path | None]:
    """Kind, the folder or file of the frames, and the folder of the references where they have one of their own."""
    path = source.path
    if not path.exists():
        raise TrainingError(f"no such file or folder: {path}; expected recordings to train on")
    noisy = path / "noisy"
    references = [path / name for name in REFERENCE_FOLDERS if (path / name).is_dir()]
    if is_zarr(path) or path.is_file() or not (noisy.is_dir() or references):
        if source.kind is None:
            raise TrainingError(f"{path}: its folders do not say what kind of data this is; {HOW_TO_TELL}")
        return source.kind, path, None
    if len(references) > 1:
        raise TrainingError(f"{path}: holds both {' and '.join(r.name for r in references)}/; leave one of them")
    found: Kind = "noisy" if not references else "paired" if noisy.is_dir() else "clean"
    kind = source.kind or found
    if kind == "paired" and found != "paired":
        missing = "clean" if found == "noisy" else "noisy"
        raise TrainingError(f"{path}: has no folder {missing}/; paired data needs noisy/ and clean/ with equal names")
    if kind == "clean":
        if not references:
            raise TrainingError(f"{path}: has no folder clean/, only noisy/; say --kind noisy or repeated")
        return kind, references[0], None
    if not noisy.is_dir():
        raise TrainingError(f"{path}: has no folder noisy/, only clean/; say --kind clean")
    return kind, noisy, references[0] if kind == "paired" else None


def _partners(files: list[Path], noisy: Path, references: Path) -> dict[Path, Path]:
    """The reference of every noisy file: the same name below the other folder, whatever the ending."""
    by_name: dict[Path, Path] = {}
    for path in image_files(references):
        name = _without_suffix(path.relative_to(references))
        if name in by_name:
            raise TrainingError(f"{by_name[name]} and {path} have one name; expected one reference for each frame")
        by_name[name] = path
    wanted = {path: _without_suffix(path.relative_to(noisy)) for path in files}
    alone = [str(path) for path, name in wanted.items() if name not in by_name]
    alone += [str(by_name[name]) for name in by_name if name not in wanted.values()]
    if alone:
        more = f" and {len(alone) - 3} more" if len(alone) > 3 else ""
        raise TrainingError(
            f"without a partner of the same name: {', '.join(alone[:3])}{more}; expected {noisy.name}/NAME and "
            f"{references.name}/NAME for every field"
        )
    return {path: by_name[name] for path, name in wanted.items()}


def _groups(
    path: Path, axes: str, shape: tuple[int, ...], kind: Kind, partner: Path | None
) -> Iterator[tuple[tuple[PlaneAt, ...], PlaneAt | None]]:
    """Frames that belong together, with their reference: one group for every channel and z position."""
    leading = shape[:-2]
    along = _capture_axis(axes, kind, partner)
    if kind == "repeated" and along is None and leading:
        raise TrainingError(
            f"{path}: is {axes} of {shape}, {'channels' if axes[0] == 'C' else 'z planes'} and no frames along T; "
            "repeated data needs frames of the same field along T: save them with T as their axis, or say --kind noisy "
            "where there is one frame each"
        )
    captures = leading[along] if along is not None else 1
    if captures < 2 and (kind == "repeated" or (kind == "paired" and partner is None)):
        what = "frames of the same field" if kind == "repeated" else "noisy frames and, last, their reference"
        raise TrainingError(
            f"{path}: is {axes} of {shape}; {kind} data needs {what} along its first axis; {HOW_TO_TELL}"
        )
    if along is None:
        for index in np.ndindex(*leading):
            yield (PlaneAt(path, index),), _matching(path, axes, shape, partner, index)
        return
    for rest in np.ndindex(*leading[:along], *leading[along + 1 :]):
        planes = [PlaneAt(path, (*rest[:along], i, *rest[along:])) for i in range(captures)]
        yield (tuple(planes[:-1]), planes[-1]) if kind == "paired" else (tuple(planes), None)


def _capture_axis(axes: str, kind: Kind, partner: Path | None) -> int | None:
    """The axis along which frames show one scene, or None where every plane is a scene of its own."""
    leading = axes[:-2]
    if not leading or kind == "clean" or partner is not None:
        return None
    if kind == "paired":
        return 0
    if "T" in leading:
        return leading.index("T")
    return None if leading[0] in "CZ" else 0


def _matching(path: Path, axes: str, shape: tuple[int, ...], partner: Path | None, index: Index) -> PlaneAt | None:
    """The reference plane of one noisy plane: at the same place, or the one without the noisy file's first axis."""
    if partner is None:
        return None
    _, expected = _structure(partner)
    if expected == shape:
        return PlaneAt(partner, index)
    if expected in (shape[1:], (1, *shape[1:])) and index:
        return PlaneAt(partner, (*(0,) * (len(expected) - len(shape) + 1), *index[1:]))
    raise TrainingError(
        f"{path} is {axes} of {shape}, its reference {partner} is {expected}; expected the same shape, or one without "
        "the first axis"
    )


def _structure(path: Path) -> tuple[str, tuple[int, ...]]:
    with open_frames(path) as reader:
        return reader.axes, tuple(reader.shape)


def _check_size(path: Path, shape: tuple[int, ...], camera: Camera | None) -> None:
    if min(shape[-2:]) < MINIMUM_SIDE_PX:
        raise TrainingError(
            f"{path}: frames are {shape[-2]}x{shape[-1]} px; training needs {MINIMUM_SIDE_PX} px or more a side"
        )
    if camera is not None and camera.map_shape not in (None, shape[-2:]):
        raise ShapeError(
            f"{path}: frames are {shape[-2:]}, the camera's maps {camera.map_shape}; crop the maps to the camera's "
            "region of interest (Camera.crop)"
        )


def _tell_small(small: list[Path], of: int) -> None:
    """Clean frames that are too small to cut patches from are left out, but not in silence."""
    if not small:
        return
    names = ", ".join(map(str, small[:3])) + (f" and {len(small) - 3} more" if len(small) > 3 else "")
    if len(small) == of:
        raise TrainingError(
            f"clean frames such as {names} are too small; expected {MINIMUM_FIELD_PX} px or more a side"
        )
    warnings.warn(
        f"left out {len(small)} of {of} clean files, below {MINIMUM_FIELD_PX} px a side: {names}",
        stacklevel=1,  # one place, so that finding the same files again says nothing new
    )


def _check_pixels(plane: PlaneAt, image: NDArray[Any]) -> None:
    if image.dtype.kind == "f" and not ops.usable_pixels(image).all():
        bad = 1 - float(ops.usable_pixels(image).mean())
        raise TrainingError(
            f"{plane}: {bad:.2%} of the pixels are NaN, infinite or fill values; training needs whole frames: crop or "
            "leave the file out"
        )
    if image.min() == image.max():
        raise TrainingError(f"{plane}: every pixel is {image.min()}; a constant frame teaches nothing: leave it out")


def _field_name(path: Path, root: Path) -> str:
    """The subfolder right below the root, or the file's name without its ending."""
    if path == root:
        return _without_suffix(Path(path.name)).name
    relative = path.relative_to(root)
    return relative.parts[0] if len(relative.parts) > 1 else _without_suffix(relative).name


def _without_suffix(path: Path) -> Path:
    """``a.ome.tif`` and ``a.tif`` and ``a.ome.zarr`` are all ``a``."""
    stem = path.with_suffix("")
    return stem.with_suffix("") if stem.suffix.lower() == ".ome" else stem


def _camera_beside(path: Path, frames: Path) -> Camera | None:
    """``camera.json`` of the source's folder."""
    folders = dict.fromkeys([path, frames] if path.is_dir() else [path.parent])
    found = [folder / CAMERA_FILE for folder in folders if (folder / CAMERA_FILE).is_file()]
    return Camera.load(found[0]) if found else None
