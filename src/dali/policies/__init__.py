"""Policies: what runs where, what is fetched next, what stays. Pure decisions over plain numbers.

No policy imports torch, reads a clock or keeps global state; randomness is seeded. A policy is one file:
`policies/<kind>/<name>.py` with a class `Policy` is known as <name> from then on (kinds: assign, prefetch,
cache).
"""

from collections.abc import Callable
from dataclasses import dataclass

from dali.policies.assign import AssignPolicy
from dali.policies.cache import CachePolicy
from dali.policies.prefetch import PrefetchPolicy
from dali.policies.registry import create, names
from dali.policies.signals import Step

__all__ = ["Policies", "create", "names"]


@dataclass
class Policies:
    """What decides together. `begin`, for policies that tell requests or prompt and answer apart, is called before each forward
    step; where nobody calls it, every step is one of decoding for one and the same request."""

    assign: AssignPolicy
    prefetch: PrefetchPolicy
    cache: CachePolicy
    begin: Callable[[Step], None] | None = None
