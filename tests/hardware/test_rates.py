"""Times of shapes and formats that were not measured, worked by hand."""

from __future__ import annotations

import pytest

from dali.hardware.profile import Table
from dali.hardware.rates import RELATIVES, alone, points, slower
from dali.kernels.formats import FORMATS
from dali.probe import experts


def table(format, parameters, *seconds, **other):
    """Of 1 x n x 1 weights, by 1, 2, ... tokens."""
    found = tuple(enumerate(seconds, 1))
    return Table(
        "cpu", format, 1, parameters, 1, found, "measured", "made up", **{"bytes": parameters, **other}
    )


def test_a_line_goes_through_two_shapes():
    # 100 weights take 3 s, 300 take 5: a second for 100 more, and 2 s whatever the size. With two tokens 4 and 8: 2 s each, 2.
    tables = [table("w8", 100, 3.0, 4.0), table("w8", 300, 5.0, 8.0)]
    assert points(tables, "w8", 200, 200) == ((1, 4.0), (2, 6.0))
    assert points(tables, "w8", 500, 500) == ((1, 7.0), (2, 12.0))
    assert points(tables, "w8", 100, 100) == ((1, 3.0), (2, 4.0))


def test_experts_beside_reads_take_as_much_longer_as_at_the_nearest_count_of_tokens():
    tables = [
        table("w8", 100, 3.0, 4.0),
        table("w4", 100, 2.0, 4.0),
        table("w4", 100, 3.0, 5.0, beside="reads"),
    ]
    assert [slower(tables, "reads", tokens) for tokens in (0.5, 1.4, 1.6, 9)] == [1.5, 1.5, 1.25, 1.25]
    assert (
        slower(tables, "copies", 1) == slower(tables[:2], "reads", 1) == slower(tables[2:], "reads", 1) == 1
    )
    assert slower([tables[0], table("w8", 100, 2.0, beside="reads")], "reads", 1) == 1  # noise


def test_one_shape_gives_times_in_proportion():
    assert points([table("w8", 100, 3.0)], "w8", 50, 50) == ((1, 1.5),)


def test_noise_makes_no_negative_time():
    # The larger is faster, or slower than its weights: the nearest goes, in proportion.
    assert points([table("w8", 100, 3.0), table("w8", 300, 2.0)], "w8", 200, 200) == (
        (1, pytest.approx(4 / 3)),
    )
    assert points([table("w8", 100, 1.0), table("w8", 300, 9.0)], "w8", 10, 10) == ((1, 0.1),)


def test_the_two_nearest_shapes_count():
    tables = [table("w8", 1, 50.0), table("w8", 100, 3.0), table("w8", 300, 5.0)]
    assert points(tables, "w8", 200, 200) == ((1, 4.0),)


def test_another_format_goes_by_its_relative():
    # q5_0 by w4: the first token by bytes, a fourth more; what the second one adds by weights.
    tables = [table("w4", 100, 4.0, 6.0), table("w8", 100, 9.0, 9.0)]
    assert points(tables, "q5_0", 100, 125) == ((1, 5.0), (2, 7.0))
    assert points(tables, "q6k", 100, 80) is None


def test_mixed_formats_go_by_the_first_and_their_bytes():
    assert points([table("q4k", 100, 4.0)], "q4k (down q6k)", 100, 110) == ((1, pytest.approx(4.4)),)


def test_tables_measured_beside_other_work_are_no_times_alone():
    tables = [
        table("w4", 100, 4.0, beside="reads"),
        table("w4", 100, 3.0, kind="linear"),
        table("w4", 100, 2.0),
    ]
    assert alone(tables, "cpu", "experts") == tables[2:]
    assert alone(tables, "gpu", "experts") == []


def test_every_format_is_measured_or_has_a_relative_that_is():
    assert set(FORMATS) == set(experts.FORMATS) | set(RELATIVES)
    assert set(RELATIVES.values()) <= set(experts.FORMATS)
