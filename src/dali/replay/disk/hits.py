"""What a pool in RAM finds there, and nothing of time: the same decisions as a timed replay's where a layer's reads all begin at
once, in a fraction of its time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dali.policies.places import Places
from dali.policies.pool import PoolPolicy
from dali.replay.eviction import Hits
from dali.replay.steps import Forward
from dali.replay.traces.trace import Trace


def pooled(trace: Trace, steps: Sequence[Forward], policy: PoolPolicy) -> Hits:
    """Hits of a pool that is empty at first and holds `policy.slots` experts. An event's experts, those of one layer in one step,
    stay until it is over; where there are more of them than places, those read first make room for the last."""
    places = Places(policy)
    found, lookups = np.zeros(trace.layers, np.int64), np.zeros(trace.layers, np.int64)
    for step in steps:
        tokens = trace.ids[step.rows]
        for layer in range(trace.layers):
            workload = np.bincount(tokens[:, layer].ravel(), minlength=trace.experts).tolist()
            places.observe(layer, workload)
            needed = [expert for expert, tokens_of in enumerate(workload) if tokens_of]
            held, event = places.held(layer), {(layer, expert) for expert in needed}
            missing = [expert for expert in needed if expert not in held]
            found[layer] += len(needed) - len(missing)
            lookups[layer] += len(needed)
            for expert in missing:
                places.take((layer, expert), (), event)
    return Hits(found, lookups)
