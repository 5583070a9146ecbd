"""TIFF in and out, plane by plane: OME-TIFF, ImageJ hyperstacks, BigTIFF, tiled and compressed pages, through tifffile.

The reader holds one page in memory at a time (uncompressed contiguous data is memory-mapped), so a 100 GB stack
restores on a laptop. The writer sends planes out in the reader's order and keeps the file's dialect, axes, pixel size
and metadata (`image_metadata.py`). Vendor dialects other than OME and ImageJ are read and come out as plain TIFF.
"""

import contextlib
import logging
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt
import tifffile

from . import image_metadata
from .errors import ImageError
from .image_metadata import ImageMetadata, Resolution

DTYPES = ("uint8", "uint16", "float32")
# Above this the 32-bit offsets of classic TIFF may not reach the last directory.
BIGTIFF_NBYTES = 2**32 - 2**25
DAMAGE = re.compile(
    r"invalid (page|value) offset|corrupt|missing data|missing ByteCounts|failed to read|invalid offset"
)

Index = tuple[int, ...]


class TiffReader:
    """One TIFF image series as planes; made by `open_image`, whose docstring lists the attributes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = _open(path)
        try:
            self._read_structure()
            self._read_metadata()
        except BaseException:
            self._file.close()
            raise

    def _read_structure(self) -> None:
        with _tifffile_complaints(self.path), _as_image_error(self.path, "structure"):
            series_list = self._file.series
        if len(series_list) != 1:
            raise ImageError(
                f"{self.path}: holds {len(series_list)} separate images (positions or sizes), expected one; "
                "save each one as a file of its own"
            )
        series = series_list[0]
        page = series.keyframe
        _refuse_what_is_not_grey(self.path, series, page)
        self._series = series
        # tifffile calls planar, non-RGB samples "S"; for a microscope they are channels.
        self.axes: str = series.axes.replace("S", "C") if "C" not in series.axes else series.axes
        self.shape: tuple[int, ...] = tuple(series.shape)
        self.dtype = np.dtype(series.dtype.name)
        self.plane_count = math.prod(self.shape[:-2])
        self.source_paths = tuple({Path(p.parent.filehandle.path) for p in series.pages if p is not None}) or (
            self.path,
        )
        self._map: npt.NDArray[Any] | None = None
        if series.dataoffset is not None and len(self.source_paths) == 1:
            self._map = _memory_map(self.path, series)

    def _read_metadata(self) -> None:
        file, page = self._file, self._file.pages.first
        dialect, description, imagej = "plain", page.description, {}
        resolution = _resolution(page)
        if self._series.kind == "ome" and file.ome_metadata:
            dialect, description = "ome", file.ome_metadata
            root = image_metadata.parse_ome(description, str(self.path))
            self.pixel_size_um = image_metadata.ome_pixel_size_um(root)
            self.provenance = image_metadata.ome_provenance(root)
        elif self._series.kind == "imagej":
            dialect, imagej = "imagej", dict(file.imagej_metadata or {})
            self.pixel_size_um = image_metadata.imagej_pixel_size_um(imagej, resolution)
            self.provenance = image_metadata.json_object(imagej.get(image_metadata.PROVENANCE_KEY))
        else:
            self.pixel_size_um = image_metadata.plain_pixel_size_um(resolution)
            self.provenance = image_metadata.plain_provenance(description)
        self.metadata = ImageMetadata(
            dialect=dialect,
            description=description,
            resolution=resolution,
            compressed=page.compression != tifffile.COMPRESSION.NONE,
            datetime=str(page.tags["DateTime"].value) if "DateTime" in page.tags else None,
            imagej=imagej,
        )

    def plane(self, index: Index) -> npt.NDArray[Any]:
        """Return the (H, W) plane at ``index``, one number for each axis before Y and X, in native byte order."""
        flat = int(np.ravel_multi_index(index, self.shape[:-2])) if index else 0
        height_width = self.shape[-2:]
        if self._map is not None:
            return np.array(self._map.reshape((-1, *height_width))[flat], dtype=self.dtype)
        pages = self._series.pages
        per_page = self.plane_count // len(pages)
        page = pages[flat // per_page]
        if page is None:
            raise ImageError(f"{self.path}: plane {flat} is missing; copy the complete file or set of files again")
        with _as_image_error(self.path, f"plane {flat}"), _opened(page.parent.filehandle):
            _check_segments(self.path, page, flat)
            planes = page.asarray(maxworkers=1).reshape((-1, *height_width))
        return np.ascontiguousarray(planes[flat % per_page], dtype=self.dtype)

    def planes(self) -> Iterator[tuple[Index, npt.NDArray[Any]]]:
        """Yield (index, (H, W) plane) in storage order, one plane in memory at a time."""
        for index in np.ndindex(*self.shape[:-2]):
            yield index, self.plane(index)

    def close(self) -> None:
        """Close the file; planes that were read stay valid."""
        self._map = None
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def _opened(filehandle: tifffile.FileHandle) -> Iterator[None]:
    """Hold a file open that tifffile closed after its header: one of the further files of an OME-TIFF set."""
    closed = filehandle.closed
    if closed:
        filehandle.open()
    try:
        yield
    finally:
        if closed:
            filehandle.close()


def _open(path: Path) -> tifffile.TiffFile:
    file: tifffile.TiffFile | None = None
    try:
        with _tifffile_complaints(path), _as_image_error(path, "header"):
            file = tifffile.TiffFile(path)
    except ImageError:
        if file is not None:
            file.close()
        raise
    return file


def _refuse_what_is_not_grey(path: Path, series: tifffile.TiffPageSeries, page: tifffile.TiffPage) -> None:
    photometric = tifffile.PHOTOMETRIC(page.photometric)
    if photometric is tifffile.PHOTOMETRIC.PALETTE:
        raise ImageError(
            f"{path}: pixels point into a colour table, expected grey values; "
            "in ImageJ choose Image > Lookup Tables > Grays and save"
        )
    if photometric is not tifffile.PHOTOMETRIC.MINISBLACK or not series.axes.endswith("YX"):
        raise ImageError(
            f"{path}: pixels are {photometric.name} with axes {series.axes}, expected grey planes (axes ending in YX, "
            "black is zero); split the channels and save each as grey values "
            "(three frames saved by tifffile need photometric='minisblack')"
        )
    if series.dtype is None or series.dtype.name not in DTYPES or page.bitspersample not in (8, 16, 32):
        raise ImageError(
            f"{path}: pixels are {page.bitspersample}-bit {series.dtype}, expected one of {', '.join(DTYPES)}; "
            "convert to float32 if in doubt (it holds every 16-bit value exactly)"
        )
    if 0 in series.shape:
        raise ImageError(f"{path}: shape is {series.shape}, there is nothing to restore")


def _memory_map(path: Path, series: tifffile.TiffPageSeries) -> npt.NDArray[Any]:
    filehandle = series.keyframe.parent.filehandle
    shape, offset = tuple(series.shape), int(series.dataoffset or 0)
    needed = offset + math.prod(shape) * np.dtype(series.dtype).itemsize
    if filehandle.size < needed:
        raise ImageError(
            f"{path}: truncated: {filehandle.size} bytes, its header promises {needed}; copy the complete file again"
        )
    dtype = np.dtype(series.dtype).newbyteorder(series.keyframe.parent.byteorder)
    pixels: npt.NDArray[Any] = np.memmap(filehandle.path, dtype=dtype, mode="r", offset=offset, shape=shape)
    return pixels


def _check_segments(path: Path, page: Any, flat: int) -> None:
    # tifffile pads a short or missing segment with zeros, which would come out as restored black.
    size = page.parent.filehandle.size
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        if count == 0 or offset == 0 or offset + count > size:
            raise ImageError(
                f"{path}: truncated: plane {flat} has data at byte {offset} to {offset + count} of {size}; "
                "copy the complete file again"
            )


def _resolution(page: tifffile.TiffPage) -> Resolution | None:
    if "XResolution" not in page.tags or "YResolution" not in page.tags:
        return None
    (x_count, x_per), (y_count, y_per) = (
        page.tags["XResolution"].value,
        page.tags["YResolution"].value,
    )
    unit = (
        int(page.tags["ResolutionUnit"].value) if "ResolutionUnit" in page.tags else 2
    )  # TIFF 6.0: inch is the default
    return (x_count, x_per), (y_count, y_per), unit


@contextlib.contextmanager
def _as_image_error(path: Path, what: str) -> Iterator[None]:
    """Turn what tifffile and the codecs raise on damaged or foreign files into one error that names the file."""
    try:
        yield
    except ImageError:
        raise
    except (MemoryError, FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except Exception as error:
        hint = "re-save it uncompressed, or with deflate" if "imagecodecs" in str(error) else "copy or export it again"
        raise ImageError(f"{path}: {what} cannot be read ({error}); {hint}") from error


@contextlib.contextmanager
def _tifffile_complaints(path: Path) -> Iterator[None]:
    """Raise on damage that tifffile only logs: it would go on with the pages that are left."""
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("tifffile")
    propagate, log.propagate = log.propagate, False
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.propagate = propagate
    damage = [message for message in records if DAMAGE.search(message)]
    if damage:
        raise ImageError(f"{path}: truncated or damaged ({damage[0]}); copy or export the file again")


class TiffPlaneWriter:
    """Write planes to an open binary file as a TIFF in the dialect of the image that they come from."""

    def __init__(
        self,
        file: IO[bytes],
        like: Any,
        *,
        dtype: np.dtype[Any],
        provenance: Mapping[str, Any] | None,
        scale: int = 1,
    ) -> None:
        nbytes = math.prod(like.shape) * scale**2 * dtype.itemsize
        self._writer = tifffile.TiffWriter(file, bigtiff=nbytes > BIGTIFF_NBYTES)
        self._first: dict[str, Any] = {
            "software": "photonstep",
            **_first_page(like, dtype, provenance, scale),
        }
        self._every: dict[str, Any] = {"metadata": None, "photometric": "minisblack"}
        resolution = like.metadata.resolution
        if resolution is not None:
            resolution = image_metadata.finer_resolution(resolution, scale)
            self._every |= {
                "resolution": resolution[:2],
                "resolutionunit": resolution[2],
            }
        if like.metadata.compressed:
            self._every |= {"compression": "zlib", "predictor": dtype.kind == "u"}

    def write(self, plane: npt.NDArray[Any]) -> None:
        """Append one (H, W) plane."""
        self._writer.write(plane, **self._every, **self._first)
        self._first = {}

    def close(self) -> None:
        """Write what is left of the file's structure; the file itself stays open."""
        self._writer.close()


def _first_page(like: Any, dtype: np.dtype[Any], provenance: Mapping[str, Any] | None, scale: int) -> dict[str, Any]:
    """Return the tags of the first page, which carry the metadata of the whole file."""
    metadata: ImageMetadata = like.metadata
    tags: dict[str, Any] = {"datetime": metadata.datetime} if metadata.datetime else {}
    description: bytes | str
    if metadata.dialect == "ome":
        description = image_metadata.restored_ome(
            metadata.description,
            dtype.name,
            math.prod(like.shape[:-2]),
            provenance,
            str(like.path),
            scale,
        )
    elif metadata.dialect == "imagej":
        same_units = bool(dtype == like.dtype)
        description = image_metadata.restored_imagej(metadata.description, same_units, provenance, scale).encode()
        kept = image_metadata.restored_imagej_tag(metadata.imagej, same_units, provenance, scale)
        tags["extratags"] = tifffile.imagej_metadata_tag(kept, "<") if kept else ()
    else:
        shape = (*like.shape[:-2], *(n * scale for n in like.shape[-2:]))
        description = image_metadata.restored_plain(metadata.description, shape, like.axes, provenance)
    return tags | {"description": description}
