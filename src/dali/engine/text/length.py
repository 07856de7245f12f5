"""Prompts that leave no room for an answer in the context."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dali.errors import TooLong, parameter

LETTERS = 16  # a token, more than any text has on average that is not made for it
SLACK = 64  # tokens that a text may lose where its beginning is cut off


def check_texts(tokenizer: Any, texts: Iterable[object], ctx_size: int, most: int) -> None:
    """TooLong where one of them is so by far. It looks at no more than a beginning, as a tokenizer takes seconds for a megabyte,
    and others wait for it."""
    for text in texts:
        if isinstance(text, str) and len(text) > 2 * LETTERS * ctx_size:
            beginning = tokenizer(text[: LETTERS * ctx_size], add_special_tokens=False, verbose=False)
            if len(beginning["input_ids"]) > ctx_size + SLACK:
                raise too_long(f"more than {ctx_size}", ctx_size, most)


def too_long(tokens: object, ctx_size: int, most: int) -> TooLong:
    """most: tokens of the largest context that the model can have."""
    raising = "" if ctx_size == most else f", or raise {parameter('ctx_size')} (at most {most})"
    return TooLong(
        f"The prompt has {tokens} tokens; with a context of {ctx_size} at most {ctx_size - 1} leave room for an answer.",
        f"Shorten it{raising}.",
    )
