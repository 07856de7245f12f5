"""What competes for an accelerator's memory: what sequences keep, told by the model itself, and experts."""

from __future__ import annotations

from dali.engine.draft.drafts import Drafts
from dali.engine.engine import Engine
from dali.engine.request import Request
from dali.engine.sequence import Sequence
from dali.hardware.cost import CostModel
from dali.loading.loaded import LoadedModel
from dali.loading.room import Keeps
from dali.offload.dense import dense_seconds
from dali.options import LoadOptions
from dali.policies.once.vram import Experts
from dali.step.size import Reservation, StateSize


def state_size(engine: Engine) -> StateSize:
    """What sequences keep, told by a short one."""
    short = Sequence(Request((0, 1), limit=3))
    for _ in engine.score(short):
        pass
    return short.state.size


def whole_context(keeps: StateSize, tokens: int, chunk: int, options: LoadOptions) -> Keeps:
    """Of a sequence of so many tokens, at most `chunk` of them a step."""
    one = Reservation(tokens, chunk, drafted(options))
    return Keeps(tokens, keeps.nbytes(one), keeps.moving(one))


def drafted(options: LoadOptions) -> int:
    """Tokens at most that a step may have to take back."""
    return 0 if options.draft is None else Drafts.most


def experts_of(loaded: LoadedModel, costs: CostModel) -> Experts:
    """What competes for an accelerator's memory."""
    layers = loaded.pool.layers
    return Experts(
        layers,
        loaded.pool.experts,
        loaded.top_k,
        loaded.layout.record_bytes,
        costs.costs,
        dense_seconds(loaded.model, costs, layers),
    )
