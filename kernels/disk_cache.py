"""What is built on this machine and kept between runs: one folder of the user's, every file whole or not there."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from pathlib import Path
from typing import Final

VARIABLE: Final = "PHOTONSTEP_CACHE"


def cache_folder() -> Path:
    """``$PHOTONSTEP_CACHE``, or ``~/.cache/photonstep``."""
    chosen = os.environ.get(VARIABLE)
    return Path(chosen) if chosen else Path.home() / ".cache" / "photonstep"


def write_whole(path: Path, content: bytes) -> Path:
    """Write a file under a temporary name and rename it: another process sees no file or the whole one.

    Raises
    ------
    OSError : the folder cannot be written
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return path


def sealed(content: bytes) -> bytes:
    """The content behind a line with its SHA-256."""
    return hashlib.sha256(content).hexdigest().encode() + b"\n" + content


def unsealed(path: Path) -> bytes | None:
    """What `sealed` wrote to a file, or None where there is none or it is damaged."""
    try:
        digest, _, content = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    return content if digest == hashlib.sha256(content).hexdigest().encode() else None
