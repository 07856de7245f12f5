"""One request: its tokens, its keys and values, and the text that is final so far."""

from __future__ import annotations

from collections import deque
from itertools import count
from typing import Any

from torch import Tensor

from dali.engine.sampling import Sampler, SamplingParams
from dali.engine.text.detokenizer import Detokenizer
from dali.engine.text.stop import StopStrings
from dali.errors import DaliError
from dali.step.kv import KVCache

_NUMBERS = count()


class Sequence:
    """A prompt and what was generated after it.

    `finish_reason`: None while live, then "stop", "length", "abort", or "error" with the `error` that ended it.
    """

    def __init__(
        self, prompt: list[int], params: SamplingParams, tokenizer: Any, eos: frozenset[int], limit: int
    ) -> None:
        """`limit`: tokens, prompt included, at which the sequence ends with "length"."""
        self.number = next(_NUMBERS)  # no other sequence ever has it
        self.tokens = list(prompt)
        self.prompt_tokens = len(prompt)
        self.cached_tokens = 0  # prompt tokens taken over from an earlier sequence
        self.computed = 0  # tokens whose keys and values are in `kv`
        self.kv = KVCache()
        self.sampler = Sampler(params)
        self.finish_reason: str | None = None
        self.error: DaliError | None = None
        self.pieces: deque[str] = deque()  # final text not yet taken
        self.prefill_seconds = 0.0
        self.decode_seconds = 0.0
        self._eos = frozenset() if params.ignore_eos else eos
        self._limit = limit
        self._detokenizer = Detokenizer(tokenizer)
        self._stop = StopStrings(params.stop)

    def continue_text(self) -> None:
        """Decode what follows as a continuation of the prompt: some tokenizers drop the first token's leading space."""
        self._detokenizer.push(self.tokens[-1])

    @property
    def generated(self) -> list[int]:
        return self.tokens[self.prompt_tokens :]

    @property
    def pending(self) -> int:
        """Tokens still to compute before the next one can be sampled; 1 while decoding."""
        return len(self.tokens) - self.computed

    @property
    def in_prefill(self) -> bool:
        return self.computed < self.prompt_tokens

    def advance(self, logits: Tensor) -> None:
        """Choose the next token from logits [vocabulary]; what goes wrong ends this sequence and no other."""
        try:
            self.push(self.sampler.sample(logits))
        except DaliError as error:
            self.error = error
            self._finish("error")

    def push(self, token: int) -> None:
        """Take a sampled token."""
        if token in self._eos:
            self._finish("stop")
            return
        self.tokens.append(token)
        text, stopped = self._stop.push(self._detokenizer.push(token))
        self._emit(text)
        if stopped:
            self.finish_reason = "stop"
        elif len(self.tokens) >= self._limit:
            self._finish("length")

    def abort(self) -> None:
        if self.finish_reason is None:
            self._finish("abort")

    def _finish(self, reason: str) -> None:
        self.finish_reason = reason
        text, stopped = self._stop.push(self._detokenizer.flush())
        self._emit(text)
        if not stopped:
            self._emit(self._stop.flush())

    def _emit(self, text: str) -> None:
        if text:
            self.pieces.append(text)
