"""Whether an accelerator makes answers faster at all, as far as a profile tells."""

from __future__ import annotations

from collections.abc import Callable

from dali.errors import parameter
from dali.hardware.cost import CostModel
from dali.loading.loaded import LoadedModel
from dali.policies.once.alone import experts_seconds, loses
from dali.runtime.residency import Residency


def tell_loss(
    loaded: LoadedModel,
    name: str,
    costs: CostModel,
    residency: Residency,
    dense: tuple[int, int, int],
    notify: Callable[[str], None],
) -> None:
    """Say where a token is modelled to be slower with the device `name` than on the CPU alone; whoever named it gets it all the
    same. `dense`: bytes, weights and kernels of the model's dense part."""
    pool, top_k = loaded.pool, loaded.top_k
    layers, experts = pool.layers, pool.experts
    parts = [size // layers for size in dense]
    alone = CostModel(costs.profile, costs.shape, costs.format, 1, accelerator=False)
    resident = min(residency.resident_slots // layers, experts)
    routed = experts_seconds(costs.costs, experts, top_k, resident, residency.scratch_slots)
    beside = layers * (costs.dense_seconds(*parts)(1) + routed + costs.costs.launch)
    without = layers * (alone.dense_seconds(*parts)(1) + top_k * alone.costs.cpu[1] + alone.costs.call)
    if loses(beside, without):
        notify(
            f"By the profile {costs.profile.name} a token is modelled to take {1000 * beside:.3g} ms with {name}, and "
            f"{1000 * without:.3g} ms on the CPU alone. Leave {parameter('device')} out, or try both."
        )
