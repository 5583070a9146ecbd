"""What this machine is, for reports that must be comparable: processor, instruction sets, versions, commit."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from photonstep import __version__

# Instruction sets that decide which precisions run fast.
CPU_FEATURES = (
    "avx2",
    "f16c",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx_vnni",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "bf16",
)
PACKAGES = (
    "numpy",
    "openvino",
    "onnxruntime",
    "onnxruntime-gpu",
    "pydantic",
    "tifffile",
    "pillow",
    "imagecodecs",
    "torch",
)


def package_version(name: str) -> str | None:
    """Return an installed package's version without importing it, None when it is absent."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    """Return the processor's name."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def cpu_features() -> tuple[str, ...]:
    """Return the instruction sets among `CPU_FEATURES` that the processor has; empty where the system does not tell."""
    flags = set((_cpuinfo("flags") or _cpuinfo("Features") or "").split())
    return tuple(name for name in CPU_FEATURES if name in flags)


def cpu_count() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def commit() -> str | None:
    """Return the git commit of the source checkout that runs, with "+changes" when files differ; None otherwise."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        return f"{head}+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else head
    except (OSError, subprocess.SubprocessError):  # no git, or no commit yet
        return None


def describe() -> dict[str, Any]:
    """Return the machine as JSON-able facts."""
    return {
        "cpu": cpu_model(),
        "cpu_features": list(cpu_features()),
        "cpu_count": cpu_count(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "photonstep": __version__,
        "commit": commit(),
        "packages": {name: version for name in PACKAGES if (version := package_version(name)) is not None},
    }


def _cpuinfo(key: str) -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next(
        (value.strip() for name, _, value in (line.partition(":") for line in lines) if name.strip() == key), None
    )


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
