"""Policies of a pool in RAM that do not ship with dali: found in a file or an installed package, and what they decide checked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isfinite
from typing import Any

from dali.policies import plugins
from dali.policies.decisions import blame, is_index, shown, wrong
from dali.policies.plugins import MEND, PluginError, first_line
from dali.policies.pool import PoolPolicy

GROUP = "dali.pools"


def installed() -> list[str]:
    """The pool policies that other installed packages bring; none of them is imported for it."""
    return plugins.installed(GROUP)


def create(name: str, layers: int, experts: int, slots: int, read_seconds: Sequence[float]) -> PoolPolicy:
    """The policy in the file of that name, which ends in .py, or of an installed package. DaliError: it holds no class `Policy`
    of that kind, or the class raises as it is made."""
    made = _policy(name)
    try:
        policy = made(layers=layers, experts=experts, slots=slots, read_seconds=read_seconds)
    except Exception as error:
        blame("pool", made.__init__, error, "as it is made")
    return Checked(policy, layers, experts, slots, read_seconds)


def _policy(name: str) -> Any:
    found, file = plugins.from_file(name) if name.endswith(".py") else plugins.from_package(GROUP, name)
    policy = found if isinstance(found, type) else getattr(found, "Policy", None)
    if policy is None:
        raise PluginError(f"The policy file {shown(file)}, line 1, holds no class Policy.", MEND)
    if not (isinstance(policy, type) and issubclass(policy, PoolPolicy)):
        line = first_line(policy) if isinstance(policy, type) else 1
        raise PluginError(
            f"The Policy in {shown(file)}, line {line}, is no PoolPolicy, which says who stays in RAM over a disk.",
            "Without RAM to share out it is one for an accelerator; docs/POLICIES.md shows one that works.",
        )
    return policy


class Checked(PoolPolicy):
    """`policy`, held to what can be done. DaliError, with its file and line, the layer and the step: it raised, or said what
    nobody can act on."""

    def __init__(
        self, policy: PoolPolicy, layers: int, experts: int, slots: int, read_seconds: Sequence[float]
    ) -> None:
        super().__init__(layers, experts, slots, read_seconds)
        self._policy = policy
        self._observed = [0] * layers

    def observe(self, layer: int, workload: Sequence[int]) -> Sequence[float]:
        observe, when = self._policy.observe, f"layer {layer}, step {self._observed[layer] + 1}"
        try:
            ranks = [float(rank) for rank in observe(layer, workload)]
        except Exception as error:
            blame("pool", observe, error, when)
        self._observed[layer] += 1
        if len(ranks) != self.experts:
            raise wrong("pool", observe, f"ranks {len(ranks)} experts, of {self.experts}", when)
        for expert, rank in enumerate(ranks):
            if not isfinite(rank):
                raise wrong("pool", observe, f"ranks expert {expert} by {rank}", when)
        return ranks

    def worth(self, rank: float, wait: float) -> float:
        try:
            worth = float(self._policy.worth(rank, wait))
        except Exception as error:
            blame("pool", self._policy.worth, error, f"rank {rank}, wait {wait}")
        if not isfinite(worth):
            raise wrong("pool", self._policy.worth, f"says {worth}", f"rank {rank}, wait {wait}")
        return worth

    def donors(self, layer: int, counts: Sequence[int]) -> Iterable[int]:
        when = f"layer {layer}, step {self._observed[layer]}"
        try:
            found = list(self._policy.donors(layer, counts))
        except Exception as error:
            blame("pool", self._policy.donors, error, when)
        for donor in found:
            if not is_index(donor, self.layers):
                raise wrong(
                    "pool", self._policy.donors, f"names layer {donor!r}, of 0 to {self.layers - 1}", when
                )
        return found
