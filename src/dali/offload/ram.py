"""How a budget of RAM is shared out once a model is loaded whose experts are on disk."""

from __future__ import annotations

from collections.abc import Callable

from dali.devices import Device, SimDevice
from dali.devices.cuda import GpuSlots
from dali.engine.budget import StateBudget
from dali.engine.engine import Engine
from dali.errors import DaliError, parameter
from dali.hardware.free_memory import own_memory
from dali.loading.loaded import LoadedModel
from dali.loading.on_disk import FEWEST_TOKENS, LEAST_STEP, STEP, step_bytes, too_small
from dali.offload.gpu import state_size, tell_pinned
from dali.options import LoadOptions
from dali.step.kv import Reservation
from dali.step.size import StateSize
from dali.store.disk_pool import DiskPlan, DiskPool
from dali.units import size

STATES_SHARE = (
    4  # a part so large of what dense weights leave may go to keys and values, where no context is asked for,
)
PREFIX_SHARE = 16  # and one so large to the prefix cache
MOST_PREFIX = 2**30
STEP_SHARE = 12  # of the budget, for what a step takes for a while
MOST_STEP = 4096  # prompt tokens, in which others wait for theirs
SMALL_STEP = 256  # prompt tokens of chunks that are smaller for the sake of more experts
BUFFERS = 4  # of outputs by (token, choice) pair, that the runtime over an accelerator has on the host


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
    if keeps is not None and loaded.layout.format.quantized:  # over a GPU, kernels' memory is for no more
        context = loaded.ctx_size if options.ctx_size is not None else min(FEWEST_TOKENS, loaded.ctx_size)
        step = engine.scheduler.step_tokens = _step_tokens(
            loaded, min(step, STEP), plan.ram - held, keeps, context, device
        )
    used = held + _step_bytes(loaded, step, device)
    least = plan.least_slots * pool.slot_bytes
    whole = 0 if keeps is None else _limit(loaded, engine, keeps, step, used, options, notify)
    rest = plan.ram - used
    if rest < least + whole:
        raise too_small(loaded.name, used + least + whole, plan.ram if plan.asked else None, plan.ram)
    rest -= whole
    prefixes = options.cache_ram_bytes
    if prefixes is None:
        prefixes = min(rest // PREFIX_SHARE, MOST_PREFIX)
    slots = max(min((rest - prefixes) // pool.slot_bytes, pool.most_slots), plan.least_slots)
    pool.grow(slots)
    if options.prefetch == "none":
        pool.rest()
    if device is not None:
        device.pin(pool.memory)
        tell_pinned(device, notify)
    loaded.telemetry.clear()  # of what was tried here
    _tell(loaded, pool, plan, notify)
    return prefixes


def _limit(
    loaded: LoadedModel,
    engine: Engine,
    keeps: StateSize,
    step: int,
    used: int,
    options: LoadOptions,
    notify: Callable[[str], None],
) -> int:
    """Limit what sequences keep in RAM, of which `used` bytes are taken; the bytes that they may take."""
    plan = loaded.disk
    assert plan is not None
    rest = plan.ram - used
    fewest = keeps.nbytes(Reservation(min(FEWEST_TOKENS, loaded.ctx_size), step))
    least = plan.least_slots * loaded.layout.record_bytes
    if rest < least + fewest:
        raise too_small(loaded.name, used + least + fewest, plan.ram if plan.asked else None, plan.ram)
    share = 1 if options.ctx_size is not None else STATES_SHARE
    states = max(min(rest // share, rest - least), fewest)
    loaded.ctx_size = _context(loaded, keeps, step, states, options, notify)
    whole = keeps.nbytes(Reservation(loaded.ctx_size, step))
    engine.limit_states(StateBudget(whole, keeps))
    return whole


def _step_tokens(
    loaded: LoadedModel, tokens: int, room: int, keeps: StateSize, context: int, device: Device | None
) -> int:
    """Prompt tokens a step: each chunk reads every expert that it needs once, so they are large, as long as what a step takes
    for a while is a small part of the budget. `tokens`: to begin with; `room`: bytes for steps, states of so long a `context` and
    experts. Not for floats, which are computed in chunks as they are with all experts in RAM, whose bits they have.

    Where that leaves fewer slots than one token's experts of all layers, of which next to none would be there when the next token
    wants them, chunks are smaller, and where there is no room otherwise, as small as may be. Not over an accelerator.
    """
    pool, plan = loaded.pool, loaded.disk
    assert isinstance(pool, DiskPool) and plan is not None
    budget, least = plan.ram, plan.least_slots

    def small_part(tokens: int) -> bool:
        return STEP_SHARE * _step_bytes(loaded, tokens, device) <= budget

    def slots(tokens: int) -> int:
        states = keeps.nbytes(Reservation(context, tokens))
        return (room - _step_bytes(loaded, tokens, device) - states) // pool.slot_bytes

    while 2 * tokens <= MOST_STEP and small_part(2 * tokens):
        tokens *= 2
    if device is not None:
        return tokens
    a_token = min(least * pool.layers, pool.most_slots)
    while tokens > SMALL_STEP and not small_part(tokens) and slots(tokens) < a_token:
        tokens //= 2
    while tokens > LEAST_STEP and slots(tokens) < least:
        tokens //= 2
    return tokens


def _step_bytes(loaded: LoadedModel, tokens: int, device: Device | None) -> int:
    staged = 0 if device is None else BUFFERS * 4 * tokens * loaded.top_k * loaded.layout.shape.hidden
    return step_bytes(loaded.layout, loaded.top_k, loaded.model, tokens) + staged


def _context(
    loaded: LoadedModel,
    keeps: StateSize,
    step: int,
    room: int,
    options: LoadOptions,
    notify: Callable[[str], None],
) -> int:
    """Tokens of context whose keys and values take no more than `room` bytes, and no more than the model may have."""
    most = loaded.ctx_size
    if keeps.nbytes(Reservation(most, step)) <= room:
        return most
    low, high = 2, most
    while low + 1 < high:  # the first has room, the second has not
        tokens = (low + high) // 2
        low, high = (tokens, high) if keeps.nbytes(Reservation(tokens, step)) <= room else (low, tokens)
    if options.ctx_size is not None:
        raise DaliError(
            f"The keys and values of {most} tokens may take {size(keeps.nbytes(Reservation(most, step)))}, and the budget of RAM "
            f"has {size(room)} for them.",
            f"Lower {parameter('ctx_size')} to {low}, or raise {parameter('ram')}.",
        )
    notify(f"The context is {low} tokens of {most}, as many as the budget of RAM has room for.")
    return low


def _tell(loaded: LoadedModel, pool: DiskPool, plan: DiskPlan, notify: Callable[[str], None]) -> None:
    held, all_of_them = pool.slots, pool.layers * pool.experts
    where = "" if pool.direct else ", whose file system reads through the page cache"
    all_fit = f"RAM has room for all {held} experts, read from {pool.path}{where} as they are wanted."
    part = (
        f"RAM has room for {held} of {all_of_them} experts ({size(pool.nbytes)} of {size(pool.stored_bytes)}): the others are "
        f"read from {pool.path}{where} when they are wanted, which is slower."
    )
    notify(f"{all_fit if held == all_of_them else part} dali takes {size(plan.ram)} in all.")
