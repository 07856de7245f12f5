"""How many prompt tokens a step should take.

A prefill step uses nearly every expert, so absent ones stream over the link once a step whatever its size: larger chunks share
that time among more tokens, until computing hides it. Beyond that point they only take memory and keep others waiting.
"""

from __future__ import annotations

from dali.hardware.cost import ExpertCosts
from dali.policies.assign.two_lane import two_lane
from dali.policies.lanes import makespan
from dali.policies.plan import ResidencyView

CHUNKS = (256, 512, 1024, 2048)  # tokens
SLACK = 1.1  # a chunk this close to the best a token is large enough


def prefill_chunk(costs: ExpertCosts, experts: int, top_k: int, resident: int, slots: int) -> int:
    """The smallest of CHUNKS whose modelled time a token is within SLACK of the best one's, for an even routing over `experts`
    of which `resident` are on the accelerator and others pass through `slots`."""
    view = ResidencyView(frozenset(range(resident)), {}, slots)
    seconds = {}
    for chunk in CHUNKS:
        workload = [max(chunk * top_k // experts, 1)] * experts
        seconds[chunk] = makespan(two_lane(workload, view, costs), workload, view, costs) / chunk
    best = min(seconds.values())
    return next(chunk for chunk in CHUNKS if seconds[chunk] <= SLACK * best)
