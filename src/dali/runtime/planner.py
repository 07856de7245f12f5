"""The compiled planner (src/native/plan): for the default policies it decides, number for number, what the other files of this
folder and the policies decide in Python, within the native call that carries a layer's step out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dali.compiled import library
from dali.devices import Buffer
from dali.hardware.cost import ExpertCosts
from dali.policies import Policies
from dali.policies.assign import two_lane
from dali.policies.cache import fading
from dali.policies.prefetch import ridge
from dali.runtime.residency import Residency


def plans(policies: Policies, guarded: bool) -> bool:
    """Whether it decides as `policies` do: they are the defaults themselves, under guards."""
    assign, prefetch, cache = policies.assign, policies.prefetch, policies.cache
    kinds = type(assign), type(prefetch), type(cache)
    defaults = kinds == (two_lane.Policy, ridge.Policy, fading.Policy)
    return guarded and defaults and prefetch.depth == 1 and prefetch.count is None


def planner(
    residency: Residency,
    slot: Callable[[Buffer], int],
    layers: int,
    experts: int,
    costs: ExpertCosts,
    predicts: bool,
    workload: NDArray[np.int64],
) -> Any:
    """A library.Planner that takes over from a residency whose first residents are there. `slot(buffer)`: the number of a slot;
    `predicts`: whether there are predictions to rest; `workload`: as telemetry has it, kept by the caller."""
    residents = []
    for layer in range(layers):
        ids = list(residency.residents(layer))
        residents.append(list(zip(ids, map(slot, residency.slots(layer, ids)), strict=True)))
    return library.Planner(
        residents,
        experts,
        residency.resident_slots + residency.scratch_slots,
        costs.cpu,
        costs.gpu,
        costs.link,
        costs.link_contended,
        costs.launch,
        costs.handover,
        costs.call,
        predicts,
        workload.ctypes.data,
    )
