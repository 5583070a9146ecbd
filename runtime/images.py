"""Image files in and out, one plane at a time: TIFF, OME-TIFF, ImageJ hyperstacks and grey PNG.

    with open_image("cells.ome.tif") as reader, ImageWriter("restored.ome.tif", like=reader) as writer:
        for index, plane in reader.planes():
            writer.write(restorer(plane))

A finished output appears under its name in one step; an interrupted one leaves nothing behind.
"""

import contextlib
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from .errors import ImageError, ShapeError
from .image_metadata import ImageMetadata

TIFF_SUFFIXES = (".tif", ".tiff", ".btf", ".tf8")
PNG_SUFFIXES = (".png",)

Index = tuple[int, ...]


class ImageReader(Protocol):
    """What `open_image` returns.

    Attributes
    ----------
    shape, axes : for example (5, 2, 512, 512) and "TCYX"; always ending in YX
    dtype : uint8, uint16 or float32
    plane_count : product of the axes before Y and X
    pixel_size_um : (y, x) in µm, None when the file does not say
    provenance : what photonstep wrote about an earlier restoration, or None
    source_paths : every file that is read; an OME-TIFF may be a set of several
    metadata : what a copy takes over
    """

    path: Path
    shape: tuple[int, ...]
    axes: str
    dtype: np.dtype[Any]
    plane_count: int
    pixel_size_um: tuple[float, float] | None
    provenance: dict[str, Any] | None
    source_paths: tuple[Path, ...]
    metadata: ImageMetadata

    def plane(self, index: Index) -> npt.NDArray[Any]:
        """Return the (H, W) plane at ``index``: one number for each axis before Y and X."""
        ...

    def planes(self) -> Iterator[tuple[Index, npt.NDArray[Any]]]:
        """Yield (index, (H, W) plane) in storage order."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def is_image_path(path: Path) -> bool:
    """Return whether the file name's ending is one that `open_image` reads."""
    return path.suffix.lower() in TIFF_SUFFIXES + PNG_SUFFIXES


def open_image(path: str | os.PathLike[str]) -> ImageReader:
    """Open an image file for reading plane by plane.

    Parameters
    ----------
    path : a TIFF (OME, ImageJ or plain, any leading axes) or a PNG; uint8, uint16 or (TIFF) float32 grey values

    Returns
    -------
    ImageReader, a context manager that closes the file

    Raises
    ------
    ImageError : the file is absent, damaged, truncated, in colour, or of another format or dtype
    """
    path = Path(path)
    if not path.is_file():
        raise ImageError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; expected an image file")
    if not is_image_path(path):
        raise ImageError(
            f"{path}: unknown image format {path.suffix!r}; expected {', '.join(TIFF_SUFFIXES + PNG_SUFFIXES)}"
        )
    try:
        if path.stat().st_size == 0:
            raise ImageError(f"{path}: the file is empty (0 bytes); copy or export it again")
        if path.suffix.lower() in PNG_SUFFIXES:
            from .png import PngReader

            return PngReader(path)
        from .tiff import TiffReader

        return TiffReader(path)
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror or error})") from error


class ImageWriter:
    """Write a restored copy of an image, plane by plane, in the reader's order.

    The planes go to a temporary name in the same folder. Leaving the ``with`` block normally, after every plane was
    written, makes the file durable and renames it; leaving it by an exception or Ctrl-C removes it.

    Parameters
    ----------
    path : where the copy goes; the ending chooses TIFF or PNG
    like : the reader of the original: axes, dtype, pixel size and metadata are kept
    provenance : JSON-able mapping, recorded in OME's StructuredAnnotations, the ImageJ or TIFF description, or PNG text
    dtype : of the copy, None for the original's
    overwrite : replace an existing file at ``path``; the original itself is never replaced
    scale : how many times finer the copy's pixels are than the original's, along y and x: pixel sizes are divided by it

    Raises
    ------
    ImageError : the output exists, is the input, or cannot hold such planes; or the block ended before the last plane
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        like: ImageReader,
        provenance: Mapping[str, Any] | None = None,
        dtype: npt.DTypeLike | None = None,
        overwrite: bool = False,
        scale: int = 1,
    ) -> None:
        self.path = Path(path)
        self.dtype = np.dtype(like.dtype if dtype is None else dtype)
        self._like = like
        self._provenance = provenance
        self._overwrite = overwrite
        self._written = 0
        self._scale = scale
        self._shape = tuple(n * scale for n in like.shape[-2:])
        check_output(self.path, like, dtype=self.dtype, overwrite=overwrite)

    def __enter__(self) -> Self:
        # Not mkstemp: its files are readable by their owner only, and the output should follow the user's umask.
        self._partial = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.partial")
        try:
            self._file: IO[bytes] = self._partial.open("x+b")
        except OSError as error:
            raise ImageError(f"{self.path}: cannot be written ({error.strerror or error})") from error
        try:
            self._planes = self._plane_writer()
        except BaseException:
            self._discard()
            raise
        return self

    def _plane_writer(self) -> Any:
        options: dict[str, Any] = {"dtype": self.dtype, "provenance": self._provenance, "scale": self._scale}
        if self.path.suffix.lower() in PNG_SUFFIXES:
            from .png import PngPlaneWriter

            return PngPlaneWriter(self._file, self._like, **options)
        from .tiff import TiffPlaneWriter

        return TiffPlaneWriter(self._file, self._like, **options)

    def write(self, plane: npt.NDArray[Any]) -> None:
        """Append the next (H, W) plane, of the writer's dtype."""
        if plane.shape != self._shape or plane.dtype != self.dtype:
            raise ShapeError(
                f"{self.path}: plane is {plane.shape} {plane.dtype}, expected {self._shape} {self.dtype} "
                f"as in {self._like.path}"
            )
        if self._written == self._like.plane_count:
            raise ImageError(f"{self.path}: already holds all {self._written} planes of {self._like.path}")
        try:
            self._planes.write(plane)
        except OSError as error:
            raise ImageError(
                f"{self.path}: cannot be written ({error.strerror or error}); is the disk full?"
            ) from error
        self._written += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: object,
    ) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            self._finish()
        except BaseException:
            self._discard()
            raise

    def _finish(self) -> None:
        if self._written != self._like.plane_count:
            raise ImageError(
                f"{self.path}: {self._written} of {self._like.plane_count} planes written; nothing is kept"
            )
        try:
            self._planes.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            _publish(self._partial, self.path, overwrite=self._overwrite)
        except OSError as error:
            raise ImageError(
                f"{self.path}: cannot be written ({error.strerror or error}); is the disk full?"
            ) from error

    def _discard(self) -> None:
        with contextlib.suppress(Exception):
            self._planes.close()
        with contextlib.suppress(OSError):
            self._file.close()
        self._partial.unlink(missing_ok=True)


def check_output(path: Path, like: ImageReader, *, dtype: npt.DTypeLike, overwrite: bool) -> None:
    """Raise ImageError when a restored copy of ``like`` must not or cannot be written to ``path``; touches nothing."""
    if path.exists():
        if any(source.exists() and path.samefile(source) for source in like.source_paths):
            raise ImageError(f"{path}: is the input itself, which is never overwritten; choose another name or folder")
        if path.is_dir():
            raise ImageError(f"{path}: is a folder, expected a file name")
        if not overwrite:
            raise ImageError(f"{path}: exists already; choose another name, or pass --overwrite (overwrite=True)")
    if not path.parent.is_dir():
        raise ImageError(f"{path}: there is no folder {path.parent}; make it first")
    if not is_image_path(path):
        raise ImageError(
            f"{path}: unknown image format {path.suffix!r}; expected {', '.join(TIFF_SUFFIXES + PNG_SUFFIXES)}"
        )
    if path.suffix.lower() in PNG_SUFFIXES and (like.plane_count != 1 or np.dtype(dtype).kind != "u"):
        raise ImageError(
            f"{path}: a PNG holds one 8- or 16-bit plane, this image has {like.plane_count} of {np.dtype(dtype)}; "
            "write a .tif"
        )


def _publish(partial: Path, path: Path, *, overwrite: bool) -> None:
    """Give a finished file its name in one step; without ``overwrite`` a file that appeared meanwhile is kept."""
    if overwrite:
        partial.replace(path)
    else:
        try:
            os.link(partial, path)
            partial.unlink()
        except FileExistsError:
            raise ImageError(f"{path}: appeared while it was being written; the existing file is kept") from None
        except OSError:  # a file system without hard links: the gap between test and rename is as short as it can be
            if path.exists():
                raise ImageError(f"{path}: appeared while it was being written; the existing file is kept") from None
            partial.rename(path)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
