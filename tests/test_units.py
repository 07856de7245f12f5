"""Sizes, as people write and read them."""

from __future__ import annotations

import pytest

from dali.errors import UsageError
from dali.units import enough, parse_size, size


def test_sizes_have_the_unit_that_fits() -> None:
    assert [size(n) for n in (12, 1536, 2**20, 3 * 2**29)] == ["12 B", "1.5 KiB", "1.0 MiB", "1.5 GiB"]


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0KiB"),
        (1, "1KiB"),
        (2**20, "1024KiB"),
        (100 * 2**20 + 1, "101MiB"),
        (2**30, "1024MiB"),
        (100 * 2**30, "100GiB"),
        (100 * 2**30 + 1, "101GiB"),
    ],
)
def test_what_is_enough_can_be_typed(nbytes: int, text: str) -> None:
    assert enough(nbytes) == text
    assert nbytes <= parse_size(text)


def test_sizes_are_read_in_any_unit() -> None:
    assert [parse_size(text) for text in ("0", "12", "1.5KiB", "2 MB", "3g")] == [
        0,
        12,
        1536,
        2 * 10**6,
        3 * 2**30,
    ]


@pytest.mark.parametrize("text", ["", "-1", "2 parsecs", "nan", "1e30TiB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size"):
        parse_size(text)
