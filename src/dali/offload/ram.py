"""How a budget of RAM is shared out once a model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from weakref import ref

from dali.devices import Device, SimDevice
from dali.devices.cuda import GpuSlots
from dali.engine.budget import StateBudget
from dali.engine.engine import Engine
from dali.errors import DaliError
from dali.hardware.free_memory import own_memory
from dali.loading.loaded import LoadedModel
from dali.loading.on_disk import step_bytes
from dali.loading.room import (
    FEWEST_TOKENS,
    STEP,
    NoRoom,
    no_context,
    share,
    share_rest,
    staged_bytes,
    step_tokens,
    too_small,
)
from dali.offload.gpu import tell_pinned
from dali.offload.plain_reads import PlainReads
from dali.offload.vram import drafted, state_size
from dali.options import LoadOptions
from dali.step.size import Reservation, StateSize
from dali.store.disk_pool import DiskPlan, DiskPool
from dali.units import size


def share_out(
    loaded: LoadedModel,
    engine: Engine,
    options: LoadOptions,
    notify: Callable[[str], None],
    device: Device | None = None,
) -> int:
    """Give experts the slots that the budget has room for, and sequences theirs for keys and values; the bytes of the prefix
    cache. `device`: the accelerator, if there is one; the memory of a simulated one is not counted, though it is this process's.

    Where nobody says how long the context shall be, it becomes shorter if a quarter of what is left cannot hold it, which is
    said. DaliError where the budget is too small: for a token's experts of a layer, or for the context asked for beside them.
    """
    pool, plan = loaded.pool, loaded.disk
    assert isinstance(pool, DiskPool) and plan is not None
    keeps = None if isinstance(device, GpuSlots) else state_size(engine)  # of RAM
    held = own_memory() - pool.held * pool.slot_bytes - (device.used if isinstance(device, SimDevice) else 0)
    step = engine.scheduler.step_tokens
    if keeps is not None and loaded.layout.format.quantized:  # a GPU's memory is for no more
        shortest = loaded.ctx_size if options.ctx_size is not None else min(FEWEST_TOKENS, loaded.ctx_size)
        fewest = partial(_state_bytes, keeps, options, shortest)
        step = engine.scheduler.step_tokens = _step_tokens(
            loaded, min(step, STEP), plan.ram - held - pool.cached_bytes, fewest, device
        )
    used = held + pool.cached_bytes + _step_bytes(loaded, step, device)

    def states(tokens: int) -> int:
        return 0 if keeps is None else _state_bytes(keeps, options, tokens, step)

    try:
        shares = share(
            plan.ram - used,
            used,
            pool.slot_bytes,
            (plan.least_slots, pool.most_slots),
            (loaded.ctx_size, options.ctx_size is not None),
            options.cache_ram_bytes,
            states,
        )
    except NoRoom as none:
        raise _no_room(none, loaded, plan, states) from None
    if keeps is not None:
        _set_context(loaded, shares.context, notify)
        budget = StateBudget(shares.states, keeps)
        simulated = engine.budget  # of the accelerator's memory, where they are supposed to be
        engine.limit_states(budget if simulated is None else budget.within(simulated.nbytes))
    pool.grow(shares.slots)
    if options.prefetch == "none":
        pool.rest()
    if pool.has_both_ways and not isinstance(device, SimDevice):  # whose reads are modelled
        engine.ended = PlainReads(pool, notify).end_step
    _prepare(pool, engine, device, notify)
    loaded.telemetry.clear()  # of what was tried here
    _tell(loaded, pool, plan, notify)
    return shares.prefixes


def share_beside(
    loaded: LoadedModel, engine: Engine, options: LoadOptions, notify: Callable[[str], None]
) -> int:
    """As `share_out`, where the CPU computes all, and the budget that somebody asked for has room for all experts: sequences have
    what is left of it beside the prefix cache. DaliError: too little."""
    ram, keeps = options.ram_bytes, state_size(engine)
    assert ram is not None
    loaded.telemetry.clear()  # of what told the size
    step = engine.scheduler.step_tokens
    used = own_memory() + _step_bytes(loaded, step, None)

    def states(tokens: int) -> int:
        return _state_bytes(keeps, options, tokens, step)

    context = loaded.ctx_size, options.ctx_size is not None
    shares = share_rest(loaded.name, ram, used, context, options.cache_ram_bytes, states)
    _set_context(loaded, shares.context, notify)
    engine.limit_states(StateBudget(shares.states, keeps))
    return shares.prefixes


def _set_context(loaded: LoadedModel, tokens: int, notify: Callable[[str], None]) -> None:
    """Where it is shorter than the model's, that is said."""
    if tokens < loaded.ctx_size:
        notify(
            f"The context is {tokens} tokens of {loaded.ctx_size}, as many as the budget of RAM has room for."
        )
    loaded.ctx_size = tokens


def _no_room(none: NoRoom, loaded: LoadedModel, plan: DiskPlan, states: Callable[[int], int]) -> DaliError:
    """What is said of a budget that is too small. states: bytes that sequences of so many tokens keep."""
    asked = plan.ram if plan.asked else None
    if none.tokens:
        return no_context(loaded.ctx_size, states(loaded.ctx_size), none, asked)
    return too_small(loaded.name, none.least, asked, plan.ram)


def _prepare(pool: DiskPool, engine: Engine, device: Device | None, notify: Callable[[str], None]) -> None:
    """Have the system provide the slots' memory: page-locked for an accelerator, else beside whatever else is done."""
    if device is None:
        pool.prepare_memory(_until_asked(engine))
    else:
        device.pin(pool.memory)
        tell_pinned(device, notify)


def _until_asked(engine: Engine) -> Callable[[], bool]:
    """Whether somebody has asked the engine for something, or it has gone."""
    scheduler = ref(engine.scheduler)

    def asked() -> bool:
        return (found := scheduler()) is None or bool(found.live or found.waiting)

    return asked


def _state_bytes(keeps: StateSize, options: LoadOptions, context: int, step: int) -> int:
    """What a sequence of so long a context keeps, read in steps of so many tokens."""
    return keeps.nbytes(Reservation(context, step, drafted(options)))


def _step_tokens(
    loaded: LoadedModel, usual: int, room: int, states: Callable[[int], int], device: Device | None
) -> int:
    """Prompt tokens a step of quantized experts: floats are computed in chunks as they are with all experts in RAM, for the same
    bits. `room`: bytes for steps, experts and `states`, read in steps of so many tokens."""
    pool, plan = loaded.pool, loaded.disk
    assert isinstance(pool, DiskPool) and plan is not None

    def step(tokens: int) -> int:
        return _step_bytes(loaded, tokens, device)

    def slots(tokens: int) -> int:
        return (room - step(tokens) - states(tokens)) // pool.slot_bytes

    wanted = plan.least_slots, min(plan.least_slots * pool.layers, pool.most_slots)
    return step_tokens(usual, plan.ram, step, slots, wanted, shrinks=device is None)


def _step_bytes(loaded: LoadedModel, tokens: int, device: Device | None) -> int:
    staged = 0 if device is None else staged_bytes(tokens, loaded.top_k, loaded.layout.shape.hidden)
    return step_bytes(loaded.layout, loaded.top_k, loaded.model, tokens) + staged


def _tell(loaded: LoadedModel, pool: DiskPool, plan: DiskPlan, notify: Callable[[str], None]) -> None:
    held, all_of_them = pool.slots, pool.layers * pool.experts
    where = "" if pool.direct or pool.plain else ", whose file system reads through the page cache"
    all_fit = f"RAM has room for all {held} experts, read from {pool.path}{where} as they are wanted."
    part = (  # a slot has room for the largest expert
        f"RAM has room for {held} of {all_of_them} experts ({size(pool.nbytes)} of {size(all_of_them * pool.slot_bytes)}): the "
        f"others are read from {pool.path}{where} when they are wanted, which is slower."
    )
    notify(f"{all_fit if held == all_of_them else part} dali takes {size(plan.ram)} in all.")
