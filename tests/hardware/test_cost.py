from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dali.errors import DaliError, UsageError
from dali.hardware.cost import CostModel, ExpertSize, interpolate
from dali.hardware.profile import UNITS, Figure, Profile, Table, known, load

# Round numbers: 1 GB/s and 1 GFLOP/s everywhere but where a test says otherwise.
VALUES = dict.fromkeys(UNITS, 1e9) | {
    "memory_bandwidth": 10e9,
    "cpu_bandwidth": 4e9,
    "cpu_rate": 2e9,
    "gpu_bandwidth": 100e9,
    "gpu_rate": 200e9,
    "link_bandwidth": 2e9,
    "link_latency": 1e-6,
    "launch": 3e-6,
    "sync": 7e-6,
    "experts_call": 5e-6,
}
del VALUES["link_contended"]
SHAPE = ExpertSize(hidden=100, intermediate=10, matrices=3, bytes={"w8": 4000, "w4": 2000})


def profile(tables=(), **values):
    figures = {
        name: Figure(value, UNITS[name], "measured", "a test") for name, value in (VALUES | values).items()
    }
    return Profile("made-up", "for tests", figures, tables)


def test_roofline_times_by_hand():
    # 2 x 100 x 10 x 3 = 6000 operations a token. CPU: 4000 B / 4 GB/s = 1 us, a token 6000 / 2 GFLOP/s = 3.
    # Accelerator: 4000 / 100 GB/s = 0.04 us, a token 6000 / 200 GFLOP/s = 0.03 us.
    costs = CostModel(profile(), SHAPE, "w8", max_tokens=3).costs
    assert costs.cpu == pytest.approx([0, 3e-6, 6e-6, 9e-6])
    assert costs.gpu == pytest.approx([0, 4e-8, 6e-8, 9e-8])
    assert costs.link == pytest.approx(1e-6 + 2e-6)  # latency + 4000 B / 2 GB/s
    assert costs.link_contended == costs.link  # 10 - 4 = 6 GB/s are left, more than the link takes
    assert costs.launch == pytest.approx(6e-6)  # two kernels


def test_the_first_expert_of_the_cpu_has_activations_handed_over_and_a_call():
    there = profile()
    costs = CostModel(there, SHAPE, "w8", max_tokens=1).costs
    assert costs.handover == pytest.approx(2 * (1e-6 + 400 / 2e9) + 5e-6)  # 100 values of float32 each way
    assert CostModel(there, SHAPE, "w8", 1, accelerator=False).costs.handover == 5e-6
    unmeasured = replace(there, figures={n: f for n, f in there.figures.items() if n != "experts_call"})
    assert CostModel(unmeasured, SHAPE, "w8", max_tokens=1).costs.call == 0


def test_a_smaller_format_streams_and_copies_faster():
    costs = CostModel(profile(cpu_rate=1e15), SHAPE, "w4", max_tokens=1).costs
    assert costs.cpu[1] == pytest.approx(0.5e-6)
    assert costs.link == pytest.approx(1e-6 + 1e-6)


def test_the_link_gets_what_the_cpu_leaves():
    model = CostModel(profile(memory_bandwidth=5e9), SHAPE, "w8", max_tokens=1)
    assert model.costs.link_contended == pytest.approx(1e-6 + 4e-6)  # 5 - 4 = 1 GB/s
    assert model.copy(4000) == model.costs.link


def test_a_measured_contended_bandwidth_comes_first():
    measured = CostModel(profile(memory_bandwidth=5e9, link_contended=0.5e9), SHAPE, "w8", max_tokens=1)
    assert measured.costs.link_contended == pytest.approx(1e-6 + 8e-6)
    faster = CostModel(profile(link_contended=3e9), SHAPE, "w8", max_tokens=1)
    assert faster.costs.link_contended == faster.costs.link  # never faster than alone


def test_a_cpu_that_takes_all_bandwidth_is_an_error_that_names_the_figure():
    with pytest.raises(DaliError, match="nothing for copies") as caught:
        CostModel(profile(memory_bandwidth=4e9), SHAPE, "w8", max_tokens=1)
    assert "link_contended" in caught.value.fix


def test_an_unknown_format_lists_the_known_ones():
    with pytest.raises(UsageError, match="no size in the format 'w2'") as caught:
        CostModel(profile(), SHAPE, "w2", max_tokens=1)
    assert "w8, w4" in caught.value.fix


def test_dense_activation_and_sync_times_by_hand():
    model = CostModel(profile(), SHAPE, "w8", max_tokens=1)
    # Streaming 1 MB takes 10 us, 500,000 parameters x 2 operations x 1 token 5 us; 4 kernels of 3 us.
    assert model.dense(10**6, 500_000, tokens=1, kernels=4) == pytest.approx(10e-6 + 12e-6)
    assert model.dense(10**6, 500_000, tokens=10, kernels=0) == pytest.approx(50e-6)
    assert model.activation_copy(5) == pytest.approx(1e-6 + 5 * 400 / 2e9)
    assert model.sync == 7e-6


def test_a_table_serves_its_own_shape_first_and_others_by_their_weights_but_no_other_device_or_format():
    table = Table("cpu", "w8", 100, 10, 3, ((1, 5e-6), (3, 9e-6)), "measured", "a test")
    costs = CostModel(profile((table,)), SHAPE, "w8", max_tokens=3).costs
    roofline = CostModel(profile(), SHAPE, "w8", max_tokens=3).costs
    assert costs.cpu == pytest.approx([0, 5e-6, 7e-6, 9e-6])
    assert costs.gpu == roofline.gpu
    assert CostModel(profile((table,)), SHAPE, "w4", max_tokens=3).costs.cpu == pytest.approx(roofline.cpu)
    other = replace(SHAPE, hidden=50)
    assert CostModel(profile((table,)), other, "w8", max_tokens=1).costs.cpu[1] == pytest.approx(2.5e-6)


def test_interpolation_by_hand():
    assert interpolate([(1, 2.0), (2, 3.0), (4, 4.0)], 6) == [0, 2.0, 3.0, 3.5, 4.0, 4.5, 5.0]
    assert interpolate([(1, 2.0), (2, 3.0), (4, 4.0)], 3) == [0, 2.0, 3.0, 3.5]
    assert interpolate([(1, 2.0)], 3) == [0, 2.0, 4.0, 6.0]
    assert interpolate([(1, 2.0), (2, 1.0)], 4) == [0, 2.0, 1.0, 1.0, 1.0]  # noise is not extended


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 40), max_size=4), st.lists(st.floats(1e-6, 1), min_size=5, max_size=5), st.data()
)
def test_interpolation_meets_its_points_and_stays_between_them(steps, seconds, data):
    tokens = [1]
    for step in steps:
        tokens.append(tokens[-1] + step)
    points = list(zip(tokens, seconds, strict=False))
    most = data.draw(st.integers(1, tokens[-1] + 10))
    table = interpolate(points, most)
    assert len(table) == most + 1
    for (low, start), (high, end) in pairwise(points):
        for w in range(low, min(high, most) + 1):
            assert min(start, end) - 1e-9 <= table[w] <= max(start, end) + 1e-9
        if high <= most:
            assert table[low] == pytest.approx(start)
            assert table[high] == pytest.approx(end)


@pytest.mark.parametrize("name", known())
def test_shipped_profiles_give_times_that_rise_with_the_workload(name):
    shape = ExpertSize(2048, 768, 3, {"w4": 2_654_208})
    model = CostModel(load(name), shape, "w4", max_tokens=512)
    for seconds in (model.costs.cpu, model.costs.gpu):
        assert seconds[0] == 0 < seconds[1]
        assert seconds == sorted(seconds)
    assert model.costs.link_contended >= model.costs.link > model.costs.gpu[1]
    assert model.label == "roofline"
