"""SRP and SCH: by hand, and equal to the reference implementation's figures for public traces."""

import json
import math

import pytest

from dali.replay.traces.locality import segment_cache_hit_rate, segment_routing_performance
from replay.tiny_traces import public_folder, public_trace, trace_of

GOLDEN = {
    "olmoe (1 seq)": ("olmoe-1b-7b_dev", 2),
    "kimi-linear-48b (1 seq)": ("kimi-linear-48b-a3b_dev", 4),
}


def test_one_set_fits_all_of_an_unchanging_routing():
    found = segment_routing_performance(trace_of([[1, 2]] * 5, 4), 4)
    assert found == (1.0, 1.0)


def test_srp_by_hand():
    # windows of 2: {0, 1}, {1, 0}: each expert once, two experts; sets of both find 2 of 4 predictions x 1 use
    found = segment_routing_performance(trace_of([[0], [1], [0]], 3), 2)
    assert found.srp == pytest.approx(2 * 4 / (8 + 4))
    assert found.size == pytest.approx(2.0)


def test_windows_do_not_cross_sequences():
    assert math.isnan(segment_routing_performance(trace_of([[0], [1], [0]], 3, sequences=[2, 1]), 3).srp)


def test_sch_by_hand():
    # one slot, looking one token ahead: 0 is evicted for 1 and comes back; the first use is free
    assert segment_cache_hit_rate(trace_of([[0], [0], [1], [0]], 3), 1, 1) == 0.5
    assert segment_cache_hit_rate(trace_of([[0], [0], [1], [0]], 3), 1, 2) == 1.0


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_figures(name):
    file, every = GOLDEN[name]
    trace = public_trace(file, every=1)
    golden = json.loads((public_folder() / "golden_moe_lrc_metrics.json").read_text())[name]
    for window, expected in golden["srp"].items():  # over all layers
        found = segment_routing_performance(trace, int(window))
        assert found.srp == pytest.approx(expected["srp"], abs=1e-3)
        assert found.size == pytest.approx(expected["best_m"], abs=1e-3)
    trace = public_trace(file, every)
    assert list(range(0, every * trace.layers, every)) == golden["layers"]
    for window, rates in golden["sch_per_layer"].items():
        for times, expected in rates.items():
            found = segment_cache_hit_rate(trace, int(window), int(times) * trace.top_k)
            assert found == pytest.approx(expected, abs=1e-3), (window, times)
