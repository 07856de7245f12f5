"""Whether a loaded model may have drafts: a step must give a token the same bits whatever else of its sequence it computes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dali.engine.draft.drafts import Drafts
from dali.engine.engine import Engine
from dali.engine.request import Request
from dali.engine.sampling import SamplingParams
from dali.engine.scheduler import Scheduler
from dali.engine.sequence import Sequence
from dali.errors import DaliError, parameter
from dali.fused.dense import linears_of
from dali.kernels import native
from dali.telemetry import Telemetry

PROMPT = 1  # tokens of the probe
LENGTHS = (1, 3, Drafts.most)  # of its drafts, one a step; the last token of each is wrong
OTHERS = "Leave it out, or choose a quantized format such as w8."


class Given:
    """Stands in for a sampler: chooses given tokens and keeps the logits."""

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = iter(tokens)
        self.logits: list[Tensor] = []

    def sample(self, logits: Tensor, *others: object) -> int:
        self.logits.append(logits.clone())
        return next(self._tokens)


class Probing(Drafts):
    """Drafts of given lengths, right but for the last token."""

    def __init__(self, tokens: list[int]) -> None:
        super().__init__(Telemetry())
        self._tokens, self._lengths = tokens, iter(LENGTHS)

    def propose(self, scheduler: Scheduler) -> None:
        for sequence in scheduler.live:
            begin = len(sequence.tokens)
            if not sequence.in_prefill and (length := next(self._lengths, 0)):
                draft = self._tokens[begin : begin + length][: sequence.request.limit - 1 - begin]
                sequence.draft = [*draft[:-1], self._tokens[0]] if draft else []


def open_drafts(engine: Engine, name: str, ctx_size: int, telemetry: Telemetry) -> Drafts:
    """Drafts for a model that is in memory and called so. DaliError where they would change its answers' bits."""
    refuse_torch(engine, name)
    vocabulary = engine.model.config.get_text_config().vocab_size
    count = min(PROMPT + sum(LENGTHS) + 2, ctx_size, *engine.scheduler.limits)  # in one regime
    tokens = [(7 + 31 * i) % vocabulary for i in range(count)]
    plain, drafted = (_logits(engine, tokens, drafts) for drafts in (None, Probing(tokens)))
    engine.forget()
    telemetry.clear()
    if not all(map(torch.equal, plain, drafted)):
        raise DaliError(
            f"{parameter('draft')} would change the last bits of what {name} computes: a part of it gives a token other bits "
            "where several are computed at once.",
            "Leave it out.",
        )
    return Drafts(telemetry)


def refuse_torch(engine: Engine, name: str) -> None:
    """DaliError where torch computes products, whose bits depend on how many rows they have."""
    model: Any = engine.model
    if not native.enabled():
        raise DaliError(
            f"{parameter('draft')} needs the compiled kernels: torch gives a token other bits where it computes several.",
            "Leave it out, or install dali with its compiled kernels and without DALI_KERNELS=torch.",
        )
    linears = linears_of(model)
    if linears or (engine.decoder is None and model.device.type != "cpu"):
        part = f"{len(linears)} linears" if linears else "all but the experts"
        raise DaliError(
            f"{parameter('draft')} would change the last bits of answers: torch computes {part} of {name}, and gives a "
            "token other bits where it computes several.",
            OTHERS,
        )


def _logits(engine: Engine, tokens: list[int], drafts: Drafts | None) -> list[Tensor]:
    """What each of `tokens` but the first few is chosen from."""
    engine.drafts = drafts
    params = SamplingParams(temperature=0, ignore_eos=True)
    sequence = Sequence(Request(tuple(tokens[:PROMPT]), len(tokens), params))
    given = Given(tokens[PROMPT:])
    sequence.sampler = given  # type: ignore[assignment]
    try:
        engine.add(sequence, fresh=True)
        while engine.step():
            pass
    finally:
        engine.drafts = None
        engine.abort(sequence)
    return given.logits
