"""The benchmarks of kernels and GPU count what they say they count; times themselves are not judged here."""

import numpy as np
import pytest
from fiber_device import FiberDevice
from test_gpu_backends import SessionOnStandIn

import photonstep as ps
from benchmarks import gpu, kernels
from photonstep.kernels import native
from photonstep.runtime.backends import cuda_device
from photonstep.runtime.backends.choose import Choice
from photonstep.runtime.restore import Restorer


def test_the_bytes_of_an_operation_are_those_of_its_arrays():
    sizes = {case.name: case.nbytes for case in kernels.cases(64)}
    pixels = 64 * 64
    assert sizes["stabilise"] == pixels * (2 + 4)
    assert sizes["stabilise, maps"] == pixels * (2 + 4 + 8)
    assert sizes["sampler row, last"] == pixels * 12
    assert sizes["preview"] == pixels * 3
    assert sizes["order statistics of block means"] == pixels // 16 * 4


def test_every_operation_is_timed_and_judged_against_a_copy():
    if native.library() is None:
        pytest.skip(f"native kernels {native.cause()}")
    result = kernels.measure((64,), budget_s=0.0)
    on_cpu = [line for line in result["lines"] if line["where"] == "cpu"]
    assert len(on_cpu) == len(list(kernels.cases(64)))
    for line in on_cpu:
        assert line["share_of_copy"] == pytest.approx(line["gb_per_s"] / line["copy_gb_per_s"])
        assert line["reaches_goal"] == (line["share_of_copy"] >= 0.6)
    text = kernels.table(result)
    assert ("not measured" in text) == (cuda_device.unavailable() is not None)


def test_the_operations_run_on_a_device_too():
    device = FiberDevice()
    timer = kernels.OnGpu(device)
    for case in kernels.cases(32):
        if case.name != "normal noise":
            continue
        timer.operation(case)
    timer.copy(1024)
    assert device.live == []
    assert device.calls().count("graph launch") == 10


def test_without_a_gpu_nothing_is_claimed():
    if cuda_device.unavailable() is None:
        pytest.skip("this machine has a usable GPU")
    result = gpu.measure("live", None, "auto")
    assert result["lines"] == []
    assert gpu.table(result).startswith("not measured: no GPU")


def test_a_line_holds_what_was_measured():
    """On the stand-in, whose times mean nothing: the graph is run alone, and every lane restores every frame."""
    bundle = ps.Bundle.load(ps.shipped_bundles()["live"])
    sessions = []

    def load():
        sessions.append(SessionOnStandIn(bundle))
        return Restorer(bundle, Choice(session=sessions[-1], trials=(), reason="test"))

    line = gpu.measure_one(load, 32, 1, frames=3)
    assert (line["side_px"], line["steps"], line["backend"]) == (32, 1, "stand-in fp32")
    assert line["p50_ms"] <= line["p99_ms"]
    assert line["overhead_us"] == pytest.approx(1e3 * (line["p50_ms"] - line["bare_ms"]))
    assert [s.gpu.calls().count("graph launch") for s in sessions] == [3 + 20 + 3, 4, 4]
    result = {"lines": [{**line, "over_one_step": 2.0}]}
    assert "2.00 x K = 1 (goal 3.5)" in gpu.table(result)
    assert np.isfinite(line["pipelined_fps"])
