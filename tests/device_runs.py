"""One operation on a device: arrays there, kernels run, arrays back, with sentinels around every output."""

import ctypes

import numpy as np

from photonstep.kernels import grids, native
from photonstep.kernels.arguments import structure

GUARD = 512
SENTINEL = 0x5A
PIXEL_TYPES = {"uint8": 0, "uint16": 1, "float32": 2}
STRUCTURES = {
    "stabilise": "Stabilise", "network_input": "NetworkInput", "sampler_row": "SamplerRow", "normal": "Normal",
    "electrons": "Electrons", "counts": "Counts", "block_means": "BlockMeans", "residual": "Residual",
    "order_statistics": "OrderStatistics", "laplacian": "Laplacian", "preview": "Preview", "content": "Content",
    "window": "Window", "fill": "Fill", "full_pixels": "FullPixels", "range": "Range", "balance": "Balance",
    "fuse": "Fuse", "fused_noise": "FusedNoise", "similarity": "Similarity",
}  # fmt: skip


def put(device, content):
    """Bytes on the device, as memory."""
    memory, pinned = device.allocate(len(content)), device.allocate_pinned(len(content))
    pinned.array[:] = np.frombuffer(content, np.uint8)
    device.upload(memory, pinned)
    device.synchronise()
    pinned.close()
    return memory


def get(device, memory):
    pinned = device.allocate_pinned(memory.size)
    device.download(pinned, memory)
    device.synchronise()
    content = pinned.array.tobytes()
    pinned.close()
    return content


class OnDevice:
    """A structure's arrays on a device: inputs are uploaded, outputs (shape, dtype) lie between sentinels."""

    def __init__(self, device, op, *, outputs=None, **fields):
        self.device, self.op = device, op
        self._inputs, self._outputs = [], {}
        self.arguments = structure(STRUCTURES[op])()
        for name, value in fields.items():
            if isinstance(value, np.ndarray):
                memory = put(device, np.ascontiguousarray(value).tobytes())
                self._inputs.append(memory)
                value = memory.address
            field = getattr(self.arguments, name)
            if isinstance(field, ctypes.Array):
                for index, number in enumerate(value):
                    field[index] = number
            else:
                setattr(self.arguments, name, value)
        for name, (shape, dtype) in (outputs or {}).items():
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            memory = put(device, bytes([SENTINEL]) * (size + 2 * GUARD))
            self._outputs[name] = memory, shape, dtype
            setattr(self.arguments, name, memory.address + GUARD)
        scratch = grids.scratch_bytes(op, self.arguments)
        if scratch:
            memory = put(device, bytes([SENTINEL]) * scratch)
            self._inputs.append(memory)
            setattr(self.arguments, "scratch" if op == "order_statistics" else "parts", memory.address)

    def run(self):
        """Returns the structure as the kernels left it, and the outputs by name."""
        kind = type(self.arguments)
        memory = put(self.device, bytes(self.arguments))
        for launch in grids.launches(self.op, self.arguments):
            self.device.launch(launch.kernel, launch.grid, memory.address)
        self.device.synchronise()
        after = kind.from_buffer_copy(get(self.device, memory))
        arrays = {name: self._read(name) for name in self._outputs}
        for used in (memory, *self._inputs, *(entry[0] for entry in self._outputs.values())):
            used.close()
        return after, arrays

    def _read(self, name):
        memory, shape, dtype = self._outputs[name]
        content = get(self.device, memory)
        assert set(content[:GUARD] + content[-GUARD:]) == {SENTINEL}, f"{self.op} wrote beyond {name}"
        return np.frombuffer(content[GUARD:-GUARD], dtype).reshape(shape)


def on_device(device, op, *, outputs=None, **fields):
    return OnDevice(device, op, outputs=outputs, **fields).run()


def on_cpu(op, *, outputs=None, **fields):
    """The same operation by the native library, called with the same structure."""
    arguments = structure(STRUCTURES[op])()
    kept, arrays = [], {}
    for name, value in fields.items():
        if isinstance(value, np.ndarray):
            kept.append(np.ascontiguousarray(value))
            value = kept[-1].ctypes.data
        field = getattr(arguments, name)
        if isinstance(field, ctypes.Array):
            for index, number in enumerate(value):
                field[index] = number
        else:
            setattr(arguments, name, value)
    for name, (shape, dtype) in (outputs or {}).items():
        arrays[name] = np.empty(shape, dtype)
        setattr(arguments, name, arrays[name].ctypes.data)
    native.library().call(op, arguments)
    return arguments, arrays
