"""Least frequently used: a fetched expert stays in place of the resident used in the fewest forward steps so far."""

from dali.policies.cache import DemandFilled


class Policy(DemandFilled):
    """`lfu`."""

    def rank(self, before: int, step: int) -> int:
        return before + 1
