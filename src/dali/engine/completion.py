"""What one prompt got, when it is over."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from dali.engine.logprobs import TokenLogprob
from dali.engine.sequence import Sequence
from dali.engine.text.piece import Call, call_id


@dataclass(frozen=True)
class Completion:
    """What one prompt got. `finish_reason`: "stop", "length" or "abort"; seconds are measured wall-clock; `logprobs`: one for
    each of `tokens`, where they were asked for; `reasoning`: what came before the answer proper in a chat, where the model's
    tokens tell the two apart; `tool_calls`: as messages hold them, arguments as an object, or as the text that
    came of one where the answer was cut off; `drafted`: tokens that were guessed, of which `accepted` were right: each saved a
    step."""

    text: str
    tokens: list[int]
    prompt_tokens: int
    cached_tokens: int
    finish_reason: str
    prefill_seconds: float
    decode_seconds: float
    logprobs: list[TokenLogprob] | None = None
    reasoning: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    drafted: int = 0
    accepted: int = 0


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
        tool_calls=_whole_calls(piece.call for piece in pieces if piece.call is not None),
        drafted=sequence.drafted,
        accepted=sequence.accepted,
    )


def _whole_calls(pieces: Iterable[Call]) -> list[dict[str, Any]]:
    calls: list[Call] = []
    for piece in pieces:
        if piece.number == len(calls):
            calls.append(piece)
        else:
            before = calls[piece.number]
            calls[piece.number] = before._replace(arguments=before.arguments + piece.arguments)
    return [
        {
            "id": call_id(),
            "type": "function",
            "function": {"name": call.name, "arguments": _object(call.arguments)},
        }
        for call in calls
    ]


def _object(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
