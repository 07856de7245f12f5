"""A request under way: its tokens so far, what its layers keep, and how it ended."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dali.engine.draft.ngrams import NGrams
from dali.engine.logprobs import TokenLogprob, token_logprob
from dali.engine.prefix.reading import Reading
from dali.engine.prefix.recording import Recording
from dali.engine.request import Request
from dali.engine.sampling import Highest, Sampler
from dali.engine.text.text import Text
from dali.errors import DaliError
from dali.step.size import Reservation
from dali.step.state import SequenceState

if TYPE_CHECKING:
    from dali.engine.constraint.constraint import Constraint

_NUMBERS = count()


class Sequence:
    """A prompt and what was generated after it.

    `finish_reason`: None while live, then "stop", "length", "abort", or "error" with the `error` that ended it.
    """

    def __init__(
        self, request: Request, text: Text | None = None, constraint: Constraint | None = None
    ) -> None:
        """`text` is told of each token; None where nobody reads any. `constraint`: what the answer has to be, if anything."""
        self.number = next(_NUMBERS)  # no other sequence ever has it
        self.request = request
        self.text = text
        self.constraint = constraint
        self.tokens = list(request.prompt)
        self.prompt_tokens = len(request.prompt)
        self.cached_tokens = 0  # prompt tokens taken over from an earlier sequence
        self.computed = 0  # tokens that `state` has seen
        self.state = SequenceState()
        self.reservation: Reservation | None = None  # of `state`, where memory has a budget,
        self.state_bytes = 0  # and what it takes then
        self.fresh = False  # whether nothing shall be taken over, nor left to others
        self.reading: Reading | None = None  # what is brought from disk for it before it joins
        self.recording: Recording | None = None  # what leaves it to others
        self.ngrams: NGrams | None = None  # where drafts are looked up
        self.draft: list[int] = []  # tokens that may come next, which the next step computes as well,
        self.matched = 0  # as they did once before, after so many tokens like the last ones
        self.drafted = 0  # tokens of drafts so far,
        self.accepted = 0  # and those that were chosen: each has saved the sequence a step
        self.regime = 0  # of the rotary frequencies that `state` was computed with (see hooks/rope.py)
        self.sampler = Sampler(request.params)
        self.logprobs: list[TokenLogprob] = []  # of what was generated, where the request asks for them
        self.finish_reason: str | None = None
        self.error: DaliError | None = None
        self.prefill_seconds = 0.0
        self.decode_seconds = 0.0
        # Tokens that end it.
        self.eos = frozenset() if request.params.ignore_eos else request.eos

    @property
    def generated(self) -> list[int]:
        return self.tokens[self.prompt_tokens :]

    @property
    def pending(self) -> int:
        """Tokens still to compute before the next one can be sampled; 1 while decoding."""
        return len(self.tokens) - self.computed

    @property
    def in_prefill(self) -> bool:
        """Whether tokens are computed that were not chosen just now: the prompt's, or all of them anew."""
        return self.computed < self.prompt_tokens or self.pending > 1

    def restart(self, regime: int) -> None:
        """Compute all tokens anew: what was kept belongs to another regime."""
        self.state, self.computed, self.regime = self.state.anew(), 0, regime

    def advance(self, logits: Tensor, highest: Highest | None = None) -> None:
        """Choose the next token from logits [vocabulary], `highest` as Sampler.sample has it; what goes wrong ends this sequence
        and no other."""
        try:
            self._advance(logits, highest)
        except DaliError as error:
            self.fail(error)

    def _advance(self, logits: Tensor, highest: Highest | None) -> None:
        allowed = self._allowed(len(logits))
        if allowed is not None and not len(allowed):
            self._finish("stop")
            return
        token = self.sampler.sample(logits, self.tokens, highest, allowed)
        if (most := self.request.params.logprobs) is not None and token not in self.eos:
            del self.logprobs[len(self.tokens) - self.prompt_tokens :]  # of a step that was interrupted here
            self.logprobs.append(token_logprob(logits, token, most))
        self.push(token)

    def push(self, token: int) -> None:
        """Take a sampled token."""
        if token in self.eos:
            self._finish("stop")
            return
        self.tokens.append(token)
        if self.text is not None and self.text.push(token):
            self.finish_reason = "stop"
        elif self.constraint is not None and self.constraint.over(self.generated):
            self._finish("stop")
        elif len(self.tokens) >= self.request.limit:
            self._finish("length")

    def _allowed(self, size: int) -> Tensor | None:
        """Ids of the tokens that may come next, of `size`; None for any."""
        if self.constraint is None:
            return None
        allowed = self.constraint.allowed(self.generated, size)
        if self.request.params.ignore_eos:
            ends = torch.tensor(sorted(self.request.eos), dtype=allowed.dtype)
            allowed = allowed[~torch.isin(allowed, ends)]
        return allowed

    def abort(self) -> None:
        if self.finish_reason is None:
            self._finish("abort")

    def fail(self, error: DaliError) -> None:
        """End with `error`, unless it has ended."""
        if self.finish_reason is None:
            self.error = error
            self._finish("error")

    def _finish(self, reason: str) -> None:
        if self.text is not None:
            self.text.finish()
        self.finish_reason = reason  # last: another thread may be waiting for it, to take the text
