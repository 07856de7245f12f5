"""What one prompt got, when it is over."""

from __future__ import annotations

from dataclasses import dataclass

from dali.engine.logprobs import TokenLogprob
from dali.engine.sequence import Sequence


@dataclass(frozen=True)
class Completion:
    """What one prompt got. `finish_reason`: "stop", "length" or "abort"; seconds are measured wall-clock; `logprobs`: one for
    each of `tokens`, where they were asked for; `reasoning`: what came before the answer proper in a chat, where the model's
    tokens tell the two apart."""

    text: str
    tokens: list[int]
    prompt_tokens: int
    cached_tokens: int
    finish_reason: str
    prefill_seconds: float
    decode_seconds: float
    logprobs: list[TokenLogprob] | None = None
    reasoning: str = ""


def completion(sequence: Sequence) -> Completion:
    """The result of a finished sequence; takes the text that is left in it."""
    pieces = [] if sequence.text is None else list(sequence.text.pieces)
    return Completion(
        text="".join(piece.text for piece in pieces),
        tokens=sequence.generated,
        prompt_tokens=sequence.prompt_tokens,
        cached_tokens=sequence.cached_tokens,
        finish_reason=sequence.finish_reason or "abort",
        prefill_seconds=sequence.prefill_seconds,
        decode_seconds=sequence.decode_seconds,
        logprobs=None if sequence.request.params.logprobs is None else sequence.logprobs,
        reasoning="".join(piece.reasoning for piece in pieces),
    )
