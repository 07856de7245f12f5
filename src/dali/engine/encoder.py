"""Texts and conversations as token ids, and back, by a model's tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from threading import Lock
from typing import Any

from dali.conversation import Message, encodable
from dali.engine.text.length import check_texts
from dali.engine.text.prompt import Tool, chat_prompt, plain_prompt
from dali.loading.chat_template import no_chat_template


class Encoder:
    """Threads take turns: a fast tokenizer refuses a second one while it changes its own settings."""

    def __init__(self, tokenizer: Any, name: str) -> None:
        """name: the model's, for errors."""
        self.tokenizer, self.name = tokenizer, name
        self._turn = Lock()

    def conversation(
        self, messages: Sequence[Message], tools: Sequence[Tool] | None, variables: Mapping[str, Any]
    ) -> list[int]:
        """Token ids of a conversation, ready for the assistant's answer; `variables` of the chat template. UsageError: the model
        has none, or it fails."""
        if not self.tokenizer.chat_template:
            raise no_chat_template(self.name)
        with self._turn:
            return chat_prompt(self.tokenizer, self.name, messages, tools, variables)

    def plain(self, text: str) -> list[int]:
        """Token ids of plain text that is to be continued, after what the tokenizer begins a text with."""
        with self._turn:
            return plain_prompt(self.tokenizer, text)

    def further(self, text: str) -> list[int]:
        """Token ids of text amid a text, which nothing is put before; what spells a control token is one."""
        with self._turn:
            found = self.tokenizer(encodable(text), add_special_tokens=False, verbose=False)
        ids: list[int] = found["input_ids"]
        return ids

    def text(self, ids: Sequence[int]) -> str:
        """The text of token ids, control tokens spelt out."""
        with self._turn:
            text: str = self.tokenizer.decode(
                [*ids], skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        return text

    def check(self, texts: Iterable[object], ctx_size: int, most: int) -> None:
        """TooLong where one of them is so by far, as `check_texts` has it."""
        with self._turn:
            check_texts(self.tokenizer, texts, ctx_size, most)
