"""The places of a pool in RAM: which experts hold them, and who makes room."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence, Set
from math import inf

from dali.policies.pool import PoolPolicy

Expert = tuple[int, int]  # (layer, expert)


class Places:
    """`slots` places, all alike; `policy` ranks who holds them. A place is taken when the read into it is begun."""

    def __init__(self, policy: PoolPolicy) -> None:
        self._policy = policy
        self.free = policy.slots
        self._held: list[set[int]] = [set() for _ in range(policy.layers)]
        self._ranks: list[Sequence[float]] = [[0.0] * policy.experts for _ in range(policy.layers)]
        self._orders: list[list[int] | None] = [None] * policy.layers  # who goes first; None: to be sorted
        self._turn = 0  # the layer observed last

    def held(self, layer: int) -> Set[int]:
        """The layer's experts that hold places, read or still being read."""
        return self._held[layer]

    def observe(self, layer: int, workload: Sequence[int]) -> None:
        """Tell the policy a layer's routing."""
        self._turn = layer
        self._ranks[layer] = self._policy.observe(layer, workload)
        self._orders[layer] = None

    def take(
        self, expert: Expert, stay: Collection[Expert], rather: Collection[Expert] = ()
    ) -> Expert | None:
        """Give `expert`, which holds none, a place, and return whose place that was: None, a free one.

        Nobody of `stay` makes room, of `rather` only where nobody else can. LookupError: nobody can, and nothing has changed.
        """
        gone = None
        if not self.free:
            gone = self._lowest(expert[0], lambda one: one not in stay and one not in rather)
            if gone is None and rather:
                gone = self._lowest(expert[0], lambda one: one not in stay)
            if gone is None:
                raise LookupError
            self._held[gone[0]].remove(gone[1])
            self._orders[gone[0]] = None
            self.free += 1
        self.free -= 1
        self._held[expert[0]].add(expert[1])
        self._orders[expert[0]] = None
        return gone

    def _lowest(self, layer: int, may_go: Callable[[Expert], bool]) -> Expert | None:
        donors = self._policy.donors(layer, [len(held) for held in self._held])
        found = self._first(donors, may_go)
        # A share that is in use, all of it, cannot give; what a policy would keep is then given up, too.
        return found or self._first(range(self._policy.layers), may_go)

    def _first(self, layers: Iterable[int], may_go: Callable[[Expert], bool]) -> Expert | None:
        """Of some layers' experts the one of least worth; ties to the layer whose next turn is farthest away, then to the lower
        id."""
        all_layers, worth = self._policy.layers, self._policy.worth
        least, found = (inf, 0.0), None
        for layer in layers:
            order, ranks = self._orders[layer], self._ranks[layer]
            if order is None:
                order = self._orders[layer] = sorted(self._held[layer], key=lambda one: (ranks[one], one))
            first = next((expert for expert in order if may_go((layer, expert))), None)
            if first is None:
                continue
            wait = ((layer - self._turn - 1) % all_layers + 1) / all_layers
            value = (worth(ranks[first], wait), -wait)
            if value < least:
                least, found = value, (layer, first)
        return found
