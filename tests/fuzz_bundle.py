"""Fuzz target of the bundle reader: any bytes either load as a verified bundle or are a `BundleError`, nothing else.

    python -m tests.fuzz_bundle -max_total_time=60      # needs atheris (coverage-guided); takes libFuzzer's flags

``tests/test_bundle_fuzz.py`` runs the same three targets on hypothesis' mutations, bounded, without atheris.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from photonstep.runtime.archive import MANIFEST_MEMBER, pack
from photonstep.runtime.bundle import Bundle
from photonstep.runtime.errors import BundleError
from photonstep.runtime.onnx_scan import OnnxSummary, scan_onnx

GOLDEN = Path(__file__).resolve().parent / "golden_bundle" / "tiny.photonstep"


def fuzz_archive(content: bytes) -> Bundle | None:
    """The whole file is hostile. What loads must be what its members and nothing else would be written as."""
    try:
        bundle = Bundle.from_bytes(content, "fuzz.photonstep")
    except BundleError:
        return None
    members = {name: bundle.read(name) for name in bundle.members}
    if pack(members) != content:
        raise RuntimeError("loaded, but the file holds something besides its members")
    listed = {record.name: record.sha256 for record in bundle.manifest.members}
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in members.items() if name != MANIFEST_MEMBER}
    if listed != hashes:
        raise RuntimeError(f"loaded, but the hashes are {hashes} and the manifest says {listed}")
    return bundle


def fuzz_manifest(manifest: bytes) -> Bundle | None:
    """The archive is sound, its manifest is hostile. What loads must survive being written and read again."""
    golden = Bundle.load(GOLDEN)
    members = {name: golden.read(name) for name in golden.members} | {MANIFEST_MEMBER: manifest}
    bundle = fuzz_archive(pack(members))
    if bundle is not None:
        again = fuzz_archive(pack(members | {MANIFEST_MEMBER: bundle.manifest.to_json()}))
        if again is None or again.manifest != bundle.manifest:
            raise RuntimeError("loaded, but the manifest changes when it is written again")
    return bundle


def fuzz_onnx(content: bytes) -> OnnxSummary | None:
    """The network is hostile."""
    try:
        return scan_onnx(content, "fuzz.onnx")
    except BundleError:
        return None


def test_one_input(data: bytes) -> None:
    """libFuzzer's entry: the first byte picks the target."""
    (fuzz_archive, fuzz_manifest, fuzz_onnx)[data[0] % 3 if data else 0](data[1:])


test_one_input.__test__ = False  # type: ignore[attr-defined]  # libFuzzer's name, not pytest's


def seeds(folder: Path) -> None:
    """Write a starting corpus: the golden bundle, its manifest and its network."""
    golden = Bundle.load(GOLDEN)
    compact = json.dumps(json.loads(golden.read(MANIFEST_MEMBER))).encode()
    for index, content in enumerate((GOLDEN.read_bytes(), compact, golden.network("fp32"))):
        (folder / f"seed_{index}").write_bytes(bytes([index]) + content)


def main() -> None:
    import tempfile

    import atheris

    atheris.instrument_all()
    with tempfile.TemporaryDirectory() as corpus:
        seeds(Path(corpus))
        atheris.Setup([*sys.argv, corpus], test_one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
