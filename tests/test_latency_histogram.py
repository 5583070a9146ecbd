"""The histogram against exact percentiles of the same numbers."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from photonstep.runtime.latency_histogram import LONGEST_MS, SHORTEST_MS, LatencyHistogram

latencies = st.lists(st.floats(SHORTEST_MS, LONGEST_MS), min_size=1, max_size=200)


@given(latencies, st.sampled_from([0, 50, 95, 99, 99.9, 100]))
def test_percentiles_are_within_one_per_cent(values, percent):
    histogram = LatencyHistogram()
    for value in values:
        histogram.record(value)
    exact = np.percentile(values, percent, method="inverted_cdf")
    assert histogram.percentile_ms(percent) == pytest.approx(exact, rel=0.01)
    assert histogram.max_ms == max(values)
    assert histogram.count == len(values)


def test_a_rare_spike_shows_in_the_tail_alone():
    histogram = LatencyHistogram()
    for index in range(10_000):
        histogram.record(110.0 if index % 500 == 0 else 5.0)
    assert histogram.percentile_ms(99) == pytest.approx(5.0, rel=0.01)
    assert histogram.percentile_ms(99.9) == pytest.approx(110.0, rel=0.01)


def test_memory_does_not_grow():
    histogram = LatencyHistogram()
    before = histogram.nbytes
    for value in np.geomspace(1e-6, 1e9, 5000):
        histogram.record(float(value))
    assert histogram.nbytes == before < 20_000


def test_what_lies_outside_counts_at_the_ends():
    histogram = LatencyHistogram()
    for value in (-5.0, 0.0, 1e9):
        histogram.record(value)
    assert histogram.percentile_ms(50) == pytest.approx(SHORTEST_MS, rel=0.01)
    assert histogram.percentile_ms(100) == pytest.approx(LONGEST_MS, rel=0.01)
    assert histogram.max_ms == 1e9


def test_nothing_counted_is_not_a_number():
    assert math.isnan(LatencyHistogram().percentile_ms(50))
    with pytest.raises(ValueError, match="expected 0 to 100"):
        LatencyHistogram().percentile_ms(101)
