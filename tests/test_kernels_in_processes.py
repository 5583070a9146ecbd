"""The native library among processes, threads and environments: fork, many callers, absence, wrong builds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from photonstep.kernels import native

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 60  # a watchdog, never a measurement

needs_native = pytest.mark.skipif(native.library() is None, reason=f"native kernels {native.cause()}")


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, env={**os.environ, **environment}, capture_output=True,
        text=True, timeout=LIMIT_S, check=False,
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
