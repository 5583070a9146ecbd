"""``photonstep restore``: files in, files out, plane by plane; all is checked before the first one is restored."""

import contextlib
import glob
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from photonstep import __version__
from photonstep.runtime.camera import Camera
from photonstep.runtime.errors import ImageError, PhotonstepError
from photonstep.runtime.images import PNG_SUFFIXES, ImageReader, ImageWriter, check_output, is_image_path, open_image

# Planes that a blind camera estimate looks at: enough to see several brightnesses, few enough to start at once.
ESTIMATE_PLANES = 5
WILDCARDS = frozenset("*?[")
# Names that look like an image file which photonstep does not write, rather than like a folder.
OTHER_IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".zarr", ".h5", ".nd2", ".czi", ".npy"})


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to do with every plane.

    Parameters
    ----------
    camera : the camera of all planes; None estimates one for each channel of each file
    output : "input" keeps the file's dtype and unit, "photoelectrons" writes float32 photoelectrons
    options : further keyword arguments of `Restorer.restore` (steps, sampler), only those that the user gave
    overwrite : replace existing outputs (never an input)
    """

    camera: Camera | None = None
    output: Literal["input", "photoelectrons"] = "input"
    options: dict[str, Any] = field(default_factory=dict)
    overwrite: bool = False

    def dtype(self, reader: ImageReader) -> "np.dtype[Any]":
        """Return the dtype that a restored copy of ``reader`` has."""
        return np.dtype(np.float32) if self.output == "photoelectrons" else reader.dtype


@dataclass(frozen=True, kw_only=True)
class Job:
    """One file to restore and where its copy goes."""

    source: Path
    target: Path
    plane_count: int


@dataclass
class Outcome:
    """What happened: planes restored, how often each flag was raised, and the files that failed with the reason."""

    planes: int = 0
    flags: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[Path, PhotonstepError]] = field(default_factory=list)


def expand_inputs(inputs: Sequence[str]) -> list[Path]:
    """Return the image files that files, folders and wildcards name, in order, each once.

    Raises
    ------
    ImageError : an argument names no image
    """
    found: dict[Path, None] = {}
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            paths = sorted(child for child in path.iterdir() if is_image_path(child) and not child.name.startswith("."))
        elif WILDCARDS & set(text) and not path.exists():  # a shell that expands nothing, as on Windows
            paths = sorted(Path(match) for match in glob.glob(text) if is_image_path(Path(match)))  # noqa: PTH207 any anchor
        else:
            paths = [path]
        if not paths:
            raise ImageError(f"{text}: no image in there; expected .tif, .tiff or .png files")
        found |= dict.fromkeys(paths)
    return list(found)


def plan_targets(sources: Sequence[Path], output: Path, plan: Plan) -> list[tuple[Path, Path]]:
    """Return (source, target) pairs: a file for a single source when ``output`` looks like one, else files in a folder.

    Raises
    ------
    ImageError : several sources for one file, two sources whose copies would have one name, or a format that is not
        written
    """
    if is_image_path(output) and not output.is_dir():
        if len(sources) > 1:
            raise ImageError(f"{output}: is one file, but there are {len(sources)} inputs; give a folder with -o")
        return [(sources[0], output)]
    if output.suffix.lower() in OTHER_IMAGE_SUFFIXES and not output.is_dir():
        raise ImageError(f"{output}: cannot write {output.suffix} files; expected .tif, .tiff or .png, or a folder")
    taken: dict[str, Path] = {}
    for source in sources:
        photoelectron_png = plan.output == "photoelectrons" and source.suffix.lower() in PNG_SUFFIXES
        name = source.with_suffix(".tif").name if photoelectron_png else source.name
        if name in taken:
            raise ImageError(
                f"{taken[name]} and {source} would both become {output / name}; restore them one at a time"
            )
        taken[name] = source
    return [(source, output / name) for name, source in taken.items()]


def inspect(pairs: Sequence[tuple[Path, Path]], plan: Plan, outcome: Outcome) -> list[Job]:
    """Open every source and check every target before the first plane is restored; failures go to ``outcome``."""
    jobs: list[Job] = []
    parts: set[Path] = set()
    for source, target in pairs:
        if source.resolve() in parts:  # read already, as a part of an OME-TIFF set of several files
            continue
        try:
            with open_image(source) as reader:
                check_output(target, reader, dtype=plan.dtype(reader), overwrite=plan.overwrite)
                jobs.append(Job(source=source, target=target, plane_count=reader.plane_count))
                parts.update(path.resolve() for path in reader.source_paths)
        except PhotonstepError as error:
            outcome.failures.append((source, error))
    return jobs


def restore_file(
    job: Job,
    restorer: Any,
    plan: Plan,
    outcome: Outcome,
    *,
    on_camera: Callable[[str, Camera], None],
    on_plane: Callable[[], None],
) -> None:
    """Restore one file; on an error nothing of it is left behind, and the error is the caller's.

    Parameters
    ----------
    restorer : Restorer
    outcome : planes and flags are counted here
    on_camera : told each channel's name ("" for a file without channels) and its camera, before its first plane
    on_plane : called after each plane
    """
    with open_image(job.source) as reader, contextlib.ExitStack() as stack:
        cameras = dict(_cameras(reader, plan.camera))
        for channel, camera in cameras.items():
            on_camera("" if channel is None else f"channel {channel}", camera)
        writer: ImageWriter | None = None
        trackers: dict[tuple[int, ...], Any] = {}  # one a sequence: all time points of a channel and depth
        for index, plane in reader.planes():
            camera = cameras[_channel(reader, index)]
            tracker = trackers.setdefault(_without_time(reader, index), restorer.tracker())
            result = restorer.restore(plane, camera=camera, output=plan.output, tracker=tracker, **plan.options)
            if writer is None:
                writer = stack.enter_context(
                    ImageWriter(
                        job.target,
                        like=reader,
                        dtype=plan.dtype(reader),
                        provenance=_provenance(restorer, plan, cameras, result),
                        overwrite=plan.overwrite,
                        scale=restorer.bundle.manifest.scale,
                    )
                )
            writer.write(result.image)
            outcome.planes += 1
            outcome.flags.update(result.flags)
            on_plane()


def _channel(reader: ImageReader, index: tuple[int, ...]) -> int | None:
    position = reader.axes.find("C")
    return index[position] if position >= 0 else None


def _without_time(reader: ImageReader, index: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(i for axis, i in zip(reader.axes, index, strict=False) if axis != "T")


def _cameras(reader: ImageReader, given: Camera | None) -> Iterator[tuple[int | None, Camera]]:
    """Yield each channel and its camera: channels differ in gain and background, planes of one channel must not."""
    position = reader.axes.find("C")
    for channel in range(reader.shape[position]) if position >= 0 else (None,):
        if given is not None:
            yield channel, given
            continue
        indices = [index for index in np.ndindex(*reader.shape[:-2]) if _channel(reader, index) == channel]
        chosen = np.unique(np.linspace(0, len(indices) - 1, ESTIMATE_PLANES).round().astype(int))
        yield channel, Camera.estimate(np.stack([reader.plane(indices[k]) for k in chosen]))


def _provenance(restorer: Any, plan: Plan, cameras: dict[int | None, Camera], result: Any) -> dict[str, Any]:
    manifest = restorer.bundle.manifest
    return {
        "photonstep": __version__,
        "bundle": {"name": manifest.name, "version": manifest.version, "sha256": restorer.bundle.sha256},
        "camera": [camera.summary() for camera in cameras.values()],
        "scale": manifest.scale,
        "plan": result.plan,
        "output": plan.output,
        "backend": restorer.backend_name,
        "precision": restorer.precision,
        "device": restorer.device,
    }


def make_folder(folder: Path) -> None:
    """Make the output folder.

    Raises
    ------
    ImageError : a file is in the way, or the folder cannot be made
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ImageError(f"{folder}: cannot be made a folder ({error.strerror or error}); choose another -o") from error
