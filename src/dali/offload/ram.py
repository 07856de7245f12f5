"""How a budget of RAM is shared out once a model is loaded whose experts are on disk."""

from __future__ import annotations

from collections.abc import Callable

from dali.engine.budget import StateBudget
from dali.engine.engine import Engine
from dali.errors import DaliError, parameter
from dali.hardware.free_memory import own_memory
from dali.loading.loaded import LoadedModel
from dali.loading.on_disk import FEWEST_TOKENS, least_chunk, step_bytes, too_small
from dali.offload.gpu import state_size
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


def share_out(
    loaded: LoadedModel, engine: Engine, options: LoadOptions, notify: Callable[[str], None]
) -> int:
    """Give experts the slots that the budget has room for, and sequences theirs for keys and values; the bytes of the prefix
    cache.

    Where nobody says how long the context shall be, it becomes shorter if a quarter of what is left cannot hold it, which is
    said. DaliError where the budget is too small: for a token's experts of a layer, or for the context asked for beside them.
    """
    pool, plan = loaded.pool, loaded.disk
    assert isinstance(pool, DiskPool) and plan is not None
    keeps = state_size(engine)
    held = own_memory() - pool.held * pool.slot_bytes
    step = engine.scheduler.step_tokens = _step_tokens(
        loaded, plan, keeps, engine.scheduler.step_tokens, plan.ram - held
    )
    used = held + _step_bytes(loaded, step)
    rest = plan.ram - used
    fewest = _fewest(loaded, keeps, step)
    least = plan.least_slots * pool.slot_bytes
    if rest < least + fewest:
        asked = plan.ram if plan.asked else None
        raise too_small(loaded.name, used + least + fewest, asked, plan.ram)
    share = 1 if options.ctx_size is not None else STATES_SHARE
    states = max(min(rest // share, rest - least), fewest)
    loaded.ctx_size = _context(loaded, keeps, step, states, options, notify)
    whole = keeps.nbytes(Reservation(loaded.ctx_size, step))
    engine.limit_states(StateBudget(whole, keeps))
    rest -= whole
    prefixes = options.cache_ram_bytes
    if prefixes is None:
        prefixes = min(rest // PREFIX_SHARE, MOST_PREFIX)
    slots = max(min((rest - prefixes) // pool.slot_bytes, pool.most_slots), plan.least_slots)
    pool.grow(slots)
    if options.prefetch == "none":
        pool.rest()
    loaded.telemetry.clear()  # of what was tried here
    _tell(loaded, pool, plan, notify)
    return prefixes


def _step_tokens(loaded: LoadedModel, plan: DiskPlan, keeps: StateSize, usual: int, room: int) -> int:
    """Prompt tokens a step: each chunk reads every expert that it needs once, so they are large, as long as what a step takes
    for a while is a small part of the budget. `room`: bytes for steps, states and experts.

    Where that leaves fewer slots than one token's experts of all layers, of which next to none would be there when the next token
    wants them, chunks are smaller, and where there is no room otherwise, as small as may be.
    """
    tokens, pool = usual, loaded.pool
    assert isinstance(pool, DiskPool)
    if not loaded.layout.format.quantized:
        return tokens

    def small_part(tokens: int) -> bool:
        return STEP_SHARE * _step_bytes(loaded, tokens) <= plan.ram

    def slots(tokens: int) -> int:
        return (room - _step_bytes(loaded, tokens) - _fewest(loaded, keeps, tokens)) // pool.slot_bytes

    while 2 * tokens <= MOST_STEP and small_part(2 * tokens):
        tokens *= 2
    a_token = min(plan.least_slots * pool.layers, pool.most_slots)
    while tokens > SMALL_STEP and not small_part(tokens) and slots(tokens) < a_token:
        tokens //= 2
    while tokens > least_chunk(loaded.layout) and slots(tokens) < plan.least_slots:
        tokens //= 2
    return tokens


def _fewest(loaded: LoadedModel, keeps: StateSize, step: int) -> int:
    """Bytes of keys and values of the shortest context."""
    return keeps.nbytes(Reservation(min(FEWEST_TOKENS, loaded.ctx_size), step))


def _step_bytes(loaded: LoadedModel, tokens: int) -> int:
    return step_bytes(loaded.layout, loaded.top_k, loaded.model, tokens)


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
