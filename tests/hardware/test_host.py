"""What the CPU computes beside experts, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dali.hardware.host import PASSES, HostCosts
from dali.hardware.profile import Curve, Table, load
from measured import measured


def table(kind, format, columns, rows, points, nbytes):
    return Table("cpu", format, columns, rows, 1, points, "measured", "made up", kind=kind, bytes=nbytes)


TABLES = (
    table("linear", "w8", 1000, 1000, ((1, 1e-4), (3, 3e-4)), 10**6),
    table("router", "bf16", 1000, 100, ((1, 2e-5), (2, 3e-5)), 2 * 10**5),
)
PROFILE = replace(measured(), tables=TABLES)  # a call takes 2 us, memory gives 50 GB/s


def test_a_linear_takes_its_tables_time_without_the_call():
    costs = HostCosts(PROFILE)
    assert costs.linear("w8", 1000, 1000, 10**6, 1) == pytest.approx(98e-6)
    assert costs.linear("w8", 1000, 1000, 10**6, 2) == pytest.approx(198e-6)
    assert costs.linear("w8", 2000, 1000, 2 * 10**6, 3) == pytest.approx(598e-6)


def test_a_router_likewise():
    assert HostCosts(PROFILE).router(1000, 100, 2) == pytest.approx(28e-6)


def test_attention_goes_by_bytes_while_decoding_and_by_operations_in_a_prompt():
    costs = HostCosts(PROFILE)
    assert costs.decoding_attention(3 * 10**6, 10**5) == pytest.approx(2e-4)  # at 30 GB/s, and 1 ns a score
    assert costs.prompt_attention(2 * 10**8, 10**6) == pytest.approx(
        1.1e-3
    )  # at 0.2 TFLOP/s, and 0.1 ns a value


def test_what_a_layer_and_a_step_take_is_as_measured():
    costs = HostCosts(PROFILE)
    assert (costs.layer, costs.step) == (2e-5, 4e-4)


def test_passes_go_by_the_curve_between_sizes_that_were_measured_and_as_at_the_last_ones_beyond():
    curve = Curve(PASSES, "bytes of a tensor", "B/s", ((1e6, 80e9), (3e6, 40e9), (8e6, 10e9)), "made up")
    costs = HostCosts(replace(PROFILE, curves=(curve,)))
    assert costs.passes(10**6, 8) == pytest.approx(1e-4)
    assert costs.passes(2 * 10**6, 3) == pytest.approx(1e-4)  # at 60 GB/s, half way
    assert costs.passes(10**5, 8) == pytest.approx(1e-5)
    assert costs.passes(10**7, 10) == pytest.approx(1e-2)


def test_passes_over_values_of_another_kind_have_a_curve_of_their_own_if_any_was_measured():
    curves = tuple(
        Curve(name, "bytes of a tensor", "B/s", ((1e6, bandwidth),), "made up")
        for name, bandwidth in ((PASSES, 40e9), (f"{PASSES}, bfloat16", 5e9))
    )
    costs = HostCosts(replace(PROFILE, curves=curves))
    assert costs.passes(10**6, 2) == pytest.approx(5e-5)
    assert costs.passes(10**6, 2, "bfloat16") == pytest.approx(4e-4)
    assert costs.passes(10**6, 2, "float16") == pytest.approx(5e-5)


def test_without_a_curve_passes_go_by_memory_as_do_experts_rows():
    costs = HostCosts(PROFILE)
    assert costs.passes(5 * 10**6, 10) == pytest.approx(1e-3)
    # 100 kB written, for which they are read, and so are 400 kB, which are read once more
    assert costs.summed_rows(1000, 4, 25) == pytest.approx((2 * 1e5 + 3 * 4e5) / 50e9)
    assert costs.prompt_layer == 1e-3


def test_a_published_profile_gives_a_roofline():
    paper = load("paper")
    costs = HostCosts(paper)
    assert (costs.layer, costs.step) == (0.0, 0.0)
    assert costs.linear("w8", 1000, 1000, 10**6, 1) == pytest.approx(10**6 / paper["cpu_bandwidth"])
    assert costs.prompt_attention(10**9, 10**6) == pytest.approx(10**9 / paper["cpu_rate"])
    assert costs.decoding_attention(10**9, 10**6) == pytest.approx(10**9 / paper["memory_bandwidth"])


def test_a_format_without_a_table_goes_by_its_relative_else_by_the_roofline():
    profile = replace(
        PROFILE, tables=(table("linear", "w4", 1000, 1000, ((1, 1e-4),), 5 * 10**5), *TABLES[1:])
    )
    assert HostCosts(profile).linear("q5_0", 1000, 1000, 6 * 10**5, 1) == pytest.approx(118e-6)
    assert HostCosts(profile).linear("w8", 1000, 1000, 10**6, 1) == pytest.approx(25e-6)  # 1 MB at 40 GB/s
