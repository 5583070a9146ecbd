"""OME-Zarr in, one plane at a time: the full-resolution level of one multiscale image, versions 0.4 and 0.5.

Reads through zarr 3, an optional package. Speaks the part of `runtime.images.ImageReader` that training needs.

Source: OME-NGFF, https://ngff.openmicroscopy.org (multiscales metadata).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..kernels.ops import FRAME_DTYPES
from ..runtime.errors import ImageError

MARKERS = ("zarr.json", ".zgroup", ".zattrs", ".zarray")


def is_zarr(path: Path) -> bool:
    """Whether a folder is a Zarr store."""
    return path.is_dir() and any((path / marker).is_file() for marker in MARKERS)


class ZarrReader:
    """The finest level of an OME-Zarr image, plane by plane, lazily.

    Parameters
    ----------
    path : a Zarr group with ``multiscales`` metadata

    Raises
    ------
    ImageError : zarr is not installed, no OME-Zarr image there, a plate, or a dtype that a camera does not give
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        zarr = _zarr(path)
        try:
            group = zarr.open_group(str(path), mode="r")
            metadata = dict(group.attrs)
        except Exception as error:  # zarr raises many kinds for a damaged store
            raise ImageError(f"{path}: cannot be read as OME-Zarr ({error}); export it again") from error
        level, self.axes = _finest_level(path, metadata.get("ome", metadata))
        try:
            self._array = group[level]
            self.shape: tuple[int, ...] = tuple(self._array.shape)
            self.dtype: np.dtype[Any] = np.dtype(self._array.dtype)
        except Exception as error:
            raise ImageError(f"{path}: level {level!r} cannot be read ({error}); export it again") from error
        if len(self.shape) != len(self.axes) or self.axes[-2:] != "YX":
            raise ImageError(f"{path}: shape {self.shape} with the axes {self.axes!r}; expected axes that end in YX")
        if self.dtype.name not in FRAME_DTYPES:
            raise ImageError(f"{path}: pixels are {self.dtype}; expected {', '.join(FRAME_DTYPES)}")
        self.plane_count = math.prod(self.shape[:-2])

    def plane(self, index: tuple[int, ...]) -> NDArray[Any]:
        """The (H, W) plane at ``index``: one number for each axis before Y and X."""
        try:
            return np.ascontiguousarray(self._array[index])
        except Exception as error:
            raise ImageError(f"{self.path}: plane {index} cannot be read ({error}); copy the store again") from error

    def close(self) -> None:
        """Nothing is held open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _finest_level(path: Path, metadata: dict[str, Any]) -> tuple[str, str]:
    """Name of the first dataset of the first multiscale image, and its axes in capitals."""
    if "plate" in metadata or "well" in metadata:
        raise ImageError(f"{path}: is a plate; give the images inside it, such as {path.name}/A/1/0")
    try:
        image = metadata["multiscales"][0]
        axes = image.get("axes") or list("tczyx")
        letters = "".join(a if isinstance(a, str) else a["name"] for a in axes).upper()
        level = str(image["datasets"][0]["path"])
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ImageError(f"{path}: holds no multiscales metadata; expected an OME-Zarr image") from None
    if ".." in Path(level).parts or Path(level).is_absolute():
        raise ImageError(f"{path}: its level is called {level!r}; expected a name inside the store")
    return level, letters


def _zarr(path: Path) -> Any:
    try:
        import zarr
    except ImportError:
        raise ImageError(f"{path}: reading OME-Zarr needs zarr: python -m pip install 'zarr>=3'") from None
    return zarr
