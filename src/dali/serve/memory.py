"""How much memory all answers under way may take for what they keep: keys, values, states."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dali.engine.budget import StateBudget
from dali.hardware.free_memory import available_ram
from dali.loading.room import HEADROOM
from dali.offload.vram import state_size

if TYPE_CHECKING:
    from dali.llm import LLM


def limit_states(llm: LLM, ram: int | None) -> StateBudget:
    """Give the engine of a loaded model its budget, unless an accelerator or experts on disk have given it one: what is free of
    the memory, or left of `ram` bytes for all of dali, beside the prefix cache. It is enough for one whole context in any case,
    as for `dali run`. Of a simulated accelerator both hold, since what it keeps lies here."""
    engine, given = llm.engine, llm.engine.budget
    simulated = llm.accelerated is not None and llm.accelerated.modelled and llm.loaded.disk is None
    if given is not None and not simulated:
        return given
    left = available_ram() if ram is None else ram - llm.expert_bytes - llm.dense_bytes
    keeps = state_size(engine)
    whole = keeps.nbytes(engine.reservation(llm.ctx_size))
    budget = StateBudget(max(left - engine.prefixes.tree.budget - HEADROOM, whole), keeps)
    if given is not None:
        budget = budget.within(given.nbytes)
    engine.limit_states(budget)
    return budget


def side_by_side(llm: LLM, budget: StateBudget) -> int:
    """Answers of the whole context that fit beside each other."""
    whole = budget.size.nbytes(llm.engine.reservation(llm.ctx_size))
    return budget.nbytes // max(whole, 1)
