"""What was said so far, and how the next answer is made of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dali.cli.chat.answer import Answer
from dali.errors import UsageError

if TYPE_CHECKING:
    from dali.llm import LLM


class Conversation:
    """Messages through the model's chat template; `raw`: each prompt stands alone, as it is."""

    def __init__(
        self, llm: LLM, sampling: dict[str, Any], system_prompt: str | None = None, raw: bool = False
    ) -> None:
        self.llm = llm
        self._raw = raw
        self._opening = [_message("system", system_prompt)] if system_prompt else []
        self._messages = list(self._opening)
        self._sampling = sampling

    def answer_to(self, text: str) -> Answer:
        """The answer, yet to be streamed. UsageError: no text, no chat template, no room in the context."""
        check_prompt(text)
        prompt = text if self._raw else self.llm.chat_prompt([*self._messages, _message("user", text)])
        return Answer(self.llm, prompt, self._sampling)

    def remember(self, text: str, answer: Answer) -> None:
        """Keep what was asked and what was said, cut short or not. Nothing said: nothing was asked."""
        if answer.text:
            self._messages += [_message("user", text), _message("assistant", answer.text)]

    def clear(self) -> None:
        """Forget all but the system prompt."""
        self._messages = list(self._opening)


def check_prompt(text: str) -> None:
    """UsageError for a prompt that is blank, or that was decoded from bytes which are no text."""
    if not text.strip():
        raise UsageError("The prompt is empty.", "Give one as an argument or on stdin.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"The prompt {text!r} is not UTF-8.", "Check the terminal's encoding.") from error


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
