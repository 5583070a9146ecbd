"""The kernels' arguments as ctypes structures, read from ``csrc/arguments.cuh``: the header is their only definition.

    Stabilise = structure("Stabilise")
    k = Stabilise(frame=frame.ctypes.data, height=512, width=512, scale=4.0, z=z.ctypes.data, ...)

Pointers are ``c_void_p``: addresses in host memory for the CPU library, in device memory for a GPU.
"""

from __future__ import annotations

import ctypes
import re
from functools import cache
from pathlib import Path
from typing import Any, Final

SOURCES: Final = Path(__file__).resolve().parent / "csrc"
_TYPES: Final[dict[str, Any]] = {
    "int32_t": ctypes.c_int32,
    "uint32_t": ctypes.c_uint32,
    "int64_t": ctypes.c_int64,
    "float": ctypes.c_float,
    "double": ctypes.c_double,
}
_STRUCT = re.compile(r"struct (\w+) \{(.*?)\};", re.DOTALL)
_FIELD = re.compile(r"(?:const )?(\w+)(\*?) (.+)")


@cache
def structures() -> dict[str, type[ctypes.Structure]]:
    """Every argument structure by name."""
    text = re.sub(r"//[^\n]*", "", (SOURCES / "arguments.cuh").read_text(encoding="utf-8"))
    return {name: type(name, (ctypes.Structure,), {"_fields_": _fields(body)}) for name, body in _STRUCT.findall(text)}


def structure(name: str) -> Any:
    """One argument structure, a `ctypes.Structure` whose fields are those of the C++ struct of that name."""
    return structures()[name]


def _fields(body: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for declaration in filter(None, (part.strip() for part in body.split(";"))):
        match = _FIELD.fullmatch(" ".join(declaration.split()))
        if match is None:
            raise ValueError(f"arguments.cuh declares {declaration!r}; expected 'type name, name'")
        kind, star, names = match.groups()  # a star stands at the type or at every name: void* a; float *a, *b
        found += [_field(kind, name.strip(), bool(star)) for name in names.split(",")]
    return found


def _field(kind: str, name: str, is_pointer: bool) -> tuple[str, Any]:
    if is_pointer or name.startswith("*"):
        return name.lstrip("*"), ctypes.c_void_p
    array = re.fullmatch(r"(\w+)\[(\d+)\]", name)
    if array:
        return array[1], _TYPES[kind] * int(array[2])
    return name, _TYPES[kind]
