"""What sequences keep in an accelerator's memory, told by the model itself."""

from __future__ import annotations

from dali.engine.draft.drafts import Drafts
from dali.engine.engine import Engine
from dali.engine.request import Request
from dali.engine.sequence import Sequence
from dali.loading.room import Keeps
from dali.options import LoadOptions
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
