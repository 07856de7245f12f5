"""How an accelerator's memory is split between experts and what sequences keep (keys, values, states), by modelled time.

One sequence of the whole context always has its room. Room for more lets answers that may take a whole context run side by side,
where a step's weights serve all of them, instead of waiting for one another. But it takes slots from experts, and every token is
slower for it, a single user's too. So the time of both is modelled, for each number of sequences that there could be room for: of
one that is alone, and of all of them together. Among the numbers by which one that is alone is at most SLACK times slower than
with the most experts, that is taken by which all together have their tokens soonest.

The bound comes first: most machines have one user most of the time, and answers shorter than the context share the room of one
anyway. A sum of both times would give up two to three times as much (benchmarks/policies/vram_split.py), as the times of a full
batch differ by multiples. Attention is in neither time: a sequence's takes as long whatever the split, so that without it the
bound is stricter, not looser.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from dali.hardware.cost import ExpertCosts
from dali.policies.once.alone import experts_seconds

SLACK = 1.05  # times the best time of a sequence that is alone, which nobody notices
MOST = 64  # sequences: beyond that, one more gains next to nothing
MOST_SCRATCH = 16  # slots demanded and prefetched experts pass through; more of them hide nothing more


class Experts(NamedTuple):
    """What competes for the memory: `layers` of `experts`, of which a token is routed to `top_k`; a slot's bytes; and how long a
    token of a step takes by them and by what is beside them."""

    layers: int
    experts: int
    top_k: int
    slot: int
    costs: ExpertCosts
    dense: Callable[[int], float]  # tokens of a step -> seconds of a layer's dense part

    def seconds(self, tokens: int, nbytes: int) -> float:
        """Modelled, of a step that gives each of so many sequences a token, when experts have so many bytes."""
        slots = min(nbytes // self.slot, self.layers * self.experts)
        there = residents(slots, self.layers, self.experts)
        scratch = slots - there * self.layers
        routed = experts_seconds(self.costs, self.experts, self.top_k, there, scratch, tokens)
        return self.layers * (self.dense(tokens) + routed)


class Split(NamedTuple):
    """Bytes for experts, bytes for what sequences keep, and how many of the whole context that is room for."""

    experts: int
    states: int
    sequences: int


def split_by_time(room: int, whole: int, most: int, experts: Experts) -> Split:
    """Of `room` bytes, with `whole` of them a sequence of the whole context and at most `most` of these. The room is enough for
    one."""
    numbers = range(1, max(min(most, MOST, room // max(whole, 1)), 1) + 1)
    alone = {number: experts.seconds(1, room - number * whole) for number in numbers}
    little_slower = [number for number in numbers if alone[number] <= SLACK * alone[1]]
    number = min(little_slower, key=lambda one: (experts.seconds(one, room - one * whole) / one, -one))
    return Split(room - number * whole, number * whole, number)


def split_as_asked(room: int, whole: int, most: int, asked: int) -> Split:
    """The same where somebody says what experts shall have: that, at most what one sequence leaves; what is left is for more."""
    given = min(asked, room - whole)
    number = max(min(most, (room - given) // max(whole, 1)), 1)
    return Split(given, number * whole, number)


def residents(slots: int, layers: int, experts: int) -> int:
    """Residents a layer, of `slots` in all: as many as there can be once a few slots are left as scratch."""
    if slots >= layers * experts:
        return experts
    return (slots - min(MOST_SCRATCH, max(slots // 4, 1), slots)) // layers
