"""What the page cache holds of experts: told for a budget of RAM, by a pool that is open and before there is one."""

from __future__ import annotations


def cached_bytes(through: bool, depth: int, slot_bytes: int) -> int:
    """Bytes that reads under way may take there, at most: so many at once of a slot each, where they may go `through` it."""
    return depth * slot_bytes if through else 0
