"""Policies: what runs where, what is fetched next, what stays. Pure decisions over plain numbers.

No policy imports torch, reads a clock or keeps global state; randomness is seeded. A policy is one file:
`policies/<kind>/<name>.py` with a class `Policy` is known as <name> from then on (kinds: assign, prefetch,
cache).
"""

from dali.policies.registry import create, names

__all__ = ["create", "names"]
