"""The kernels for a GPU against float64 and the native CPU library.

They run in an emulation on the CPU (`fiber_shim`: real barriers, shuffles and atomics; fibers also in reverse order),
and on a GPU where there is one. To look for races and stray accesses on a GPU:

    compute-sanitizer --tool memcheck  python -m pytest tests/test_cuda_kernels.py -k GPU
    compute-sanitizer --tool racecheck python -m pytest tests/test_cuda_kernels.py -k GPU
"""

import ctypes

import numpy as np
import pytest
from device_runs import PIXEL_TYPES, get, on_cpu, on_device, put
from fiber_device import FiberDevice

from photonstep.kernels import native, reference
from photonstep.kernels.arguments import structure
from photonstep.runtime.backends import cuda_device

SHAPES = [(1, 1), (17, 33), (31, 1031), (40, 64)]


@pytest.fixture(params=["fibers", "fibers reversed", "GPU"])
def device(request):
    if request.param == "GPU":
        cause = cuda_device.unavailable()
        if cause:
            pytest.skip(cause)
        opened = cuda_device.open_device()
    else:
        opened = FiberDevice(reverse=request.param == "fibers reversed")
    yield opened
    opened.close()


@pytest.fixture
def cpu():
    if native.library() is None:
        pytest.skip(f"native kernels {native.cause()}")


def frame_of(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    if dtype == "float32":
        return rng.normal(300, 400, shape).astype(np.float32)
    return rng.integers(0, np.iinfo(dtype).max, shape, endpoint=True).astype(dtype)


def floats(shape, low=-2.0, high=2.0, seed=1):
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


def strided(frame, extra=3):
    """Fields of a frame that is the left part of a wider array: the array, and its stride in bytes."""
    wide = np.zeros((frame.shape[0], frame.shape[1] + extra), frame.dtype)
    wide[:, : frame.shape[1]] = frame
    return wide, wide.strides[0]


def sizes(shape):
    return {"height": shape[0], "width": shape[1]}


# --- elementwise: the CPU's bits ---


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", PIXEL_TYPES)
@pytest.mark.parametrize("maps", [False, True], ids=["scalars", "maps"])
def test_stabilise(device, cpu, shape, dtype, maps):
    frame = frame_of(shape, dtype)
    gain, offset, readout = 0.46, 100.0, 1.6
    if maps:
        gain, offset, readout = floats(shape, 0.3, 0.6), floats(shape, 90, 110, 2), floats(shape, 0.5, 8, 3)
    scale, bias = 4 * gain, 4 * (reference.ANSCOMBE_OFFSET + readout**2 - offset * gain)
    wide, stride = strided(frame)
    fields = {"frame": wide, "frame_stride": stride, "pixel_type": PIXEL_TYPES[dtype], **sizes(shape)}
    fields |= {"scale_map": np.float32(scale), "bias_map": np.float32(bias)} if maps else {"scale": scale, "bias": bias}
    outputs = {"z": (shape, np.float32)}
    _, on = on_device(device, "stabilise", outputs=outputs, **fields)
    _, off = on_cpu("stabilise", outputs=outputs, **fields)
    np.testing.assert_array_equal(on["z"], off["z"])
    exact = np.sqrt(np.maximum(frame * np.float64(np.float32(scale)) + np.float64(np.float32(bias)), 0))
    np.testing.assert_allclose(on["z"], exact, rtol=1e-6, atol=1e-2)
    far = exact > 1
    np.testing.assert_allclose(on["z"][far], exact[far], rtol=2e-5)


@pytest.mark.parametrize(("plane_type", "dtype"), [(0, np.float32), (1, np.float16), (2, np.uint16)])
@pytest.mark.parametrize("factor", [1, 2])
def test_network_input(device, cpu, plane_type, dtype, factor):
    shape = (18, 1034)
    fields = {
        "z": floats(shape, 0, 90), "factor": factor, "per_span": 0.03, "shift": 0.6, "c_in": 3.1,
        "plane_type": plane_type, **sizes(shape),
    }  # fmt: skip
    outputs = {"state": (shape, np.float32), "plane": (shape, dtype)}
    _, on = on_device(device, "network_input", outputs=outputs, **fields)
    _, off = on_cpu("network_input", outputs=outputs, **fields)
    for name in outputs:
        np.testing.assert_array_equal(on[name].view(np.uint8), off[name].view(np.uint8))
    u = fields["z"].astype(np.float64) * 0.03 - 0.6
    np.testing.assert_allclose(on["state"], u, atol=1e-6)
    if plane_type == 0:
        blocks = u.reshape(9, 2, 517, 2).transpose(1, 3, 0, 2).reshape(shape) if factor == 2 else u
        np.testing.assert_allclose(on["plane"], 3.1 * blocks, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_network_input_without_a_plane_or_a_state(device, cpu, shape):
    fields = {"z": floats(shape, 0, 90), "factor": 1, "per_span": 0.03, "shift": 0.6, "c_in": 3.1, **sizes(shape)}
    for name in ("state", "plane"):
        outputs = {name: (shape, np.float32)}
        np.testing.assert_array_equal(
            on_device(device, "network_input", outputs=outputs, **fields)[1][name],
            on_cpu("network_input", outputs=outputs, **fields)[1][name],
        )


ROWS = {
    "last": {"a": 0.0, "b": 1.0},
    "ddim": {"a": 0.35, "b": 0.65},
    "2m": {"a": 0.5, "b": 0.75, "p": -0.25},
    "anchored": {"a": 0.2, "b": 0.6, "y": 0.2},
    "noisy": {"a": 0.3, "b": 0.7, "n": 0.02},
}


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("sigma_map", [False, True], ids=["level", "map"])
@pytest.mark.parametrize("shape", [(17, 33), (2, 1031)])
def test_sampler_row(device, cpu, shape, row, sigma_map):
    fields = {
        "x": floats(shape), "network": floats(shape, seed=2), "x0_before": floats(shape, seed=3),
        "measurement": floats(shape, seed=4), "sigma": 0.11, "sigma_next": 0.04, "sigma_data": 0.25,
        "sigma_min": 0.005, "row": 3, "key_low": 17, "key_high": 2**31, "origin_y": 5, "origin_x": 7,
        **sizes(shape), **ROWS[row],
    }  # fmt: skip
    if sigma_map:
        fields["sigma_map"] = floats(shape, 0.3, 1.2, seed=5)
    outputs = dict.fromkeys(("next", "x0", "plane", "condition"), (shape, np.float32))
    _, on = on_device(device, "sampler_row", outputs=outputs, **fields)
    _, off = on_cpu("sampler_row", outputs=outputs, **fields)
    for name in outputs:
        np.testing.assert_array_equal(on[name], off[name])
    level = fields["sigma"] * fields.get("sigma_map", np.ones(shape)).astype(np.float64)
    c_in = 1 / np.sqrt(level**2 + 0.25**2)
    x0 = (0.25 * c_in) ** 2 * fields["x"] + level * 0.25 * c_in * fields["network"]
    np.testing.assert_allclose(on["x0"], x0, atol=1e-6)
    below = 0.04 * fields.get("sigma_map", np.ones(shape)).astype(np.float64)
    np.testing.assert_allclose(on["plane"], on["next"] / np.sqrt(below**2 + 0.25**2), rtol=1e-6)
    np.testing.assert_allclose(on["condition"], np.log(np.maximum(below, 0.005)) / 4, rtol=1e-6)


def test_a_row_without_a_network_makes_the_inputs_alone(device, cpu):
    shape = (9, 70)
    fields = {"x": floats(shape), "sigma_next": 0.2, "sigma_data": 0.25, "sigma_min": 0.005, **sizes(shape)}
    outputs = dict.fromkeys(("plane", "condition"), (shape, np.float32))
    _, on = on_device(device, "sampler_row", outputs=outputs, **fields)
    _, off = on_cpu("sampler_row", outputs=outputs, **fields)
    for name in outputs:
        np.testing.assert_array_equal(on[name], off[name])
    np.testing.assert_allclose(on["plane"], fields["x"] / np.hypot(0.2, 0.25), rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_normal(device, cpu, shape):
    fields = {"row": 2, "key_low": 5, "key_high": 9, "origin_y": 3, "origin_x": 2, **sizes(shape)}
    outputs = {"noise": (shape, np.float32)}
    on = on_device(device, "normal", outputs=outputs, **fields)[1]["noise"]
    np.testing.assert_array_equal(on, on_cpu("normal", outputs=outputs, **fields)[1]["noise"])
    if on.size > 1000:
        assert abs(on.mean()) < 4 / np.sqrt(on.size)
        assert abs(on.std() - 1) < 4 / np.sqrt(on.size)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("unbiased", [0, 1])
@pytest.mark.parametrize("maps", [False, True], ids=["scalars", "maps"])
def test_electrons(device, cpu, shape, unbiased, maps):
    u, stride = strided(floats(shape))
    constant = floats(shape, 0.4, 9) if maps else 2.9
    fields = {"u": u, "u_stride": stride, "span": 30.0, "centre": 20.0, "unbiased": unbiased, **sizes(shape)}
    fields["constant_map" if maps else "constant"] = constant
    outputs = {"electrons": (shape, np.float32)}
    on = on_device(device, "electrons", outputs=outputs, **fields)[1]["electrons"]
    np.testing.assert_array_equal(on, on_cpu("electrons", outputs=outputs, **fields)[1]["electrons"])
    if not unbiased:
        z = u[:, : shape[1]].astype(np.float64) * 30 + 20
        np.testing.assert_allclose(on, np.maximum(z, 0) ** 2 / 4 - constant, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", PIXEL_TYPES)
@pytest.mark.parametrize("maps", [False, True], ids=["scalars", "maps"])
def test_counts_and_light(device, cpu, shape, dtype, maps):
    electrons = floats(shape, -5, 40_000)
    wide = (shape[0], shape[1] + 3)
    fields = {
        "electrons": electrons, "gain": 1.02, "shift": -0.3, "pixel_type": PIXEL_TYPES[dtype],
        "counts_stride": wide[1] * np.dtype(dtype).itemsize, **sizes(shape),
    }  # fmt: skip
    if maps:
        fields |= {"per_gain_map": floats(shape, 1, 2), "offset_map": floats(shape, 90, 110)}
    else:
        fields |= {"per_gain": 2.17, "offset": 100.0}
    outputs = {"counts": (wide, dtype)}
    k, on = on_device(device, "counts", outputs=outputs, **fields)
    told, off = on_cpu("counts", outputs=outputs, **fields)
    np.testing.assert_array_equal(on["counts"][:, : shape[1]], off["counts"][:, : shape[1]])
    assert (on["counts"][:, shape[1] :].view(np.uint8) == 0x5A).all()  # between the rows nothing is written
    exact = np.maximum(electrons.astype(np.float64) * 1.02 - 0.3, 0).sum()
    assert k.light == pytest.approx(exact, rel=1e-6)
    assert told.light == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("shape", [(16, 16), (19, 37), (9, 2061)])
@pytest.mark.parametrize("dtype", PIXEL_TYPES)
@pytest.mark.parametrize("block", [1, 4, 8])
def test_block_means(device, cpu, shape, dtype, block):
    image, stride = strided(frame_of(shape, dtype))
    fields = {"image": image, "image_stride": stride, "block": block, "pixel_type": PIXEL_TYPES[dtype], **sizes(shape)}
    out = (shape[0] // block, shape[1] // block)
    outputs = {"means": (out, np.float32)}
    for more in (
        {"scale": 0.5, "bias": -3.0},
        {"scale_map": floats(shape, 0.3, 0.6), "bias_map": floats(shape, -60, -40)},
    ):
        on = on_device(device, "block_means", outputs=outputs, **fields, **more)[1]["means"]
        np.testing.assert_array_equal(on, on_cpu("block_means", outputs=outputs, **fields, **more)[1]["means"])
        scale, bias = more.get("scale", more.get("scale_map")), more.get("bias", more.get("bias_map"))
        exact = reference.block_means(image[:, : shape[1]].astype(np.float64) * scale + bias, block)
        np.testing.assert_allclose(on, exact, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("shape", [(3, 3), (17, 33), (5, 1040)])
def test_laplacian(device, cpu, shape):
    image, stride = strided(floats(shape, 0, 60))
    fields = {"image": image, "image_stride": stride, **sizes(shape)}
    outputs = {"magnitude": ((shape[0] - 2, shape[1] - 2), np.float32)}
    on = on_device(device, "laplacian", outputs=outputs, **fields)[1]["magnitude"]
    np.testing.assert_array_equal(on, on_cpu("laplacian", outputs=outputs, **fields)[1]["magnitude"])
    exact = image[:, : shape[1]].astype(np.float64)
    exact = np.abs(np.diff(np.diff(exact, 2, axis=0), 2, axis=1))
    np.testing.assert_allclose(on, exact, atol=1e-4)


@pytest.mark.parametrize("dtype", PIXEL_TYPES)
@pytest.mark.parametrize("lut", [False, True], ids=["grey", "lut"])
def test_preview(device, cpu, dtype, lut):
    shape = (11, 1030)
    frame = frame_of(shape, dtype)
    if dtype == "float32":
        frame[0, :3] = np.nan, np.inf, -np.inf
    image, stride = strided(frame)
    low, high = 40.0, 200.0
    fields = {
        "image": image, "image_stride": stride, "pixel_type": PIXEL_TYPES[dtype], "low": low,
        "per_range": 255 / (high - low), **sizes(shape),
    }  # fmt: skip
    if lut:
        fields["lut"] = np.arange(256, dtype=np.uint8)[::-1].copy()
    outputs = {"grey": (shape, np.uint8)}
    on = on_device(device, "preview", outputs=outputs, **fields)[1]["grey"]
    np.testing.assert_array_equal(on, on_cpu("preview", outputs=outputs, **fields)[1]["grey"])
    finite = np.nan_to_num(frame.astype(np.float64), nan=low, posinf=1e9, neginf=-1e9)
    exact = reference.preview_u8(finite, low, high, np.arange(256)).astype(int)
    shown = on.astype(np.int64) if not lut else 255 - on.astype(np.int64)
    assert np.abs(shown - exact).max() <= 1  # a half is rounded in float32


# --- sums and order ---


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", PIXEL_TYPES)
@pytest.mark.parametrize("hashed", [0, 1])
def test_content(device, cpu, shape, dtype, hashed):
    frame, stride = strided(frame_of(shape, dtype))
    full = {"uint8": 200.0, "uint16": 50_000.0, "float32": 500.0}[dtype]
    fields = {
        "frame": frame,
        "frame_stride": stride,
        "pixel_type": PIXEL_TYPES[dtype],
        "full": full,
        "hashed": hashed,
        **sizes(shape),
    }
    on, off = on_device(device, "content", **fields)[0], on_cpu("content", **fields)[0]
    assert (on.low, on.high, on.full_pixels) == (off.low, off.high, off.full_pixels)
    assert bool(on.low or on.high) == bool(hashed)
    assert on.full_pixels == np.count_nonzero(frame[:, : shape[1]] >= full)


@pytest.mark.parametrize("shape", [(16, 16), (35, 300), (70, 33), (1, 64)])
@pytest.mark.parametrize("step", [1, 4])
@pytest.mark.parametrize("noise_map", [False, True], ids=["noise", "map"])
def test_residual(device, cpu, shape, step, noise_map):
    u, stride = strided(floats(shape))
    fields = {
        "z": floats(shape, -5, 60, 2), "u": u, "u_stride": stride, "band": 16, "step": step, "span": 12.0,
        "centre": 25.0, "per_noise": 1.25, **sizes(shape),
    }  # fmt: skip
    fields["z"][fields["z"] < 0] = 0
    if noise_map:
        fields["noise_map"] = floats(shape, 0.5, 1)
    on, off = on_device(device, "residual", **fields)[0], on_cpu("residual", **fields)[0]
    for name in ("pixels", "pairs_y", "pairs_x", "cut_off"):
        assert getattr(on, name) == getattr(off, name)
    bands = [slice(top, top + 16) for top in range(0, shape[0], 16 * step)]
    per_noise = 1 / fields["noise_map"].astype(np.float64) if noise_map else np.full(shape, 1.25)
    r = (fields["z"].astype(np.float64) - (u[:, : shape[1]].astype(np.float64) * 12 + 25)) * per_noise
    exact = [
        sum(float((r[b] ** 2).sum()) for b in bands),
        sum(float((r[b][1:] * r[b][:-1]).sum()) for b in bands),
        sum(float((r[b][:, 1:] * r[b][:, :-1]).sum()) for b in bands),
    ]
    tiny = 1e-5 * exact[0]  # the lagged sums cancel: their error goes with the squares
    for k in (on, off):
        np.testing.assert_allclose([k.squares, k.along_y, k.along_x], exact, rtol=1e-5, atol=tiny)


@pytest.mark.parametrize("count", [1, 255, 4097, 100_003])
def test_order_statistics_are_exact(device, cpu, count):
    rng = np.random.default_rng(count)
    values = rng.normal(0, 10, count).astype(np.float32)
    values[rng.integers(0, count, count // 3)] = 1.5  # ties
    values[::7] *= -1e20
    ranks = sorted({0, count - 1, count // 2, count // 200, (count * 99) // 100})
    fields = {"values": values, "count": count, "ranks": len(ranks), "rank": ranks}
    on, off = on_device(device, "order_statistics", **fields)[0], on_cpu("order_statistics", **fields)[0]
    exact = np.sort(values)[ranks]
    np.testing.assert_array_equal(list(on.value)[: len(ranks)], exact)
    np.testing.assert_array_equal(list(off.value)[: len(ranks)], exact)


def test_eight_equal_values_have_one_order_statistic(device):
    fields = {"values": np.full(8, -0.25, np.float32), "count": 8, "ranks": 8, "rank": range(8)}
    assert list(on_device(device, "order_statistics", **fields)[0].value) == [-0.25] * 8


def test_full_pixels(device):
    shape, block = (21, 19), 8
    frame, stride = strided(frame_of(shape, "uint16"))
    fields = {"frame": frame, "frame_stride": stride, "block": block, "pixel_type": 1, "full": 60_000.0, **sizes(shape)}
    k, on = on_device(device, "full_pixels", outputs={"blocks": ((2, 2), np.float32)}, **fields)
    full = frame[:, :19] >= 60_000
    assert k.total == full.sum() > 10
    np.testing.assert_array_equal(on["blocks"], full[:16, :16].reshape(2, 8, 2, 8).sum(axis=(1, 3)))


def test_fill_and_window(device):
    on = on_device(device, "fill", outputs={"to": ((1531,), np.float32)}, count=1531, value=-0.5)[1]["to"]
    np.testing.assert_array_equal(on, np.full(1531, np.float32(-0.5)))
    image, stride = strided(floats((21, 1050)))
    window = {"from": image, "from_stride": stride, "from_height": 21, "from_width": 1050, "top": 5, "left": 3}
    window |= {"height": 27, "width": 1053, "to_stride": 1053 * 4}
    on = on_device(device, "window", outputs={"to": ((27, 1053), np.float32)}, **window)[1]["to"]
    np.testing.assert_array_equal(on, np.pad(image[:, :1050], ((0, 11), (0, 6)), mode="symmetric")[5:, 3:])


# --- a frame's numbers ---


def chain(device, kind, **fields):
    """A structure in device memory, and its address."""
    k = structure(kind)()
    for name, value in fields.items():
        setattr(k, name, value)
    return put(device, bytes(k))


@pytest.mark.parametrize("before", [None, (10.1, 39.0), (10.1, 300.0)], ids=["first", "alike", "new scene"])
def test_range_follows_the_tracker(device, before):
    """As `RangeTracker.update`, and everything that hangs on it."""
    levels = (10.0, 11.0, 40.0, 42.0)
    statistics = structure("OrderStatistics")()
    for index, value in enumerate(levels):
        statistics.value[index] = value
    kept = [put(device, bytes(statistics))]
    rows = b"".join(
        bytes(structure("SamplerRow")(sigma=s, sigma_next=t, n=n)) for s, t, n in ((1.0, 0.35, 0.2), (0.35, 0.0, 0.0))
    )
    written = (bytes(structure("NetworkInput")()) * 2, bytes(structure("Fill")()) * 2, rows)
    kept += [put(device, content) for content in written]
    kept += [put(device, bytes(structure(kind)())) for kind in ("Electrons", "Residual")]
    statistics, inputs, conditions, row, electrons, residual = (memory.address for memory in kept)
    fields = {
        "statistics": statistics, "fraction": (0.5, 0.25), "before": before or (0, 0), "has_before": before is not None,
        "memory": 0.9, "new_scene": 0.25, "minimum_range": 4.0, "low_u": -0.5, "high_u": 0.5, "degradation": 0.02,
        "sigma_data": 0.25, "sigma_min": 0.005, "inputs": 2, "conditions": 2, "rows": 2, "input": inputs,
        "condition": conditions, "row": row, "electrons": electrons, "residual": residual,
    }  # fmt: skip
    k, _ = on_device(device, "range", **fields)
    level = np.array([10.5, 40.5])
    if before == (10.1, 39.0):
        level = 0.9 * np.array(before) + 0.1 * level
    span = level[1] - level[0]
    centre, scale = level[0] + 0.5 * span, np.hypot(1 / span, 0.02)
    np.testing.assert_allclose([*k.level, k.span, k.centre, k.scale], [*level, span, centre, scale], rtol=1e-14)
    after = [get(device, memory) for memory in kept]
    for index in range(2):
        one = structure("NetworkInput").from_buffer_copy(after[1], index * ctypes.sizeof(structure("NetworkInput")))
        wanted = [1 / span, centre / span, 1 / np.hypot(scale, 0.25)]
        np.testing.assert_allclose([one.per_span, one.shift, one.c_in], wanted, rtol=1e-6)
        fill = structure("Fill").from_buffer_copy(after[2], index * ctypes.sizeof(structure("Fill")))
        assert fill.value == pytest.approx(np.log(scale) / 4, rel=1e-6)
    made = [
        structure("SamplerRow").from_buffer_copy(after[3], i * ctypes.sizeof(structure("SamplerRow"))) for i in (0, 1)
    ]
    np.testing.assert_allclose(
        [[r.sigma, r.sigma_next, r.n] for r in made], scale * np.array([[1, 0.35, 0.2], [0.35, 0, 0]]), rtol=1e-6
    )
    for memory, kind in zip(after[4:], ("Electrons", "Residual"), strict=True):
        one = structure(kind).from_buffer_copy(memory)
        np.testing.assert_allclose([one.span, one.centre], [span, centre], rtol=1e-6)
    for memory in kept:
        memory.close()


@pytest.mark.parametrize("count", [1, 300, 1000])
@pytest.mark.parametrize("excluded", ["none", "some", "all"])
def test_balance_is_the_weighted_line(device, count, excluded):
    rng = np.random.default_rng(count)
    restored = rng.uniform(0, 60, count).astype(np.float32)
    measured = (restored * 1.03 + 0.2 + rng.normal(0, 0.5, count)).astype(np.float32)
    full = {"some": rng.integers(0, 2, count).astype(np.float32), "all": np.ones(count, np.float32)}.get(excluded)
    counts = chain(device, "Counts")
    fields = {
        "restored": restored, "measured": measured, "count": count, "weight": 64 / 1.3, "readout_variance": 2.6,
        "prior_gain": 0.03, "prior_shift": 0.1, "largest_change": 0.1, "counts": counts.address,
    }  # fmt: skip
    if full is not None:
        fields["full"] = full
    k, _ = on_device(device, "balance", **fields)
    kept = np.ones(count, bool) if full is None else full == 0
    x, missing = restored[kept].astype(np.float64), (measured.astype(np.float64) - restored)[kept]
    root = np.sqrt(64 / 1.3 / (np.maximum(x, 0.05) + 2.6))
    design = np.vstack([np.column_stack([root * x, root]), np.diag([1 / 0.03, 1 / 0.1])])
    change, shift = np.linalg.lstsq(design, np.concatenate([root * missing, [0, 0]]), rcond=None)[0]
    assert abs(change) < 0.1
    assert k.gain == pytest.approx(1 + change, abs=1e-10)
    assert k.shift == pytest.approx(shift, abs=1e-10)
    told = structure("Counts").from_buffer_copy(get(device, counts))
    assert (told.gain, told.shift) == (np.float32(k.gain), np.float32(k.shift))
    counts.close()


def test_the_balance_changes_no_gain_by_more_than_it_may(device):
    counts = chain(device, "Counts")
    x = np.linspace(100, 1000, 4000).astype(np.float32)
    k, _ = on_device(
        device, "balance", restored=x, measured=2 * x, count=x.size, weight=64.0, readout_variance=1.0,
        prior_gain=0.03, prior_shift=0.1, largest_change=0.1, counts=counts.address,
    )  # fmt: skip
    assert k.gain == 1.1
    counts.close()


@pytest.mark.parametrize("op", ["counts", "residual"])
def test_sums_are_the_same_in_either_order_of_fibers(op):
    shape = (33, 700)
    fields = {
        "counts": {"electrons": floats(shape, 0, 50), "gain": 1.0, "pixel_type": 2, "counts_stride": 2800},
        "residual": {
            "z": floats(shape), "u": floats(shape, seed=2), "u_stride": 2800, "band": 16, "step": 1, "span": 1.0,
            "per_noise": 1.0,
        },
    }[op]  # fmt: skip
    outputs = {"counts": (shape, np.float32)} if op == "counts" else {}
    first, second = (
        bytes(on_device(FiberDevice(reverse=reverse), op, outputs=outputs, **fields, **sizes(shape))[0])
        for reverse in (False, True)
    )
    numbers = {"counts": ["light"], "residual": ["squares", "along_y", "along_x"]}[op]
    kind = structure(op.capitalize())
    for name in numbers:
        assert getattr(kind.from_buffer_copy(first), name) == getattr(kind.from_buffer_copy(second), name) != 0
