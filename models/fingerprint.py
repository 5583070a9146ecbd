"""Which recordings a run learns from, as a few lines of its record: a resumed run must be given the same ones.

The record travels in the bundle, so names of fields and files stay out of it; a digest stands for them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from ..runtime.camera import Camera
from .recordings import Scene, Source

END_BYTES: Final = 1 << 16  # read of a file at either end: frames of one camera often have equal names and sizes
PARTS_READ: Final = 16  # of an OME-Zarr store


def fingerprint(source: Source, scenes: Sequence[Scene]) -> dict[str, Any]:
    """What is in a source and how it is read; equal for equal recordings, wherever their folder lies.

    Parameters
    ----------
    scenes : all of this source, held out or not

    Returns
    -------
    kind, licence, share, camera (a digest) and files (their number, that of the fields, and a digest of fields, names,
    sizes and both ends of every file)

    Raises
    ------
    OSError : a file that cannot be read
    """
    fields = {plane.path: scene.field for scene in scenes for plane in (*scene.frames, scene.reference) if plane}
    digest = hashlib.sha256()
    for name, path in sorted((f"{field}/{_name(path, source.path)}", path) for path, field in fields.items()):
        _add_file(digest, name, path)
    count = len(set(fields.values()))
    return {
        "kind": scenes[0].kind,
        "licence": source.licence,
        "share": source.share,
        "camera": camera_mark(scenes[0].camera),
        "files": f"{len(fields)} files of {count} fields of view, {digest.hexdigest()[:16]}",
    }


def camera_mark(camera: Camera | None) -> str:
    """A digest of a camera's numbers and maps; an estimated one follows from the frames."""
    if camera is None:
        return "estimated from the frames"
    digest = hashlib.sha256()
    for name, value in sorted(vars(camera).items()):
        content = value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()
        digest.update(f"{name} {np.shape(value)} ".encode() + content + b"\n")
    return digest.hexdigest()[:16]


def _name(path: Path, root: Path) -> str:
    return path.name if path == root else path.relative_to(root).as_posix()


def _add_file(digest: Any, name: str, path: Path) -> None:
    parts = [path] if path.is_file() else sorted(part for part in path.rglob("*") if part.is_file())
    for index, part in enumerate(parts):
        size = part.stat().st_size
        digest.update(f"{name}/{_name(part, path)}\0{size}\0".encode())
        if index < PARTS_READ:
            with part.open("rb") as file:
                digest.update(file.read(END_BYTES))
                file.seek(max(0, size - END_BYTES))
                digest.update(file.read(END_BYTES))
