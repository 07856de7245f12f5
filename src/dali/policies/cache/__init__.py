"""Cache replacement: which experts of a MoE layer stay on the accelerator.

After a layer's last use in a step the runtime calls `observe` and queues the swaps it returns. A swap is one
expert out, one in, so the number of residents never changes. When the incoming expert sits in a scratch slot
(it is in `fetched`), the runtime exchanges the two slots' roles and copies nothing; otherwise it copies, and
the expert counts as resident once that copy is done. So window policies may name any expert, and policies
that fill on demand (LRU, LFU) name fetched ones only. Host memory keeps every expert, so nothing is ever
copied back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence, Set
from random import Random
from typing import ClassVar, NamedTuple

from dali.policies.signals import Signals


class Swap(NamedTuple):
    """`load` becomes a resident of the observed layer instead of `evict`, which is `donor`'s: None, the usual case, is the layer
    itself. Only an expert in scratch can take another layer's slot."""

    evict: int
    load: int
    donor: int | None = None


class CachePolicy:
    """Keeps its starting set; the base of all cache policies.

    `capacity`: resident experts a layer; `experts`: routed experts a layer. State is per object; the only
    randomness is the starting set's, by `seed`. `signals` names the fields of Signals it cannot do without.
    """

    signals: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, layers: int, experts: int, capacity: int, seed: int = 0) -> None:
        self.layers = layers
        self.experts = experts
        self.capacity = min(capacity, experts)
        self.seed = seed

    def initial(self, layer: int) -> tuple[int, ...]:
        """The starting set, ids ascending: the same number of random experts in every layer, as in DALI. A
        policy may spread them unevenly: at most layers x capacity in all."""
        rng = Random(f"{self.seed}/{layer}")
        return tuple(sorted(rng.sample(range(self.experts), self.capacity)))

    def observe(
        self,
        layer: int,
        workload: Sequence[int],
        resident: Set[int],
        fetched: Collection[int] = (),
        protected: Set[int] = frozenset(),
        signals: Signals | None = None,
    ) -> list[Swap]:
        """Swaps after one forward step (a prefill chunk is one, too).

        `workload[e]`: live tokens routed to expert e in the step. `resident`: the layer's residents now.
        `fetched`: experts in its scratch slots. `protected`: experts to leave as they are: still in use, or
        part of a swap in flight. `signals`: the step's routing in full, if the policy needs it.
        """
        return []


class DemandFilled(CachePolicy, ABC):
    """A fetched expert that was used stays, in place of the resident of lowest rank (see `fill`). Ranks outlive an expert's stay;
    all uses of one forward step count once."""

    def __init__(self, layers: int, experts: int, capacity: int, seed: int = 0) -> None:
        super().__init__(layers, experts, capacity, seed)
        self._steps = [0] * layers
        self._ranks = [[0] * experts for _ in range(layers)]

    @abstractmethod
    def rank(self, before: int, step: int) -> int:
        """The rank of an expert used in the layer's `step` (1 is the first)."""

    def observe(
        self,
        layer: int,
        workload: Sequence[int],
        resident: Set[int],
        fetched: Collection[int] = (),
        protected: Set[int] = frozenset(),
        signals: Signals | None = None,
    ) -> list[Swap]:
        self._steps[layer] += 1
        step, ranks = self._steps[layer], self._ranks[layer]
        for expert, tokens in enumerate(workload):
            if tokens:
                ranks[expert] = self.rank(ranks[expert], step)
        return fill(ranks, workload, resident, fetched, protected)


def fill(
    rank: Sequence[float],
    workload: Sequence[int],
    resident: Set[int],
    fetched: Collection[int],
    protected: Set[int],
) -> list[Swap]:
    """Demand filling: each fetched expert that was used stays, for the resident of lowest rank that was not
    used in this step. Ranks are compared after the step, so one step's experts never evict each other; ties
    to the lower id."""
    used = (expert for expert in fetched if workload[expert] and expert not in protected)
    loads = sorted(used, key=lambda expert: (-rank[expert], expert))
    if not loads:
        return []
    idle = (expert for expert in resident - protected if not workload[expert])
    victims = sorted(idle, key=lambda expert: (rank[expert], expert))
    return [Swap(evict, load) for evict, load in zip(victims, loads, strict=False)]
