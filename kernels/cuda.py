"""The kernels compiled for a GPU: at first use with NVRTC, or ahead of time with nvcc; kept in the local cache.

    cubin = cuda.binary("sm_86")                             # from the cache, or compiled now
    python -m photonstep.kernels.cuda --arch sm_86 --nvcc    # ahead of time; the machine then needs no compiler

Neither compiler needs a GPU or a driver. Multiply-adds are not fused, so that a GPU rounds as a CPU does. The packages
come with the extra ``cuda``; nothing is imported before it is needed.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, Final

from .arguments import SOURCES
from .disk_cache import VARIABLE, cache_folder, sealed, unsealed, write_whole
from .native import KernelError

ARCHITECTURES: Final = ("sm_75", "sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_100", "sm_120")
MAIN: Final = "kernels.cu"
FLAGS: Final = ("--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true", "--std=c++17")
INSTALL: Final = "python -m pip install 'photonstep[cuda]'"


def sources() -> dict[str, bytes]:
    """The kernels' sources by file name: headers and ``.cu`` files."""
    return {path.name: path.read_bytes() for path in sorted(SOURCES.glob("*.cu*"))}


@cache
def digest() -> str:
    """SHA-256 over what decides a binary beside architecture and compiler: sources and flags."""
    together = hashlib.sha256(" ".join(FLAGS).encode())
    for name, content in sources().items():
        together.update(f"{name} {len(content)} ".encode() + content)
    return together.hexdigest()[:24]


def nvrtc_version() -> str:
    """As "13.5".

    Raises
    ------
    KernelError : NVRTC or its bindings are not installed
    """
    major, minor = _checked(_nvrtc().nvrtcVersion())
    return f"{major}.{minor}"


def unavailable() -> str | None:
    """Why kernels cannot be compiled at first use here, or None."""
    try:
        nvrtc_version()
    except KernelError as error:
        return str(error)
    return None


def compile_for(arch: str) -> bytes:
    """Compile all kernels with NVRTC, without the cache.

    Parameters
    ----------
    arch : such as "sm_86"

    Returns
    -------
    the cubin

    Raises
    ------
    KernelError : NVRTC is not installed, does not know the architecture, or refuses the sources
    """
    _check_arch(arch)
    nvrtc = _nvrtc()
    headers = {name: content for name, content in sources().items() if name != MAIN}
    (program,) = _checked(
        nvrtc.nvrtcCreateProgram(
            (SOURCES / MAIN).read_bytes(), MAIN.encode(), len(headers), list(headers.values()),
            [name.encode() for name in headers],
        )
    )  # fmt: skip
    try:
        options = [f"--gpu-architecture={arch}".encode(), *(flag.encode() for flag in FLAGS)]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if int(status):
            raise KernelError(f"NVRTC {nvrtc_version()} refuses the kernels for {arch}: {_log(nvrtc, program)}")
        (size,) = _checked(nvrtc.nvrtcGetCUBINSize(program))
        cubin = b" " * size
        _checked(nvrtc.nvrtcGetCUBIN(program, cubin))
        return bytes(cubin)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def compile_with_nvcc(arch: str) -> bytes:
    """Compile all kernels with the nvcc on the path. Returns and raises as `compile_for`."""
    _check_arch(arch)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "kernels.cubin"
        command = [*FLAGS, "-cubin", f"-arch={arch}", "-o", str(out), str(SOURCES / MAIN)]
        done = subprocess.run([_nvcc(), *command], capture_output=True, text=True, check=False)
        if done.returncode or not out.exists():
            raise KernelError(f"nvcc refuses the kernels for {arch}: {done.stderr.strip()[-2000:]}")
        return out.read_bytes()


def binary(arch: str) -> bytes:
    """The cubin of an architecture: from the cache, or compiled with NVRTC and put there.

    A binary of the same sources that nvcc made ahead of time serves as well.

    Raises
    ------
    KernelError : none is in the cache, and NVRTC cannot make one; the message names the remedy
    """
    _check_arch(arch)
    for path in sorted(_folder().glob(f"{digest()}-{arch}-*.cubin")):
        found = unsealed(path)
        if found is not None:
            return found
    cubin = compile_for(arch)
    try:
        write_whole(_path(arch, f"nvrtc{nvrtc_version()}"), sealed(cubin))
    except OSError:
        return cubin  # a folder that cannot be written costs a second at the next start, no frame
    return cubin


def ahead_of_time(arch: str, *, nvcc: bool) -> Path:
    """Compile now and put the result where `binary` finds it.

    Raises
    ------
    KernelError : the compiler is absent or refuses, or the cache cannot be written
    """
    compiler = f"nvcc{_nvcc_version()}" if nvcc else f"nvrtc{nvrtc_version()}"
    cubin = compile_with_nvcc(arch) if nvcc else compile_for(arch)
    try:
        return write_whole(_path(arch, compiler), sealed(cubin))
    except OSError as error:
        raise KernelError(f"the kernel cache cannot be written: {error}; name another folder in {VARIABLE}") from error


def _folder() -> Path:
    return cache_folder() / "kernels"


def _path(arch: str, compiler: str) -> Path:
    return _folder() / f"{digest()}-{arch}-{compiler}.cubin"


def _check_arch(arch: str) -> None:
    if not re.fullmatch(r"sm_\d{2,3}[af]?", arch):
        raise KernelError(f"architecture is {arch!r}; expected one such as sm_86")


def _nvrtc() -> Any:
    try:
        from cuda.bindings import nvrtc

        _checked(nvrtc.nvrtcVersion())  # the bindings look for the library at the first call
    except Exception as error:  # ImportError, or one of several that say that the library is not found
        raise KernelError(f"NVRTC cannot be loaded ({error}); install it with: {INSTALL}") from error
    return nvrtc


def _checked(result: Any) -> Any:
    status, *values = result
    if int(status):
        raise KernelError(f"NVRTC failed: {status!r}; install it again with: {INSTALL}")
    return values[0] if len(values) == 1 and isinstance(values[0], tuple) else values


def _log(nvrtc: Any, program: Any) -> str:
    (size,) = _checked(nvrtc.nvrtcGetProgramLogSize(program))
    log = b" " * size
    _checked(nvrtc.nvrtcGetProgramLog(program, log))
    return str(log.rstrip(b"\0 \n"), errors="replace")[:2000]


def _nvcc() -> str:
    found = shutil.which("nvcc")
    if found is None:
        raise KernelError("there is no nvcc on the path; install NVIDIA's CUDA toolkit, or leave out --nvcc")
    return found


def _nvcc_version() -> str:
    told = subprocess.run([_nvcc(), "--version"], capture_output=True, text=True, check=False).stdout
    match = re.search(r"release (\d+\.\d+)", told)
    return match[1] if match else "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description="compile the GPU kernels into the local cache")
    parser.add_argument("--arch", nargs="+", default=list(ARCHITECTURES), metavar="sm_86")
    parser.add_argument("--nvcc", action="store_true", help="with nvcc in place of NVRTC")
    arguments = parser.parse_args()
    for arch in arguments.arch:
        path = ahead_of_time(arch, nvcc=arguments.nvcc)
        print(f"{arch}: {path.stat().st_size} bytes in {path}")


if __name__ == "__main__":
    main()
