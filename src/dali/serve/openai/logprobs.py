"""Log probabilities as OpenAI's two routes have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dali.engine.text.token_bytes import token_bytes

if TYPE_CHECKING:
    from dali.engine.logprobs import TokenLogprob

LEAST = -9999.0  # as OpenAI writes a token that cannot come: JSON has no infinity


def chat_logprobs(tokenizer: Any, found: Sequence[TokenLogprob]) -> dict[str, Any]:
    return {
        "content": [
            _entry(tokenizer, one.token, one.logprob)
            | {"top_logprobs": [_entry(tokenizer, token, logprob) for token, logprob in one.top]}
            for one in found
        ],
        "refusal": None,
    }


def completion_logprobs(tokenizer: Any, found: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    """offset: letters of the text before the first of them."""
    texts = [_text(tokenizer, one.token) for one in found]
    offsets = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    return {
        "tokens": texts,
        "token_logprobs": [max(one.logprob, LEAST) for one in found],
        "top_logprobs": [
            {_text(tokenizer, token): max(logprob, LEAST) for token, logprob in one.top} for one in found
        ],
        "text_offset": offsets,
    }


def _entry(tokenizer: Any, token: int, logprob: float) -> dict[str, Any]:
    spelt = token_bytes(tokenizer, token)
    return {
        "token": spelt.decode(errors="replace"),
        "logprob": max(logprob, LEAST),
        "bytes": list(spelt),
    }


def _text(tokenizer: Any, token: int) -> str:
    return token_bytes(tokenizer, token).decode(errors="replace")
