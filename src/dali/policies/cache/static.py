"""A fixed set: what is resident at the start stays."""

from dali.policies.cache import CachePolicy


class Policy(CachePolicy):
    """`static`."""
