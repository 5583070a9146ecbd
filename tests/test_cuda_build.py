"""The kernels for a GPU compile for every architecture without one, and the binaries are kept."""

import ctypes
import shutil
import sys

import pytest
from device_runs import STRUCTURES
from fiber_device import shim

from photonstep.kernels import cuda, grids
from photonstep.kernels.arguments import structure
from photonstep.kernels.native import KernelError


def nvrtc_or_skip():
    cause = cuda.unavailable()
    if cause:
        pytest.skip(cause)


@pytest.mark.parametrize("arch", cuda.ARCHITECTURES)
def test_every_kernel_compiles_for_every_architecture(arch):
    nvrtc_or_skip()
    cubin = cuda.compile_for(arch)
    assert cubin[:4] == b"\x7fELF"
    missing = [name for name in grids.KERNELS if b".text." + name.encode() + b"\0" not in cubin]
    assert missing == []


def test_every_launched_kernel_is_named_and_every_named_kernel_launched():
    sizes = {"height": 8, "width": 8, "block": 2, "band": 4, "step": 1, "count": 5, "ranks": 1}
    launched = set()
    for op, kind in STRUCTURES.items():
        known = {name for name, _ in structure(kind)._fields_}
        arguments = structure(kind)(**{name: value for name, value in sizes.items() if name in known})
        launched |= {launch.kernel for launch in grids.launches(op, arguments)}
    assert set(STRUCTURES) == set(grids.OPERATIONS)
    assert launched == set(grids.KERNELS)


def test_binaries_are_kept_and_damaged_ones_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv(cuda.VARIABLE, str(tmp_path))
    made = []
    monkeypatch.setattr(cuda, "compile_for", lambda arch: made.append(arch) or b"cubin " + arch.encode())
    monkeypatch.setattr(cuda, "nvrtc_version", lambda: "13.5")
    assert cuda.binary("sm_86") == cuda.binary("sm_86") == b"cubin sm_86"
    assert cuda.binary("sm_89") == b"cubin sm_89"
    assert made == ["sm_86", "sm_89"]
    (path,) = (tmp_path / "kernels").glob("*sm_86*")
    path.write_bytes(path.read_bytes()[:-1])
    assert cuda.binary("sm_86") == b"cubin sm_86"
    assert made == ["sm_86", "sm_89", "sm_86"]
    monkeypatch.setattr(cuda, "digest", lambda: "other sources")
    cuda.binary("sm_86")
    assert len(made) == 4


def test_a_cache_that_cannot_be_written_costs_no_frame(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    monkeypatch.setenv(cuda.VARIABLE, str(blocked))
    monkeypatch.setattr(cuda, "compile_for", lambda arch: b"cubin")
    monkeypatch.setattr(cuda, "nvrtc_version", lambda: "13.5")
    assert cuda.binary("sm_86") == b"cubin"
    with pytest.raises(KernelError, match="name another folder in PHOTONSTEP_CACHE"):
        cuda.ahead_of_time("sm_86", nvcc=False)


def test_a_binary_made_ahead_of_time_is_found(tmp_path, monkeypatch):
    if shutil.which("nvcc") is None:
        pytest.skip("there is no nvcc on the path")
    monkeypatch.setenv(cuda.VARIABLE, str(tmp_path))
    monkeypatch.setattr(cuda, "compile_for", lambda arch: pytest.fail("compiled again"))
    path = cuda.ahead_of_time("sm_86", nvcc=True)
    assert path.is_relative_to(tmp_path)
    assert cuda.binary("sm_86")[:4] == b"\x7fELF"


@pytest.mark.parametrize("arch", ["86", "sm_", "compute_86", "sm_86; rm"])
def test_what_is_no_architecture_is_refused(arch):
    with pytest.raises(KernelError, match="expected one such as sm_86"):
        cuda.binary(arch)


def test_an_unknown_architecture_is_refused_in_our_words():
    nvrtc_or_skip()
    with pytest.raises(KernelError, match=r"NVRTC .* refuses the kernels for sm_11"):
        cuda.compile_for("sm_11")


def test_a_missing_compiler_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    assert "photonstep[cuda]" in cuda.unavailable()


# --- the emulation itself ---


@pytest.mark.parametrize("reverse", [0, 1])
def test_the_emulation_shows_what_is_wrong(reverse):
    def run(name):
        out = ctypes.c_int(0)
        function = ctypes.cast(getattr(shim(), name), ctypes.c_void_p)
        wrong = shim().run(function, ctypes.byref(out), 1, 1, grids.THREADS, reverse)
        return wrong, out.value

    assert b"not reached by all" in run("wrong_barrier")[0]
    assert b"not reached by all" in run("wrong_shuffle")[0]
    assert run("wrong_race")[1] < grids.THREADS  # 256 where a barrier stood in between
    assert run("wrong_memory")[1] < 0  # rubbish, not a count
