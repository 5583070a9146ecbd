"""Grey PNG in and out, through Pillow: one plane, 8 or 16 bits."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt
from PIL import Image, PngImagePlugin

from . import image_metadata
from .errors import ImageError
from .image_metadata import PROVENANCE_KEY, ImageMetadata, Resolution


class PngReader:
    """A grey PNG as an image of one plane; made by `open_image`."""

    axes = "YX"
    plane_count = 1

    def __init__(self, path: Path) -> None:
        self.path = path
        self.source_paths: tuple[Path, ...] = (path,)
        self._plane, info = _decode(path)
        self.shape: tuple[int, ...] = self._plane.shape
        self.dtype = self._plane.dtype
        resolution = _resolution(info)
        self.pixel_size_um = image_metadata.plain_pixel_size_um(resolution)
        texts = {key: value for key, value in info.items() if isinstance(value, str)}
        self.provenance = image_metadata.json_object(texts.pop(PROVENANCE_KEY, None))
        self.metadata = ImageMetadata(resolution=resolution, texts=texts)

    def plane(self, index: tuple[int, ...]) -> npt.NDArray[Any]:
        """Return the only plane; ``index`` is ()."""
        return self._plane.copy()

    def planes(self) -> Iterator[tuple[tuple[int, ...], npt.NDArray[Any]]]:
        """Yield the only plane."""
        yield (), self.plane(())

    def close(self) -> None:
        """Nothing is held open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _decode(path: Path) -> tuple[npt.NDArray[Any], dict[str, Any]]:
    try:
        with Image.open(path, formats=("PNG",)) as image:
            mode = image.mode
            info = {str(key): value for key, value in image.info.items()}
            if mode not in ("L", "I;16"):
                raise ImageError(
                    f"{path}: PNG mode is {mode}, expected 8- or 16-bit grey; "
                    "split the channels and save each as grey values"
                )
            plane = np.array(image)
    # Pillow raises SyntaxError on broken chunks, and ValueError and OSError on damaged data.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path}: truncated or damaged PNG ({error}); copy or export it again") from error
    return plane.astype(np.uint8 if mode == "L" else np.uint16, copy=False), info


def _resolution(info: Mapping[str, Any]) -> Resolution | None:
    dpi = info.get("dpi")
    if not dpi or min(dpi) <= 0:
        return None
    # Pillow makes dpi of PNG's whole pixels per metre; TIFF's centimetre takes them back without rounding.
    x, y = (round(value / 0.0254) for value in dpi)
    return (x, 100), (y, 100), 3


class PngPlaneWriter:
    """Write one grey plane to an open binary file as PNG, with the original's texts and resolution."""

    def __init__(
        self,
        file: IO[bytes],
        like: Any,
        *,
        dtype: np.dtype[Any],
        provenance: Mapping[str, Any] | None,
        scale: int = 1,
    ) -> None:
        self._file = file
        self._dtype = dtype
        self._options: dict[str, Any] = {}
        self._texts = PngImagePlugin.PngInfo()
        for key, value in like.metadata.texts.items():
            self._texts.add_itxt(key, value)
        if provenance is not None:
            self._texts.add_itxt(PROVENANCE_KEY, json.dumps(provenance, sort_keys=True))
        if like.pixel_size_um is not None:
            self._options["dpi"] = tuple(25400 * scale / size for size in reversed(like.pixel_size_um))

    def write(self, plane: npt.NDArray[Any]) -> None:
        """Write the plane."""
        image = Image.fromarray(np.ascontiguousarray(plane, dtype=self._dtype))
        image.save(self._file, format="PNG", pnginfo=self._texts, **self._options)

    def close(self) -> None:
        """Nothing is left to write."""
