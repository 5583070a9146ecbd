"""Engines built on this machine, kept in a folder of the user's: found again by everything that decides them.

An engine is executable code: it is never shipped, never read from a bundle, and only ever loaded from here. A file is
one line of JSON (the key, and the SHA-256 of what follows) and then the engine; one that is damaged counts as absent.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from ...kernels.disk_cache import VARIABLE, cache_folder, write_whole
from ..errors import BackendError

__all__ = ["EngineKey", "cache_folder", "keep", "path_of", "read_engine", "write_engine"]

SUFFIX: Final = ".engine"
MAX_HEADER_BYTES: Final = 2**16


@dataclass(frozen=True, kw_only=True)
class EngineKey:
    """Everything that an engine depends on.

    Parameters
    ----------
    source_sha256 : of the whole bundle
    gpu : name and compute capability, or the targets of an ahead-of-time build
    driver : its version, or "none"
    library : TensorRT flavour and version
    profile : smallest, usual and largest input shape
    precision : of the network
    """

    source_sha256: str
    gpu: str
    driver: str
    library: str
    profile: str
    precision: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def path_of(key: EngineKey, folder: Path) -> Path:
    return folder / "engines" / f"{key.digest}{SUFFIX}"


def read_engine(key: EngineKey, folder: Path) -> bytes | None:
    """The engine of a key; None where there is none, or it is damaged or of another key."""
    try:
        content = path_of(key, folder).read_bytes()
    except OSError:
        return None
    head, _, engine = content.partition(b"\n")
    if len(head) > MAX_HEADER_BYTES:
        return None
    try:
        header = json.loads(head)
    except ValueError:  # UnicodeDecodeError is one
        return None
    whole = isinstance(header, dict) and header.get("sha256") == hashlib.sha256(engine).hexdigest()
    return engine if whole and header.get("key") == asdict(key) else None


def write_engine(key: EngineKey, engine: bytes, folder: Path) -> Path:
    """Put an engine in place in one step: another process sees no engine or the whole one.

    Raises
    ------
    BackendError : the folder cannot be written
    """
    header = json.dumps({"key": asdict(key), "sha256": hashlib.sha256(engine).hexdigest()}).encode()
    return keep(path_of(key, folder), header + b"\n" + engine)


def keep(path: Path, content: bytes) -> Path:
    """Write a file of the cache in one step.

    Raises
    ------
    BackendError : the folder cannot be written
    """
    try:
        write_whole(path, content)
    except OSError as error:
        raise BackendError(
            f"{path} cannot be written: {error}; free some space, or name another folder in {VARIABLE}"
        ) from error
    return path
