"""Builds the native kernels in a source checkout, so that ``python -m pytest`` tests what the sources say."""

import os
import shutil
import subprocess
import sys
import tempfile
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 300
LONGEST_CAUSE = 200


def library_file(root=ROOT):
    """Where this interpreter's build of the library lies in a checkout, whether or not it is there."""
    return root / "kernels" / f"_native{EXTENSION_SUFFIXES[0]}"


def newest_source_ns(root=ROOT):
    """When the youngest of the library's sources was written."""
    return max(path.stat().st_mtime_ns for path in [root / "setup.py", *(root / "kernels" / "csrc").iterdir()])


def is_stale(root=ROOT):
    """Whether the library is absent, or older than one of its sources."""
    library = library_file(root)
    return not library.exists() or library.stat().st_mtime_ns < newest_source_ns(root)


def build(root=ROOT, environment=None):
    """Build the library where it is stale; returns why that failed, or an empty string. Never raises for a compiler.

    It is built in a folder of its own beside its place and renamed: another process sees the old file or the new one.
    """
    if not is_stale(root):
        return ""
    seen_ns = newest_source_ns(root)
    # no dot in the folder's name: `kernels.native.find` does not take it for a library, and git ignores it
    folder = Path(tempfile.mkdtemp(prefix="_native-build-", dir=root / "kernels"))
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", folder / "lib", "--build-temp", folder]
    try:
        done = subprocess.run(
            command, cwd=root, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
        built = list((folder / "lib").rglob(library_file(root).name))
        if not built:
            return _cause(done)
        os.utime(built[0], ns=(seen_ns, seen_ns))  # a source that was changed during the build is newer
        built[0].replace(library_file(root))
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return ""


def _cause(done):
    """The compiler's first error, or the last thing that setup.py said, on one line of a report."""
    lines = done.stderr.strip().splitlines() or [f"setup.py build_ext made no library and returned {done.returncode}"]
    return next((line for line in lines if " error: " in line), lines[-1])[:LONGEST_CAUSE]
