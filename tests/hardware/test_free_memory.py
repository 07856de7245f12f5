"""How much memory is free."""

from __future__ import annotations

from dali.hardware.free_memory import available_ram


def test_some_memory_is_free() -> None:
    assert 2**20 < available_ram() < 2**50
