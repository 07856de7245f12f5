"""The tables of coded formats against those of the gguf package."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from dali.kernels.grids import TABLES, table, table_bytes

OWNERS = {
    "iq3_xxs": "IQ3_XXS",
    "iq3_s": "IQ3_S",
    "iq2_xxs": "IQ2_XXS",
    "iq2_xs": "IQ2_XS",
    "iq2_s": "IQ2_S",
    "iq1": "IQ1_S",
}


def test_no_table_is_left_out():
    assert set(TABLES) == {*OWNERS, "iq4", "signs"}


@pytest.mark.parametrize("name", OWNERS)
def test_grids_are_ggufs(name):
    owner = getattr(gguf.quants, OWNERS[name])
    owner.init_grid()
    assert table(name).dtype == np.int8
    assert np.array_equal(table(name), owner.grid[0, 0])


def test_signs_are_ggufs():
    expected = np.frombuffer(gguf.quants.IQ2_XXS.ksigns, dtype=np.uint8)
    assert np.array_equal(table("signs"), expected)


def test_the_values_of_iq4_are_ggufs():
    assert tuple(table("iq4").tolist()) == gguf.quants.IQ4_NL.kvalues


@pytest.mark.parametrize("name", TABLES)
def test_bytes_are_the_rows_of_the_table(name):
    assert np.array_equal(np.frombuffer(table_bytes(name), dtype=table(name).dtype), table(name).ravel())


def test_nobody_can_write_to_a_table():
    with pytest.raises(ValueError, match="read-only"):
        table("iq1")[0, 0] = 1
