"""The native library gives the same bits with every instruction set and number of threads, sums included."""

import numpy as np
import pytest
from kernel_runs import LARGE, normals, positive_map, random_image, running, variants

from photonstep.kernels import native, ops

pytestmark = pytest.mark.skipif(native.library() is None, reason=f"native kernels {native.cause()}")

KEY = (0x243F6A88, 0x85A308D3)


def written(kernel, *arrays):
    """The arrays that a kernel wrote, and what it returned."""
    return [*arrays, kernel(*arrays)]


def network_planes(shape, x, levels):
    plane, condition = np.empty_like(x), np.empty_like(x)
    inputs = ops.NextInputs(plane=plane, condition=condition)
    ops.network_planes(x, sigma=0.7, sigma_data=0.5, sigma_map=levels, inputs=inputs)
    return [plane, condition]


def sampler_row(shape, x, levels, n):
    out, x0, plane, condition = (np.empty_like(x) for _ in range(4))
    ops.sampler_row(
        x, normals(shape, 1), a=0.3, b=0.6, n=n, p=0.1, x0_before=x, sigma=0.9, sigma_next=0.2, sigma_data=0.5,
        sigma_map=levels, noise=ops.RowNoise(key=KEY, row=1, origin=(3, 2)), out=out, x0=x0,
        following=ops.NextInputs(plane=plane, condition=condition),
    )  # fmt: skip
    return [out, x0, plane, condition]


def network_input(shape, z, dtype):
    even = z[: shape[0] // 2 * 2, : shape[1] // 2 * 2]
    state, plane = np.empty_like(even), np.empty(even.shape, dtype)
    ops.network_input(even, per_span=0.04, shift=0.8, c_in=1.7, factor=2, state=state, plane=plane)
    return [state, plane]


def counts(electrons, dtype, **camera):
    return written(
        lambda out: ops.write_counts(electrons, out, gain=1.01, shift_e=-0.3, **camera),
        np.empty(electrons.shape, dtype),
    )


# name -> (inputs of a shape, what is computed from them as a list of arrays and numbers)
KERNELS = {
    "stabilise": (lambda s: [random_image(s, "uint16")], lambda s, f: [ops.stabilise_with(f, 1.84, -180.0)]),
    "stabilise maps": (
        lambda s: [random_image(s, "uint8"), positive_map(s), positive_map(s, 2)],
        lambda s, f, scale, bias: [ops.stabilise_with(f, scale, bias)],
    ),
    "network input float32": (lambda s: [normals(s)], lambda s, z: network_input(s, z, np.float32)),
    "network input float16": (lambda s: [normals(s)], lambda s, z: network_input(s, z, np.float16)),
    "network input bfloat16": (lambda s: [normals(s)], lambda s, z: network_input(s, z, np.uint16)),
    "network planes": (lambda s: [normals(s), positive_map(s)], network_planes),
    "sampler row": (lambda s: [normals(s)], lambda s, x: sampler_row(s, x, None, 0.0)),
    "sampler row, map, noise": (lambda s: [normals(s), positive_map(s)], lambda s, x, m: sampler_row(s, x, m, 0.4)),
    "normal": (lambda s: [], lambda s: [ops.normal(s, key=KEY, row=2, origin=(1, 1))]),
    "electrons": (lambda s: [normals(s)], lambda s, u: [ops.electrons_of(u, span=20.0, centre=19.0)]),
    "electrons, unbiased": (
        lambda s: [normals(s), positive_map(s)],
        lambda s, u, r: [ops.electrons_of(u, span=20.0, centre=19.0, readout_noise_e=r, unbiased=True)],
    ),
    "counts": (lambda s: [normals(s, scale=90.0)], lambda s, e: counts(e, np.uint16, offset_adu=9.0, adu_per_e=2.0)),
    "counts, maps": (
        lambda s: [normals(s, scale=90.0), positive_map(s)],
        lambda s, e, m: counts(e, np.float32, offset_adu=m, adu_per_e=m),
    ),
    "block means": (lambda s: [random_image(s, "uint16")], lambda s, f: [ops.block_means(f, min(s[0], 7), scale=0.3)]),
    "residual": (lambda s: [normals(s), normals(s, 1)], lambda s, z, u: list(ops.residual_statistics(z, u))),
    "residual, map": (
        lambda s: [normals(s), normals(s, 1), positive_map(s)],
        lambda s, z, u, m: list(ops.residual_statistics(z, u, span=2.0, centre=0.1, noise=m, step=1)),
    ),
    "percentiles": (lambda s: [normals(s)], lambda s, f: list(ops.percentiles(f, (1, 50, 99.9)))),
    "laplacian noise": (lambda s: [normals(s)], lambda s, f: [ops.laplacian_noise(f)]),
    "preview": (lambda s: [random_image(s, "uint8")], lambda s, f: [ops.preview_u8(f, low=10.0, high=200.0)]),
    "content": (lambda s: [random_image(s, "float32")], lambda s, f: [*ops.content_key(f), ops.count_at_least(f, 300)]),
}


def bits(results):
    return [np.asarray(result).tobytes() for result in results]


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("shape", [(33, 1043), LARGE], ids=str)
def test_instruction_sets_and_threads_do_not_change_a_bit(name, shape):
    make, compute = KERNELS[name]
    inputs = make(shape)
    with running("baseline", threads=1):
        expected = bits(compute(shape, *inputs))
    found = {}
    for variant in variants():
        for threads in (1, 2, 5) if shape == LARGE else (1,):
            with running(variant, threads=threads):
                found[variant, threads] = bits(compute(shape, *inputs)) == expected
    assert all(found.values()), found


def test_this_machine_has_more_than_one_instruction_set():
    if variants() == ["baseline"]:
        pytest.skip("this processor, or this build, has neither AVX2 nor AVX-512: there is nothing to compare")
    assert variants()[0] == "baseline"
    lib = native.library()
    before = lib.variant
    assert not lib.use_variant("sse9")
    assert lib.variant == before
