"""The native library among processes, threads and environments: fork, many callers, absence, wrong builds."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import native_library
import numpy as np
import pytest
from kernel_runs import random_image

from photonstep.kernels import arguments, native, ops

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 60  # a watchdog, never a measurement

needs_native = pytest.mark.skipif(native.library() is None, reason=f"native kernels {native.cause()}")


def run_python(code, *, folder=ROOT, **environment):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=folder, capture_output=True, text=True, timeout=LIMIT_S,
        check=False, env={**os.environ, native.VARIABLE: "auto", **environment},
    )  # fmt: skip


# --- fork ---

FORK = """\
import os, signal, warnings
import numpy as np
from photonstep.kernels import native, ops

warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and later warn of any fork beside threads
signal.alarm(20)  # ends a process that hangs, children included
lib = native.library()
lib.set_threads(2)
frame = np.random.default_rng(0).integers(0, 4096, (1500, 1500)).astype(np.uint16)
expected = ops.stabilise_with(frame, 1.5, 0.25)

def check(times):
    for _ in range(times):
        assert np.array_equal(ops.stabilise_with(frame, 1.5, 0.25), expected)
"""


@needs_native
def test_a_forked_child_computes_with_threads_of_its_own():
    """The parent's threads sleep in the child's copy of the crew; the child must not wait for them, nor its child."""
    code = FORK + """
check(3)
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    check(8)
    assert lib.threads == 2
    grandchild = os.fork()
    if grandchild == 0:
        signal.alarm(20)
        check(8)
        os._exit(0)
    os._exit(os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]))
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
check(3)
print("finished")
"""  # fmt: skip
    done = run_python(code)
    assert (done.returncode, done.stdout) == (0, "finished\n"), done.stderr


@needs_native
def test_fork_while_another_thread_computes():
    """The fork falls at any moment of a job; what is locked then belongs to a thread that the child does not have."""
    code = FORK + """
import threading
stop = threading.Event()
def work():
    while not stop.is_set():
        ops.stabilise_with(frame, 1.5, 0.25)
worker = threading.Thread(target=work)
worker.start()
codes = []
for _ in range(10):
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        check(3)
        os._exit(0)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
stop.set()
worker.join()
print(codes)
"""  # fmt: skip
    done = run_python(code)
    assert (done.returncode, done.stdout) == (0, f"{[0] * 10}\n"), done.stderr


# --- threads ---


@needs_native
def test_large_images_are_shared_among_threads_and_small_ones_are_not():
    """Counted by the threads that the process has: the crew starts with the first image that is worth it."""
    if not Path("/proc/self/task").is_dir():
        pytest.skip("/proc/self/task, where Linux lists a process's threads, is not here")
    code = """
import os
import numpy as np
from photonstep.kernels import native, ops

def threads():
    return len(os.listdir("/proc/self/task"))

lib, small, large = native.library(), np.zeros((512, 512), np.uint16), np.zeros((2048, 2048), np.uint16)
before, counts = threads(), []
lib.set_threads(3)
for frame in (small, large, small, large):
    ops.stabilise_with(frame, 1.0, 0.0)
    counts.append(threads() - before)
lib.set_threads(1)
ops.stabilise_with(large, 1.0, 0.0)
print(counts, threads() - before)
"""
    done = run_python(code)
    assert (done.returncode, done.stdout) == (0, "[0, 2, 2, 2] 2\n"), done.stderr


@needs_native
def test_many_callers_at_once_get_what_one_gets():
    """All kernels share one crew; a caller that finds it busy does its rows alone. A deadlock ends by the watchdog."""
    lib = native.library()
    before = lib.threads
    frames = [random_image((1300 + i, 1500), "uint16", seed=i) for i in range(3)]

    def compute(i):
        frame = frames[i % 3]
        z = ops.stabilise_with(frame, 1.84, -180.0)
        counts = np.empty_like(frame)
        light = ops.write_counts(z, counts, adu_per_e=2.0)
        return z.tobytes(), counts.tobytes(), light, ops.content_key(frame), ops.residual_statistics(z, z, span=0.9)

    lib.set_threads(1)
    expected = [compute(i) for i in range(3)]
    lib.set_threads(3)
    pool = ThreadPoolExecutor(4)
    try:
        for job, i in [(pool.submit(compute, i), i) for i in range(12)]:
            assert job.result(timeout=LIMIT_S) == expected[i % 3]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        lib.set_threads(before)


@needs_native
@pytest.mark.parametrize(("asked", "given"), [(1, 1), (3, 3), (0, 1), (-2, 1)])
def test_threads_are_at_least_one(asked, given):
    lib = native.library()
    before = lib.threads
    try:
        lib.set_threads(asked)
        assert lib.threads == given
        assert f"up to {given} threads" in native.describe()
    finally:
        lib.set_threads(before)


@needs_native
def test_a_process_ends_while_the_crew_sleeps_or_works():
    code = """
import threading
import numpy as np
from photonstep.kernels import native, ops
native.library().set_threads(2)
frame = np.zeros((2000, 2000), np.uint16)
def work():
    while True:
        ops.stabilise_with(frame, 1.0, 0.0)
ops.stabilise_with(frame, 1.0, 0.0)
threading.Thread(target=work, daemon=True).start()
print("end")
"""
    done = run_python(code)
    assert (done.returncode, done.stdout) == (0, "end\n"), done.stderr


# --- what is chosen ---

ASK = """
import numpy as np
from photonstep.kernels import native, ops
try:
    print(native.describe())
    print(ops.stabilise_with(np.full((2, 2), 4, np.uint8), 4.0, 0.0)[0, 0])
except native.KernelError as error:
    print(type(error).__name__, error)
"""


@needs_native
@pytest.mark.parametrize("choice", ["auto", "native"])
def test_the_library_is_used_where_it_is(choice):
    assert run_python(ASK, PHOTONSTEP_KERNELS=choice).stdout.startswith("native C++ (")


def test_the_library_can_be_switched_off():
    done = run_python(ASK, PHOTONSTEP_KERNELS="reference")
    cause = "switched off by PHOTONSTEP_KERNELS=reference"
    assert done.stdout == f"NumPy reference (native kernels {cause})\n4.0\n", done.stderr


def test_an_unknown_choice_is_an_error():
    done = run_python(ASK, PHOTONSTEP_KERNELS="garbage")
    said = "KernelError PHOTONSTEP_KERNELS is 'garbage'; choose one of auto, native, reference\n"
    assert done.stdout == said, done.stderr


@pytest.fixture
def forgotten(monkeypatch):
    """As in a process that has not looked for the library yet."""
    monkeypatch.setattr(native, "_state", [])
    monkeypatch.delenv(native.VARIABLE, raising=False)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch, forgotten):
    """The package in a folder where nothing was built."""
    monkeypatch.setattr(native, "__file__", str(tmp_path / "native.py"))
    return tmp_path


def test_without_a_library_the_reference_runs_and_says_so(elsewhere, monkeypatch):
    assert native.library() is None
    assert native.describe().startswith("NumPy reference (native kernels not built: there was no C++ compiler")
    np.testing.assert_array_equal(ops.stabilise_with(np.full((1, 2), 4, np.uint8), 4.0, 0.0), [[4.0, 4.0]])
    monkeypatch.setattr(native, "_state", [])
    monkeypatch.setenv(native.VARIABLE, "native")
    with pytest.raises(native.KernelError, match="PHOTONSTEP_KERNELS=native, but the native kernels are not built"):
        native.library()


def test_a_checkout_where_nothing_was_built_says_how_to_build_it(tmp_path, monkeypatch, forgotten):
    monkeypatch.setattr(native, "__file__", str(tmp_path / "kernels" / "native.py"))
    (tmp_path / "setup.py").touch()
    assert native.library() is None
    assert f"not built in the source checkout {tmp_path}: run python setup.py build_ext --inplace" in native.cause()
    assert "compiler" not in native.cause()


def test_a_file_that_is_no_library_is_named(elsewhere):
    native_library.library_file(elsewhere).parent.mkdir()
    (elsewhere / native_library.library_file().name).write_bytes(b"not a library")
    assert native.library() is None
    assert native.cause().startswith("cannot be loaded: ")
    assert native_library.library_file().name in native.cause()


def test_the_library_of_another_interpreter_is_left_alone(elsewhere):
    for name in ("_native.cpython-39-x86_64-linux-gnu.so", "_native.cp39-win_amd64.pyd", "_native-notes.txt"):
        (elsewhere / name).write_bytes(b"not ours")
    assert native.find() is None
    ours = elsewhere / native_library.library_file().name
    ours.write_bytes(b"ours")
    assert native.find() == ours


@needs_native
def test_a_library_of_other_sources_is_refused(forgotten, monkeypatch):
    """A structure that is longer in the header than in the library: what it was built from is not what stands here."""
    changed = dict(arguments.structures())
    kind = changed["Normal"]
    changed["Normal"] = type("Normal", (kind,), {"_fields_": [("added", arguments.ctypes.c_int64)]})
    monkeypatch.setattr(native, "structures", lambda: changed)
    assert native.library() is None
    assert f"bytes for Normal, arguments.cuh {arguments.ctypes.sizeof(changed['Normal'])}" in native.cause()
    assert "install the package again" in native.describe()


@needs_native
def test_a_structure_that_the_library_does_not_know_is_refused(forgotten, monkeypatch):
    monkeypatch.setattr(native, "structures", lambda: {"Unknown": arguments.structure("Normal")})
    assert native.library() is None
    assert "has -1 bytes for Unknown" in native.cause()


def test_every_field_of_the_header_is_mirrored():
    """Names in order, and sizes as the C++ compiler lays them out: checked by the library for every structure."""
    assert [name for name, _ in arguments.structure("Normal")._fields_] == [
        "height", "width", "row", "key_low", "key_high", "origin_y", "origin_x", "noise",
    ]  # fmt: skip
    assert arguments.structure("OrderStatistics")(ranks=3).rank[7] == 0
    assert len(arguments.structures()) >= 12


# --- building ---


@pytest.fixture
def checkout(tmp_path):
    """What it takes to build and to import the kernels, with no library."""
    ignored = shutil.ignore_patterns("_native*", "__pycache__")
    for folder in ("kernels", "photonstep"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("compiler", ["/bin/false", "/no/such/compiler"])
def test_the_install_goes_on_without_a_compiler(checkout, compiler):
    environment = {**os.environ, "CC": compiler, "CXX": compiler}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", "lib", "--build-temp", "temp"]
    done = subprocess.run(
        command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    assert list(checkout.rglob("_native*")) == []
    run = run_python(ASK, folder=checkout)
    assert run.stdout.startswith("NumPy reference (native kernels not built"), run.stderr


def test_tests_go_on_without_a_compiler_and_leave_nothing_behind(checkout):
    before = sorted(checkout.rglob("*"))
    said = native_library.build(checkout, {**os.environ, "CC": "/bin/false", "CXX": "/bin/false"})
    assert "/bin/false" in said
    assert sorted(checkout.rglob("*")) == before


def test_the_report_of_a_test_run_says_what_it_tested(monkeypatch):
    import conftest

    monkeypatch.setattr(conftest, "BUILD_FAILURE", "")
    assert conftest.pytest_report_header() == f"kernels: {native.describe()}"
    monkeypatch.setattr(conftest, "BUILD_FAILURE", "no c++")
    assert conftest.pytest_report_header().endswith("; a build from the sources as they are now failed: no c++")
    monkeypatch.setattr(native, "_state", [])
    monkeypatch.setenv(native.VARIABLE, "garbage")
    assert conftest.pytest_report_header().startswith("kernels: PHOTONSTEP_KERNELS is 'garbage'")


@pytest.fixture
def hasty_compiler(tmp_path_factory):
    """An environment whose compiler is this machine's, told last to optimise nothing: seconds instead of many."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None or not Path("/bin/sh").exists():
        pytest.skip("there is no c++ and /bin/sh on the path to build with")
    wrapper = tmp_path_factory.mktemp("compiler") / "c++"
    wrapper.write_text(f'#!/bin/sh\nexec {compiler} "$@" -O0\n')
    wrapper.chmod(0o755)
    return {**os.environ, "CXX": str(wrapper), "CC": str(wrapper)}


@needs_native
def test_tests_build_what_is_stale_and_leave_nothing_else(checkout, hasty_compiler):
    before = sorted(checkout.rglob("*"))
    library = native_library.library_file(checkout)
    assert native_library.is_stale(checkout)
    with ThreadPoolExecutor(2) as pool:  # two test runs that begin at once
        said = list(pool.map(lambda _: native_library.build(checkout, hasty_compiler), range(2)))
    assert said == ["", ""]
    assert sorted(checkout.rglob("*")) == sorted([*before, library])
    assert run_python(ASK, folder=checkout).stdout.startswith("native C++ (")
    assert not native_library.is_stale(checkout)
    written_ns = library.stat().st_mtime_ns
    assert native_library.build(checkout, {"PATH": "/nowhere"}) == ""  # nothing to do, so no compiler is missed
    source = checkout / "kernels" / "csrc" / "counts.cuh"
    os.utime(source, ns=(written_ns + 1, written_ns + 1))
    assert native_library.is_stale(checkout)


def test_a_library_of_other_sources_is_not_used(tmp_path, monkeypatch):
    """After an update without a build, or an edit: sizes may agree, and yet the code reads something else."""
    if native.find() is None:
        pytest.skip(f"native kernels are {native.cause()}")
    monkeypatch.setattr(native, "sources_digest", lambda: "0123456789abcdef")
    with pytest.raises(native.KernelError, match=r"0123456789abcdef; build it again"):
        native.Library(native.find())
