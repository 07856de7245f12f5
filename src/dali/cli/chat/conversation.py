"""What was said so far, and how the next answer is made of it."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dali.cli.chat.answer import Answer
from dali.cli.flags.chat import Chat
from dali.cli.plain_text import plain_text
from dali.cli.terminal import log
from dali.conversation import Message, plain_messages
from dali.errors import DaliError, UsageError
from dali.store import whole

if TYPE_CHECKING:
    from dali.engine.sequence import Sequence
    from dali.llm import LLM


class Conversation:
    """Messages through the model's chat template, asked as `settings` say; `settings.raw`: each prompt stands alone, as it is."""

    def __init__(self, llm: LLM, settings: Chat) -> None:
        self.llm = llm
        self.settings = settings
        self.system_prompt = settings.system_prompt
        self.last: Answer | None = None
        self._said: list[Message] = []  # without the system prompt
        self._said_that_it_is_full = False

    @property
    def messages(self) -> list[Message]:
        return [*self._opening, *self._said]

    def set(self, **values: Any) -> None:
        """From the next answer on, ask with these values of `settings`."""
        self.settings = replace(self.settings, **values)

    def answer_to(self, text: str) -> Answer:
        """The answer, yet to be streamed. UsageError: no text, no chat template, no room in the context.

        Where the context is full, the oldest turns are forgotten, as many as it takes to leave room for an answer.
        """
        check_prompt(text)
        if self.settings.raw:
            return Answer(self.llm, self.llm.sequence(text, **self.settings.sampling()))
        left = self._said
        sequence = self._sequence(left, text)
        while sequence is None:
            left = without_oldest_turn(left)
            sequence = self._sequence(left, text)
        if len(left) < len(self._said) and not self._said_that_it_is_full:
            self._said_that_it_is_full = True
            log.info(
                f"The context of {self.llm.ctx_size} tokens is full: from here on, the oldest messages are forgotten."
            )
        self._said = left
        return Answer(self.llm, sequence)

    def remember(self, text: str, answer: Answer) -> None:
        """Keep what was asked and what was said, cut short or not. Nothing said: nothing was asked."""
        self.last = answer
        if answer.text:
            self._said = [*self._said, _message("user", text), _message("assistant", answer.text)]

    def clear(self) -> None:
        """Forget all but the system prompt."""
        self._said, self._said_that_it_is_full = [], False

    def save(self, name: str) -> None:
        """Write the messages to a file, as JSON, all or none. DaliError: it cannot be written."""
        text = json.dumps(self.messages, ensure_ascii=False, indent=1)
        path = Path(os.path.expanduser(name))
        try:
            whole.check_writable(path)
            with whole.written(path) as file:
                file.write_text(f"{text}\n", encoding="utf-8")
        except OSError as error:
            raise DaliError(
                f"Cannot write {name} ({error.strerror or error}).", "Name a file in a writable folder."
            ) from error

    def load(self, name: str) -> None:
        """Go on with the messages of a file, in place of those here. DaliError: there are none in it."""
        try:
            messages = plain_messages(json.loads(plain_text(Path(os.path.expanduser(name)).read_bytes())))
        except (OSError, ValueError, DaliError) as error:
            why = error.problem if isinstance(error, DaliError) else getattr(error, "strerror", None) or error
            raise DaliError(
                f"Cannot load a conversation from {name} ({str(why).rstrip('.')}).",
                "Give a file that /save wrote: a JSON list of messages.",
            ) from error
        self.clear()
        if messages[0]["role"] == "system":
            self.system_prompt = messages.pop(0)["content"]
        self._said = messages

    @property
    def _opening(self) -> list[Message]:
        return [_message("system", self.system_prompt)] if self.system_prompt else []

    def _sequence(self, said: list[Message], text: str) -> Sequence | None:
        """What answers `text` after `said`; None where that leaves too little room, and less may be said."""
        room, predict = self.llm.ctx_size // 4, self.settings.predict
        most = self.llm.ctx_size - (room if predict is None else min(room, predict))
        messages = [*self._opening, *said, _message("user", text)]
        variables = self.settings.chat_template_kwargs
        if said and len(self.llm.chat_prompt(messages, template=variables)) > most:
            return None
        return self.llm.chat_sequence(messages, template=variables, **self.settings.sampling())


def without_oldest_turn(messages: list[Message]) -> list[Message]:
    """What is left of them without the first question and all that answers it."""
    questions = [at for at, message in enumerate(messages) if message["role"] == "user" and at > 0]
    return messages[questions[0] :] if questions else []


def check_prompt(text: str) -> None:
    """UsageError for a prompt that is blank, or that was decoded from bytes which are no text."""
    if not text.strip():
        raise UsageError("The prompt is empty.", "Give one as an argument or on stdin.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"The prompt {text!r} is not UTF-8.", "Check the terminal's encoding.") from error


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}
