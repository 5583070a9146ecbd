"""A recorded stand-in for a GPU: the device layer's protocol on host memory, its kernels run by the fiber shim.

It keeps a list of every call. Work given to it while a graph is captured runs when the graph is launched. Device memory
lies between sentinels, which `FiberDevice.check` and freeing verify.
"""

import ctypes
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from photonstep.kernels.arguments import SOURCES
from photonstep.kernels.grids import THREADS
from photonstep.runtime.backends.cuda_device import DeviceMemoryError
from photonstep.runtime.errors import BackendError

SHIM = Path(__file__).resolve().parent / "fiber_shim"
GUARD = 256
SENTINEL = 0xA5
FLAGS = ("-O2", "-std=c++17", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-shared")


@cache
def shim():
    """The kernels under the emulation; compiled once per run of the tests."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("there is no C++ compiler, which the emulation of CUDA kernels is built with")
    folder = tempfile.mkdtemp(prefix="photonstep-fibers-")
    out = Path(folder) / "kernels.so"
    command = [compiler, *FLAGS, f"-I{SHIM}", f"-I{SOURCES}", str(SHIM / "main.cpp"), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    library = ctypes.CDLL(str(out))
    shutil.rmtree(folder)  # it is mapped; nothing is left behind
    library.run.restype = ctypes.c_char_p
    return library


class HostMemory:
    def __init__(self, device, size, *, pinned):
        self.size, self.pinned = size, pinned
        self._device = device
        self._bytes = np.full(size + 2 * GUARD, SENTINEL, np.uint8)
        start = -self._bytes.ctypes.data % GUARD or GUARD
        self.array = self._bytes[start : start + size]
        self.address = self.array.ctypes.data
        self.open = True

    def intact(self):
        start = self.address - self._bytes.ctypes.data
        return bool((self._bytes[:start] == SENTINEL).all() and (self._bytes[start + self.size :] == SENTINEL).all())

    def close(self):
        if self.open:
            assert self.intact(), f"{self.size} bytes of memory: something was written beyond its ends"
            self.open = False
            self._device.live.remove(self)
            self._device.record.append(("free pinned" if self.pinned else "free", self.size))


class RecordedGraph:
    def __init__(self, device, work):
        self._device, self._work, self.open = device, work, True

    def launch(self):
        assert self.open
        self._device.record.append(("graph launch", len(self._work)))
        self._device.fail_where_asked("graph launch")
        for step in self._work:
            step()

    def close(self):
        if self.open:
            self.open = False
            self._device.record.append(("graph close", len(self._work)))


class CountedEvent:
    def __init__(self, number):
        self.number = number

    def since(self, earlier):
        return float(self.number - earlier.number)


class FiberDevice:
    """``free_bytes`` limits allocations; ``fail(call, message)`` makes a call of that name fail from then on."""

    name, arch = "fibers on a CPU", "sm_00"

    def __init__(self, *, free_bytes=None, reverse=False):
        self.stream = 4711
        self.record, self.live = [], []
        self.free_bytes, self.reverse = free_bytes, reverse
        self.capturing = None
        self._failures = {}
        self.closed = False

    # --- what tests ask ---

    def fail(self, call, message="CUDA_ERROR_LAUNCH_FAILED: unspecified launch failure"):
        self._failures[call] = message

    def fail_where_asked(self, call):
        if call in self._failures:
            raise BackendError(f"{call} failed on the GPU: {self._failures[call]}")

    def calls(self, since=0):
        return [entry[0] for entry in self.record[since:]]

    @property
    def used_bytes(self):
        return sum(memory.size for memory in self.live if not memory.pinned)

    def check(self):
        assert all(memory.intact() for memory in self.live)

    def memory_at(self, address):
        return next(m for m in self.live if m.address <= address < m.address + m.size)

    # --- the protocol ---

    def allocate(self, size):
        self.record.append(("allocate", size))
        if self.free_bytes is not None and self.used_bytes + size > self.free_bytes:
            raise DeviceMemoryError(f"allocating {size} bytes: the GPU has not enough free memory")
        return self._memory(size, pinned=False)

    def allocate_pinned(self, size):
        self.record.append(("allocate pinned", size))
        return self._memory(size, pinned=True)

    def _memory(self, size, *, pinned):
        assert size > 0
        memory = HostMemory(self, size, pinned=pinned)
        self.live.append(memory)
        return memory

    def upload(self, to, source):
        assert (to.pinned, source.pinned) == (False, True)
        self._copy("upload", to, source)

    def download(self, to, source):
        assert (to.pinned, source.pinned) == (True, False)
        self._copy("download", to, source)

    def _copy(self, kind, to, source):
        assert to.size == source.size and to.open and source.open

        def run():
            to.array[:] = source.array

        self.put((kind, to.size), run)

    def launch(self, kernel, grid, arguments):
        self.fail_where_asked(kernel)
        function = ctypes.cast(getattr(shim(), kernel), ctypes.c_void_p)

        def run():
            wrong = shim().run(function, ctypes.c_void_p(arguments), *grid, THREADS, int(self.reverse))
            assert wrong is None, f"{kernel}: {wrong.decode()}"

        self.put((kernel, grid), run)

    def put(self, entry, run):
        """On the stream: at once, or into the graph that is being captured."""
        if self.capturing is None:
            self.record.append(entry)
            run()
        else:
            self.capturing.append(run)
            self.record.append(("captured", *entry))

    def capture(self, work):
        assert self.capturing is None
        self.record.append(("capture",))
        self.fail_where_asked("capture")
        self.capturing = []
        try:
            work()
            return RecordedGraph(self, self.capturing)
        finally:
            self.capturing = None

    def event(self):
        self.record.append(("event",))
        return CountedEvent(len(self.record))

    def synchronise(self):
        assert self.capturing is None
        self.record.append(("synchronise",))
        self.fail_where_asked("synchronise")

    def close(self):
        self.record.append(("close",))
        self.closed = True
