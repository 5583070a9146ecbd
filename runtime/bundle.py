"""The ``.photonstep`` bundle: the format's only reader and writer. The format is described in ``docs/bundle.md``.

    bundle = Bundle.load("base.photonstep")      # everything is verified here, or it is a BundleError
    bundle.manifest.model.receptive_radius_px
    model = bundle.network("fp32")               # ONNX bytes for a backend; no file is unpacked

The file is read once into memory, and what was hashed and checked is what is handed out: nothing that happens to the
file afterwards matters. Reading needs neither the onnx package nor torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .archive import MANIFEST_MEMBER, MAX_FILE_BYTES, pack, unpack
from .errors import BundleError
from .manifest import FORMAT, FORMAT_VERSION, FrameGraph, Manifest, NetworkRecord, Precision, RawArray, parse_manifest
from .onnx_scan import OnnxSummary, scan_onnx
from .strict_json import parse_json

SUFFIX = ".photonstep"
MAX_TEXT_BYTES = 2**20
FRAME_INPUTS = ("frame", "offset_adu", "gain_e_per_adu", "readout_noise_e", "noise_correlation")
FRAME_OUTPUT = "restored"
_COMPUTED = ("format", "format_version", "members")
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Bundle:
    """A verified bundle in memory. Make one with `Bundle.load`.

    Parameters
    ----------
    path : where it was read from
    sha256 : SHA-256 of the whole file, hexadecimal: the bundle's identity in provenance and caches
    manifest : everything that the bundle says about itself
    """

    path: Path
    sha256: str
    manifest: Manifest
    _members: Mapping[str, memoryview]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Bundle:
        """Read a bundle and verify all of it.

        Parameters
        ----------
        path : a ``.photonstep`` file, at most 512 MiB

        Raises
        ------
        BundleError : the file cannot be read, or is damaged, hostile or of a newer format version; the message names
            the file and the member, what was found, what was expected and what to do
        """
        return cls.from_bytes(_read_file(path), path)

    @classmethod
    def from_bytes(cls, content: bytes, path: str | os.PathLike[str]) -> Bundle:
        """Verify a bundle that is already in memory; ``path`` names it in messages. Raises like `load`."""
        where = Path(path).name
        members = unpack(content, where)
        manifest = parse_manifest(bytes(members[MANIFEST_MEMBER]), where)
        _verify_hashes(manifest, members, where)
        _verify_contents(manifest, members, where)
        return cls(path=Path(path), sha256=hashlib.sha256(content).hexdigest(), manifest=manifest, _members=members)

    def __repr__(self) -> str:
        return f"Bundle({self.manifest.name} {self.manifest.version}, {', '.join(self.networks)}, {self.path.name})"

    @property
    def members(self) -> tuple[str, ...]:
        """Names of all members, ``manifest.json`` first."""
        return tuple(self._members)

    @property
    def networks(self) -> tuple[Precision, ...]:
        """Precisions that the bundle holds a network for, in the manifest's order."""
        return tuple(network.precision for network in self.manifest.networks)

    def read(self, member: str) -> bytes:
        """Return the content of a member.

        Raises
        ------
        BundleError : no member of that name
        """
        if member not in self._members:
            raise BundleError(
                f"{self.path.name}: no member {member!r}; it has {', '.join(self._members)}; choose one of them"
            )
        return bytes(self._members[member])

    def network(self, precision: Precision) -> bytes:
        """Return the ONNX network of a precision: "fp32", "bf16", "fp16", "int8" or "int8_symmetric".

        Raises
        ------
        BundleError : the bundle has no network of that precision
        """
        for network in self.manifest.networks:
            if network.precision == precision:
                return self.read(network.member)
        raise BundleError(
            f"{self.path.name}: no network of precision {precision!r}; it has {', '.join(self.networks)}; "
            "choose one of them"
        )

    def frame_graph(self, steps: int) -> bytes:
        """Return the ONNX graph of a whole restoration of ``steps`` evaluations, for any ONNX runtime.

        Its inputs are ``FRAME_INPUTS`` (uint16 (H, W); three float32 scalars; float32 (2,) along y, x), its output
        ``FRAME_OUTPUT`` (uint16 (H, W)).

        Raises
        ------
        BundleError : the bundle has no frame graph of so many steps
        """
        for graph in self.manifest.frame_graphs:
            if graph.steps == steps:
                return self.read(graph.member)
        found = ", ".join(str(graph.steps) for graph in self.manifest.frame_graphs) or "none"
        raise BundleError(
            f"{self.path.name}: no frame graph of {steps} steps; it has {found}; choose one of them, or make one with "
            "photonstep.export.frame_graph"
        )

    def read_array(self, array: RawArray) -> NDArray[np.uint16]:
        """Return a raw member as a read-only (H, W) uint16 array, for instance ``manifest.test_frame.input``.

        Raises
        ------
        BundleError : no member of that name
        """
        pixels = np.frombuffer(self.read(array.member), dtype="<u2")
        return pixels.reshape(array.shape).astype(np.uint16, copy=False)


def write_bundle(
    path: str | os.PathLike[str],
    manifest_fields: Mapping[str, Any],
    members: Mapping[str, bytes],
    overwrite: bool = False,
) -> Bundle:
    """Write a bundle: same fields and members, same bytes. It is verified as a reader would before the file appears.

    Parameters
    ----------
    path : ends in ``.photonstep``; its folder exists
    manifest_fields : the manifest as plain JSON values, without the fields that are computed here: ``format``,
        ``format_version`` and ``members``
    members : content by member name, without ``manifest.json``
    overwrite : replace an existing file; False refuses

    Returns
    -------
    the bundle, as `Bundle.load` would return it

    Raises
    ------
    BundleError : ``load`` would refuse the bundle, the file exists, or it cannot be written
    """
    target = Path(path)
    if target.suffix != SUFFIX:
        raise BundleError(
            f"{target.name} does not end in {SUFFIX}; expected a name such as base{SUFFIX}; rename the output"
        )
    if os.path.lexists(target) and not overwrite:
        raise BundleError(f"{target} exists; expected a new name; choose another one or pass overwrite=True")
    manifest = _complete_manifest(manifest_fields, members, target.name)
    content = pack({**members, MANIFEST_MEMBER: manifest.to_json()})
    bundle = Bundle.from_bytes(content, target)
    publish(content, target, overwrite)
    return bundle


def _read_file(path: str | os.PathLike[str]) -> bytes:
    """Return the whole file, after its kind and size were checked."""
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"{path} is not a regular file; expected a {SUFFIX} file; check the path")
        if status.st_size > MAX_FILE_BYTES:
            raise BundleError(
                f"{path} is {status.st_size} bytes; expected at most {MAX_FILE_BYTES}; this is not a bundle"
            )
        with Path(path).open("rb") as stream:
            content = stream.read(status.st_size + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise BundleError(f"{path} cannot be read: {error}; expected a {SUFFIX} file; check the path") from error
    if len(content) != status.st_size:
        raise BundleError(
            f"{path} changed while it was read: {len(content)} bytes, expected {status.st_size}; load it again"
        )
    return content


def _verify_hashes(manifest: Manifest, members: Mapping[str, memoryview], where: str) -> None:
    listed = {record.name: record for record in manifest.members}
    for name in members:
        if name != MANIFEST_MEMBER and name not in listed:
            raise BundleError(f"{where}: member {name!r} is not listed in the manifest; do not trust this file")
    for name, record in listed.items():
        if name not in members:
            raise BundleError(f"{where}: member {name!r} is listed in the manifest but missing; fetch the bundle again")
        if len(members[name]) != record.size_bytes:
            raise BundleError(
                f"{where}: member {name!r} has {len(members[name])} bytes; the manifest says {record.size_bytes}; "
                f"fetch the bundle again"
            )
        digest = hashlib.sha256(members[name]).hexdigest()
        if digest != record.sha256:
            raise BundleError(
                f"{where}: member {name!r} has SHA-256 {digest}; the manifest says {record.sha256}; "
                "fetch the bundle again"
            )


def _verify_contents(manifest: Manifest, members: Mapping[str, memoryview], where: str) -> None:
    graphs: dict[str, OnnxSummary] = {}
    for name, content in members.items():
        place = f"{where}: member {name!r}"
        if name.endswith(".onnx"):
            graphs[name] = scan_onnx(content, place)
        elif name.endswith(".png"):
            _verify_png(content, place)
        elif name.endswith((".json", ".md", ".txt")) and name != MANIFEST_MEMBER:
            _verify_text(content, place, is_json=name.endswith(".json"))
    model = manifest.model
    for network in manifest.networks:
        _verify_graph(network, graphs, model.input_names, model.output_name, where)
    for whole in manifest.frame_graphs:
        _verify_graph(whole, graphs, FRAME_INPUTS, FRAME_OUTPUT, where)
    if manifest.test_frame is not None:
        for array in (manifest.test_frame.input, manifest.test_frame.expected):
            if len(members[array.member]) != array.size_bytes:
                raise BundleError(
                    f"{where}: member {array.member!r} has {len(members[array.member])} bytes; expected "
                    f"{array.size_bytes} for {array.shape} {array.dtype}; export the bundle again"
                )


def _verify_graph(
    record: NetworkRecord | FrameGraph,
    graphs: Mapping[str, OnnxSummary],
    inputs: tuple[str, ...],
    output: str,
    where: str,
) -> None:
    graph = graphs[record.member]
    found, expected = (graph.opset, graph.inputs, graph.outputs), (record.opset, inputs, (output,))
    for what, got, wanted in zip(("opset", "inputs", "outputs"), found, expected, strict=True):
        if got != wanted:
            raise BundleError(
                f"{where}: member {record.member!r}: its graph has {what} {got!s:.200}; expected {wanted}; export the "
                "bundle again"
            )


def _verify_text(content: memoryview, place: str, *, is_json: bool) -> None:
    if len(content) > MAX_TEXT_BYTES:
        raise BundleError(f"{place} is {len(content)} bytes; expected at most {MAX_TEXT_BYTES} of text; shorten it")
    if is_json:
        parse_json(bytes(content), place)
        return
    try:
        text = str(content, "utf-8")
    except UnicodeDecodeError as error:
        problem = f"{error.reason} at byte {error.start}"
    else:
        problem = "it holds NUL characters" if "\0" in text else ""
    if problem:
        raise BundleError(f"{place} is not text: {problem}; expected UTF-8; export the bundle again")


def _verify_png(content: memoryview, place: str) -> None:
    start, end = bytes(content[: len(_PNG_START)]), bytes(content[-len(_PNG_END) :])
    if start != _PNG_START or end != _PNG_END:
        raise BundleError(
            f"{place} is not a whole PNG: begins with {start!r}; expected {_PNG_START!r}; export it again"
        )


def _complete_manifest(fields: Mapping[str, Any], members: Mapping[str, bytes], where: str) -> Manifest:
    for name in _COMPUTED:
        if name in fields:
            raise BundleError(
                f"{where}: manifest field {name!r} is given; expected it to be computed here; leave it out"
            )
    for name, content in members.items():
        if not isinstance(content, bytes) or name == MANIFEST_MEMBER:
            raise BundleError(
                f"{where}: member {name!r} is {type(content).__name__}; expected bytes, and {MANIFEST_MEMBER} only as "
                f"manifest_fields; convert or leave it out"
            )
    records = [
        {"name": name, "size_bytes": len(members[name]), "sha256": hashlib.sha256(members[name]).hexdigest()}
        for name in sorted(members)
    ]
    complete = {"format": FORMAT, "format_version": FORMAT_VERSION, **fields, "members": records}
    try:
        content = json.dumps(complete, allow_nan=False).encode("ascii")
    except (TypeError, ValueError) as error:
        raise BundleError(
            f"{where}: manifest_fields are not JSON values: {error}; convert them to plain numbers and text"
        ) from None
    return parse_manifest(content, where)


def publish(content: bytes, target: Path, overwrite: bool) -> None:
    """Put a file in place in one step: readers see the old file, or none, or the whole new one.

    Raises
    ------
    BundleError : the file exists and ``overwrite`` is False, or it cannot be written
    """
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            with temporary.open("xb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            if overwrite:
                temporary.replace(target)
            else:
                _rename_new(temporary, target)
            _sync_folder(target.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except FileExistsError:
        raise BundleError(f"{target} exists; expected a new name; choose another one or pass overwrite=True") from None
    except OSError as error:
        raise BundleError(f"{target} cannot be written: {error}; check the folder and the free space") from error


def _rename_new(temporary: Path, target: Path) -> None:
    """Rename, failing if the target appeared meanwhile."""
    try:
        os.link(temporary, target)  # unlike rename, never replaces
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(target):
            raise FileExistsError(target) from None
        temporary.replace(target)


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a power cut, where the system lets a folder be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
