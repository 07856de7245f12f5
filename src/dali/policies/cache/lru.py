"""Least recently used: a fetched expert stays in place of the resident whose last use is the longest ago."""

from dali.policies.cache import DemandFilled


class Policy(DemandFilled):
    """`lru`."""

    def rank(self, before: int, step: int) -> int:
        return step
