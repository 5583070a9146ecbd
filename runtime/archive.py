"""The outer layer of a bundle: a zip of stored members in one canonical encoding.

Reading is a comparison, not an interpretation. Every header is parsed only to say what is wrong with it, and is then
compared byte for byte with the header that ``pack`` would have written. Two zip readers can therefore not disagree
about a bundle, nothing can hide between, before or behind the members, and the same members always have the same hash.

Source: PKWARE APPNOTE.TXT 6.3.10, sections 4.3.7 (local header), 4.3.12 (central directory), 4.3.16 (end record).
"""

from __future__ import annotations

import re
import stat
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from .errors import BundleError

MANIFEST_MEMBER = "manifest.json"
MEMBER_NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,57}\.(json|md|onnx|raw|png|txt)$"
MAX_FILE_BYTES = 512 * 2**20
MAX_MEMBERS = 64
MAX_MANIFEST_BYTES = 2**20

_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_END = struct.Struct("<4sHHHHIIH")
_LOCAL_SIGNATURE = b"PK\x03\x04"
_CENTRAL_SIGNATURE = b"PK\x01\x02"
_END_SIGNATURE = b"PK\x05\x06"
_MADE_BY = 3 << 8 | 20  # Unix, zip 2.0: tells unpackers to honour the file mode below
_NEEDED = 20
_STORED = 0
_ENCRYPTED_FLAGS = 0x0001 | 0x0040 | 0x2000
_DESCRIPTOR_FLAG = 0x0008
_TIME, _DATE = 0, 0x0021  # 1980-01-01 00:00, the first moment that a zip can name
_MODE = stat.S_IFREG | 0o644
_AGAIN = "fetch or export the bundle again"


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """What the central directory says about one member; sizes and offset in bytes."""

    name: str
    crc: int
    size: int
    offset: int

    @property
    def data_offset(self) -> int:
        return self.offset + _LOCAL.size + len(self.name)

    @property
    def end(self) -> int:
        return self.data_offset + self.size

    def local_header(self) -> bytes:
        fields = (_NEEDED, 0, _STORED, _TIME, _DATE, self.crc, self.size, self.size, len(self.name), 0)
        return _LOCAL.pack(_LOCAL_SIGNATURE, *fields) + self.name.encode("ascii")

    def central_header(self) -> bytes:
        start = (_MADE_BY, _NEEDED, 0, _STORED, _TIME, _DATE, self.crc, self.size, self.size, len(self.name))
        return _CENTRAL.pack(_CENTRAL_SIGNATURE, *start, 0, 0, 0, 0, _MODE << 16, self.offset) + self.name.encode(
            "ascii"
        )


def pack(members: Mapping[str, bytes]) -> bytes:
    """Return the one archive that holds these members: ``manifest.json`` first, the others sorted by name.

    Parameters
    ----------
    members : content by member name, ``manifest.json`` among them

    Raises
    ------
    BundleError : a name outside the grammar, or more members or bytes than a bundle may hold
    """
    _check_total(members)
    parts: list[bytes] = []
    directory: list[bytes] = []
    offset = 0
    for name in sorted(members, key=_order):
        content = members[name]
        entry = _Entry(name=name, crc=zlib.crc32(content), size=len(content), offset=offset)
        parts += (entry.local_header(), content)
        directory.append(entry.central_header())
        offset = entry.end
    return b"".join(parts) + b"".join(directory) + _end_record(len(members), sum(map(len, directory)), offset)


def unpack(content: bytes, where: str) -> dict[str, memoryview]:
    """Return the members of an archive, as views into ``content``, in the archive's order.

    Parameters
    ----------
    content : the whole file
    where : the file's name, for messages

    Raises
    ------
    BundleError : anything but the exact bytes that ``pack`` writes for these members
    """
    if len(content) > MAX_FILE_BYTES:
        raise BundleError(f"{where} is {len(content)} bytes; expected at most {MAX_FILE_BYTES}; this is not a bundle")
    count, directory_size, directory_offset = _read_end(content, where)
    entries = _read_directory(content[directory_offset : directory_offset + directory_size], count, where)
    _check_layout(entries, directory_offset, where)
    members: dict[str, memoryview] = {}
    for entry in entries:
        if content[entry.offset : entry.data_offset] != entry.local_header():
            raise BundleError(
                f"{where}: member {entry.name!r}: its local header differs from the central directory; "
                f"expected the same name, size, checksum and flags in both; {_AGAIN}"
            )
        data = memoryview(content)[entry.data_offset : entry.end]
        if zlib.crc32(data) != entry.crc:
            raise BundleError(
                f"{where}: member {entry.name!r}: CRC-32 is {zlib.crc32(data):08x}, the header says {entry.crc:08x}; "
                f"the file is damaged; {_AGAIN}"
            )
        members[entry.name] = data
    return members


def _order(name: str) -> tuple[bool, str]:
    return name != MANIFEST_MEMBER, name


def _end_record(count: int, directory_size: int, directory_offset: int) -> bytes:
    return _END.pack(_END_SIGNATURE, 0, 0, count, count, directory_size, directory_offset, 0)


def _check_total(members: Mapping[str, bytes]) -> None:
    if len(members) > MAX_MEMBERS:
        raise BundleError(f"bundle has {len(members)} members; expected at most {MAX_MEMBERS}; leave some out")
    for name in members:
        _check_name(name, "bundle")
    overhead = sum(_LOCAL.size + _CENTRAL.size + 2 * len(name) for name in members) + _END.size
    total = overhead + sum(map(len, members.values()))
    if total > MAX_FILE_BYTES:
        raise BundleError(f"bundle would be {total} bytes; expected at most {MAX_FILE_BYTES}; leave members out")


def _check_name(name: str, where: str) -> None:
    if not re.fullmatch(MEMBER_NAME_PATTERN, name):
        raise BundleError(
            f"{where}: member name {name[:80]!r} is not allowed; expected lower-case letters, digits, '-' and '_', "
            f"ending in .json, .md, .onnx, .raw, .png or .txt (no folders); rename it, or do not trust this file"
        )


def _read_end(content: bytes, where: str) -> tuple[int, int, int]:
    """Return (member count, directory size, directory offset) once the end record fits the file exactly."""
    tail = content[-_END.size :]
    if len(tail) < _END.size or not tail.startswith(_END_SIGNATURE):
        raise BundleError(_missing_end(content, where))
    _, _, _, _, count, size, offset, _ = _END.unpack(tail)
    if not 1 <= count <= MAX_MEMBERS:
        raise BundleError(f"{where} declares {count} members; expected 1 to {MAX_MEMBERS}; do not trust this file")
    extra = len(content) - _END.size - size - offset
    if extra > 0:
        raise BundleError(
            f"{where}: {extra} unaccounted bytes before the first member or the central directory; "
            f"expected the first member at byte 0 and no gap; {_AGAIN}"
        )
    if extra < 0:
        raise BundleError(
            f"{where}: truncated: the end record declares {-extra} bytes more than the file has; {_AGAIN}"
        )
    if tail != _end_record(count, size, offset):
        raise BundleError(f"{where}: end record is not canonical (comment, several disks or counts); {_AGAIN}")
    return count, size, offset


def _missing_end(content: bytes, where: str) -> str:
    at = content.rfind(_END_SIGNATURE)
    if at >= 0 and len(content) - at > _END.size:
        trailing = len(content) - at - _END.size
        return f"{where}: {trailing} trailing bytes behind the zip's end record; expected none; {_AGAIN}"
    if content.startswith(_LOCAL_SIGNATURE):
        return f"{where}: truncated: no end record in {len(content)} bytes; expected a whole zip; {_AGAIN}"
    return f"{where}: not a zip: begins with {content[:4]!r}; expected {_LOCAL_SIGNATURE!r}; check the path"


def _read_directory(directory: bytes, count: int, where: str) -> list[_Entry]:
    entries: list[_Entry] = []
    at = 0
    for index in range(count):
        fixed = directory[at : at + _CENTRAL.size]
        if len(fixed) < _CENTRAL.size or not fixed.startswith(_CENTRAL_SIGNATURE):
            raise BundleError(f"{where}: central directory breaks off at member {index + 1} of {count}; {_AGAIN}")
        fields = _CENTRAL.unpack(fixed)
        raw_name = directory[at + _CENTRAL.size : at + _CENTRAL.size + fields[10]]
        name = raw_name.decode("ascii", errors="backslashreplace")
        _check_name(name, where)
        _check_fields(fields, f"{where}: member {name!r}")
        entry = _Entry(name=name, crc=fields[7], size=fields[9], offset=fields[16])
        if directory[at : at + _CENTRAL.size + len(raw_name)] != entry.central_header():
            raise BundleError(
                f"{where}: member {name!r}: its header is not canonical (date, version, mode or length); "
                f"expected the bytes that photonstep writes; do not repack bundles with other zip tools"
            )
        entries.append(entry)
        at += _CENTRAL.size + len(raw_name)
    if at != len(directory):
        raise BundleError(f"{where}: {len(directory) - at} unlisted bytes in the central directory; {_AGAIN}")
    return entries


def _check_fields(fields: tuple[int, ...], where: str) -> None:
    """Name the known tricks; the comparison with the canonical header catches the rest."""
    flags, method, packed_size, size = fields[3], fields[4], fields[8], fields[9]
    extra_length, comment_length, mode = fields[11], fields[12], fields[15] >> 16
    if flags & _ENCRYPTED_FLAGS:
        raise BundleError(f"{where} is encrypted; expected plain stored members; {_AGAIN}")
    if flags & _DESCRIPTOR_FLAG:
        raise BundleError(f"{where} hides its size in a data descriptor; expected it in the header; {_AGAIN}")
    if method != _STORED:
        raise BundleError(f"{where} is compressed (method {method}); expected method 0, stored; {_AGAIN}")
    if packed_size != size:
        raise BundleError(
            f"{where}: stored size is {packed_size}, declared size is {size}; expected the same; {_AGAIN}"
        )
    if stat.S_ISLNK(mode):
        raise BundleError(f"{where} is a symbolic link; expected a regular file; do not trust this file")
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise BundleError(f"{where} is not a regular file (mode {mode:o}); do not trust this file")
    if extra_length or comment_length:
        raise BundleError(f"{where} carries an extra field or comment; expected none; repack it with photonstep")


def _check_layout(entries: list[_Entry], directory_offset: int, where: str) -> None:
    names = [entry.name for entry in entries]
    canonical = sorted(set(names), key=_order)
    if len(canonical) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise BundleError(f"{where}: member {twice!r} is there twice; expected every name once; do not trust this file")
    if names != canonical:
        got, expected = next(pair for pair in zip(names, canonical, strict=True) if pair[0] != pair[1])
        raise BundleError(
            f"{where}: member {got!r} stands where {expected!r} is expected ({MANIFEST_MEMBER} first, then sorted by "
            f"name); repack it with photonstep"
        )
    if names[0] != MANIFEST_MEMBER:
        raise BundleError(f"{where}: no member {MANIFEST_MEMBER!r}; this is a zip but not a photonstep bundle")
    if entries[0].size > MAX_MANIFEST_BYTES:
        raise BundleError(
            f"{where}: member {MANIFEST_MEMBER!r} is {entries[0].size} bytes; expected at most {MAX_MANIFEST_BYTES}"
        )
    position = 0
    for entry in entries:
        if entry.offset != position:
            what = "overlaps the member before it" if entry.offset < position else "leaves a gap before it"
            raise BundleError(
                f"{where}: member {entry.name!r} {what}: it starts at byte {entry.offset}, expected {position}; "
                f"{_AGAIN}"
            )
        position = entry.end
    if position != directory_offset:
        raise BundleError(
            f"{where}: member {entries[-1].name!r} ends at byte {position}, the central directory starts at "
            f"{directory_offset}; expected the same; {_AGAIN}"
        )
