"""The native CPU library, where the package was built with a C++ compiler; ctypes releases the GIL for every call.

    lib = native.library()          # None: not built, or switched off; the entry points then use the NumPy reference
    lib.call("stabilise", arguments)

``PHOTONSTEP_KERNELS=reference`` switches it off, ``PHOTONSTEP_KERNELS=native`` makes its absence an error.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, Final

from .arguments import SOURCES, structures

VARIABLE: Final = "PHOTONSTEP_KERNELS"
CHOICES: Final = ("auto", "native", "reference")
MOST_THREADS: Final = 8
SOURCE_SUFFIXES: Final = (".cuh", ".hpp", ".cpp")


class KernelError(RuntimeError):
    """The native kernels were asked for and cannot be used."""


class Library:
    """A loaded library. Calls may come from any thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lib = ctypes.CDLL(str(path))
        self._lib.ps_variant.restype = ctypes.c_char_p
        self._lib.ps_sources.restype = ctypes.c_char_p
        self._lib.ps_size_of.restype = ctypes.c_int64
        self._check_sources()
        self._check_layout()
        self._functions: dict[str, Any] = {}
        self.set_threads(min(processors(), MOST_THREADS))

    @property
    def variant(self) -> str:
        """Instruction set of the loops in use: "baseline", "avx2" or "avx512"."""
        return str(self._lib.ps_variant().decode())

    @property
    def threads(self) -> int:
        return int(self._lib.ps_threads())

    def set_threads(self, count: int) -> None:
        """At most how many threads share the rows of a large image."""
        self._lib.ps_set_threads(ctypes.c_int32(count))

    def use_variant(self, name: str) -> bool:
        """Switch to another instruction set; False where this processor or build has none of that name."""
        return bool(self._lib.ps_use_variant(name.encode()))

    def call(self, name: str, arguments: ctypes.Structure) -> None:
        """Run a kernel, ``ps_<name>``; results that are numbers come back in ``arguments``."""
        function = self._functions.get(name)
        if function is None:
            function = getattr(self._lib, f"ps_{name}")
            function.restype = None
            self._functions[name] = function
        function(ctypes.byref(arguments))

    def _check_sources(self) -> None:
        built = self._lib.ps_sources().decode()
        if built != sources_digest():
            raise KernelError(
                f"{self.path.name} was built from sources {built}, here are {sources_digest()}; build it again: "
                "install the package, or in a checkout python setup.py build_ext --inplace"
            )

    def _check_layout(self) -> None:
        for name, kind in structures().items():
            built = self._lib.ps_size_of(name.encode())
            if built != ctypes.sizeof(kind):
                raise KernelError(
                    f"{self.path.name} has {built} bytes for {name}, arguments.cuh {ctypes.sizeof(kind)}; it was built "
                    "from other sources: install the package again"
                )


@cache
def sources_digest() -> str:
    """Stands for the sources of the library, as setup.py works it out when it builds one."""
    files = sorted(p for p in SOURCES.iterdir() if p.suffix in SOURCE_SUFFIXES)
    content = b"".join(p.name.encode() + b"\0" + p.read_bytes() for p in files)
    return hashlib.sha256(content).hexdigest()[:16]


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find() -> Path | None:
    """This interpreter's library beside this module, or None where the package was built without a compiler."""
    folder = Path(__file__).resolve().parent
    return next((path for suffix in EXTENSION_SUFFIXES if (path := folder / f"_native{suffix}").is_file()), None)


def _why_not_built() -> str:
    # Python started in a checkout's folder takes the sources there, whatever is installed
    checkout = Path(__file__).resolve().parent.parent
    if (checkout / "setup.py").is_file():
        return (
            f"not built in the source checkout {checkout}: run python setup.py build_ext --inplace there, or start "
            "Python in another folder to use the installed package"
        )
    return "not built: there was no C++ compiler when the package was installed; install one, then the package again"


def _load() -> tuple[Library | None, str]:
    choice = os.environ.get(VARIABLE, "auto")
    if choice not in CHOICES:
        raise KernelError(f"{VARIABLE} is {choice!r}; choose one of {', '.join(CHOICES)}")
    if choice == "reference":
        return None, f"switched off by {VARIABLE}=reference"
    path = find()
    cause = _why_not_built()
    if path is not None:
        try:
            return Library(path), ""
        except (OSError, AttributeError, KernelError) as error:
            cause = f"cannot be loaded: {error}"
    if choice == "native":
        raise KernelError(f"{VARIABLE}=native, but the native kernels are {cause}")
    return None, cause


_state: list[tuple[Library | None, str]] = []


def library() -> Library | None:
    """The library in use, or None: then the entry points use the reference."""
    if not _state:
        _state.append(_load())
    return _state[-1][0]


def cause() -> str:
    """Why `library` is None, or an empty string."""
    library()
    return _state[-1][1]


def describe() -> str:
    """What runs the per-pixel maths, in a line for people."""
    lib = library()
    if lib is None:
        return f"NumPy reference (native kernels {cause()})"
    return f"native C++ ({lib.variant}, up to {lib.threads} threads)"


@contextmanager
def use_reference() -> Iterator[None]:
    """Within the block, every entry point uses the NumPy reference; for comparisons."""
    library()
    _state.append((None, "switched off for a comparison"))
    try:
        yield
    finally:
        _state.pop()
