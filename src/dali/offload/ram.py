"""How a budget of RAM is shared out once a model is loaded whose experts are on disk."""

from __future__ import annotations

from collections.abc import Callable

from dali.engine.budget import StateBudget
from dali.engine.engine import Engine
from dali.errors import DaliError
from dali.hardware.free_memory import own_memory
from dali.loading.loaded import LoadedModel
from dali.loading.on_disk import step_bytes
from dali.loading.room import NoRoom, no_context, share, step_tokens, too_small
from dali.offload.gpu import state_size
from dali.options import LoadOptions
from dali.step.size import Reservation, StateSize
from dali.store.disk_pool import DiskPlan, DiskPool
from dali.units import size


def share_out(
    loaded: LoadedModel, engine: Engine, options: LoadOptions, notify: Callable[[str], None]
) -> int:
    """Give experts the slots that the budget has room for, and sequences theirs for keys and values; the bytes of the prefix
    cache.

    The context becomes shorter where a quarter of the budget cannot hold it, which is said. DaliError where the budget is too
    small: for a token's experts of a layer, or for the context that was asked for.
    """
    pool, plan = loaded.pool, loaded.disk
    assert isinstance(pool, DiskPool) and plan is not None
    keeps = state_size(engine)
    step = engine.scheduler.step_tokens = _step_tokens(loaded, plan, engine.scheduler.step_tokens)
    used = own_memory() + _step_bytes(loaded, step)
    try:
        shares = share(
            plan.ram - used,
            used,
            pool.slot_bytes,
            (plan.least_slots, pool.most_slots),
            (loaded.ctx_size, options.ctx_size is not None),
            options.cache_ram_bytes,
            lambda tokens: keeps.nbytes(Reservation(tokens, step)),
        )
    except NoRoom as none:
        raise _refusal(none, loaded, plan, keeps, step) from None
    if shares.context < loaded.ctx_size:
        notify(
            f"The context is {shares.context} tokens of {loaded.ctx_size}, as many as the budget of RAM has room for."
        )
    loaded.ctx_size = shares.context
    engine.limit_states(StateBudget(shares.states, keeps))
    pool.grow(shares.slots)
    loaded.telemetry.clear()  # of what was tried here
    _tell(loaded, pool, plan, notify)
    return shares.prefixes


def _step_tokens(loaded: LoadedModel, plan: DiskPlan, usual: int) -> int:
    """Prompt tokens a step. Floats are computed in chunks as they are with all experts in RAM, whose bits they have."""
    if not loaded.layout.format.quantized:
        return usual
    return step_tokens(usual, plan.ram, lambda tokens: _step_bytes(loaded, tokens))


def _step_bytes(loaded: LoadedModel, tokens: int) -> int:
    return step_bytes(loaded.layout, loaded.top_k, loaded.model, tokens)


def _refusal(none: NoRoom, loaded: LoadedModel, plan: DiskPlan, keeps: StateSize, step: int) -> DaliError:
    if not none.tokens:
        return too_small(loaded.name, none.least, plan.ram if plan.asked else None, plan.ram)
    return no_context(loaded.ctx_size, keeps.nbytes(Reservation(loaded.ctx_size, step)), none)


def _tell(loaded: LoadedModel, pool: DiskPool, plan: DiskPlan, notify: Callable[[str], None]) -> None:
    held, all_of_them = pool.slots, pool.layers * pool.experts
    where = "" if pool.direct else ", whose file system reads through the page cache"
    all_fit = f"RAM has room for all {held} experts, read from {pool.path}{where} as they are wanted."
    part = (
        f"RAM has room for {held} of {all_of_them} experts ({size(pool.nbytes)} of {size(pool.stored_bytes)}): the others are "
        f"read from {pool.path}{where} when they are wanted, which is slower."
    )
    notify(f"{all_fit if held == all_of_them else part} dali takes {size(plan.ram)} in all.")
