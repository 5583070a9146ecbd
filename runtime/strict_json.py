"""JSON from strangers: no duplicate keys, no NaN or infinity, bounded nesting."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from .errors import BundleError

MAX_DEPTH = 16
MAX_INTEGER_DIGITS = 20


def parse_json(content: bytes, where: str) -> Any:
    """Return the value of a strict JSON text that belongs to a bundle.

    Parameters
    ----------
    content : UTF-8 without byte order mark
    where : what is read, for messages

    Raises
    ------
    BundleError : what `parse_strict` refuses
    """
    try:
        return parse_strict(content)
    except ValueError as error:
        reason = str(error)[:200]
        raise BundleError(
            f"{where} is not strict JSON: {reason}; expected UTF-8 JSON; export the bundle again"
        ) from None


def parse_strict(content: bytes) -> Any:
    """Return the value of a strict JSON text.

    Parameters
    ----------
    content : UTF-8 without byte order mark

    Raises
    ------
    ValueError : not UTF-8 or not JSON, a key twice in one object, a number that is not finite or an
        integer of more than ``MAX_INTEGER_DIGITS`` digits, or more than ``MAX_DEPTH`` levels of nesting
    """
    text = content.decode("utf-8")
    _check_depth(text)
    value = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant, parse_int=_bounded_int)
    json.dumps(value, allow_nan=False)  # 1e999 reads as infinity without passing parse_constant
    return value


def _check_depth(text: str) -> None:
    """Refuse deep nesting before the parser recurses, in one pass that no input can slow down."""
    depth, in_string = 0, False
    for token in re.finditer(r'\\.|["\[\]{}]', text, re.DOTALL):
        symbol = token.group()
        if symbol == '"':
            in_string = not in_string
        elif not in_string and symbol in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise ValueError(f"nested more than {MAX_DEPTH} deep")
        elif not in_string and symbol in "]}":
            depth -= 1


def _unique_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key[:80]!r} is there twice")
        found[key] = value
    return found


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a finite number")


def _bounded_int(text: str) -> int:
    if len(text) > MAX_INTEGER_DIGITS:
        raise ValueError(f"an integer has {len(text)} digits, at most {MAX_INTEGER_DIGITS} are allowed")
    return int(text)
