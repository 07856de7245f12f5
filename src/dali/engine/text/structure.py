"""How an answer is divided into reasoning, text and calls of tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from dali.engine.constraint.lark import Lark
from dali.engine.text.calls.calling import Calling
from dali.engine.text.calls.form import Form
from dali.engine.text.calls.found import form_of
from dali.engine.text.declared import Declared
from dali.engine.text.generic_tools import AFTER, FORM, takes_tools
from dali.engine.text.harmony import CHANNEL, MARKERS, MESSAGE, START, Harmony
from dali.engine.text.piece import Piece
from dali.engine.text.thinking import TAGS, Thinking
from dali.errors import UsageError

LOOKED_AT = (
    16  # last tokens of a prompt that may open reasoning: a tag that is not one token, and white space
)


class Structure(Protocol):
    """What an answer's tokens say beside their text: one object an answer. No marker is ever part of a piece."""

    over: bool
    """Whether the answer ends here, whatever the model would say next."""
    markers: Mapping[int, str]
    """Tokens that may divide the answer, and what each spells."""

    def push(self, text: str) -> list[Piece]:
        """The pieces that are final with `text`, which came next."""

    def mark(self, marker: str) -> list[Piece]:
        """The pieces that are final with a marker, which came next as a token of its own."""

    def flush(self) -> list[Piece]:
        """What was held back, at the end of the answer."""

    def lead(self, lark: Lark) -> str:
        """The expression of what may come before text and calls, "" for nothing. UsageError where nobody has written it down."""


class Plain:
    """All is text."""

    over = False
    markers: Mapping[int, str] = {}

    def push(self, text: str) -> list[Piece]:
        return [Piece(text)] if text else []

    def mark(self, marker: str) -> list[Piece]:
        return self.push(marker)

    def flush(self) -> list[Piece]:
        return []

    def lead(self, lark: Lark) -> str:
        return ""


def structure_of(tokenizer: Any, prompt: list[int], said: str = "") -> Structure:
    """What an answer to `prompt`, token ids of a conversation, will be divided by; `said`: how the prompt begins the answer.

    It is found in the tokenizer's tokens, in its chat template, or in what it declares itself.
    """
    added: dict[str, int] = tokenizer.get_added_vocab()
    if {START, CHANNEL, MESSAGE} <= added.keys() and added[START] in prompt:
        harmony = Harmony({added[marker]: marker for marker in MARKERS if marker in added})
        begun = prompt[len(prompt) - prompt[::-1].index(added[START]) :]
        harmony.resume(harmony.markers.get(token) or tokenizer.decode([token]) for token in begun)
        return harmony
    template = str(tokenizer.chat_template)
    for tags in TAGS:
        if tags[1] in added or tags[1] in template:
            markers = {id: token for token, id in added.items() if any(token in tag for tag in tags)}
            control = [token for id, token in markers.items() if tokenizer.added_tokens_decoder[id].special]
            end = "" if said else tokenizer.decode(prompt[-LOOKED_AT:], skip_special_tokens=False)
            opened, closed = (end.rstrip().endswith(tag) for tag in tags)
            thinking = Thinking(tags, markers, opened, control, closed)
            if said:
                thinking.resume(said)
            return thinking
    if getattr(tokenizer, "response_template", None):
        return Declared(tokenizer, prompt)
    return Plain()


def calling_structure_of(
    tokenizer: Any, prompt: list[int], said: str, tools: Sequence[Mapping[str, Any]], most: int | None
) -> Structure:
    """The same, where calls of `tools`, JSON schemas, are told apart; after `most` of them the answer ends, None for any number.

    UsageError: nothing in the tokenizer or the chat template tells in which form the model writes calls.
    """
    if declares_calls(tokenizer):
        return Declared(tokenizer, prompt, tools, most)
    structure = structure_of(tokenizer, prompt, said)
    if isinstance(structure, Harmony):
        structure.tell_calls(most)
        return structure
    form, _ = form_and_template(tokenizer)
    if form is None:
        raise UsageError(
            "The chat template takes tools, and asks for calls in a form that dali does not know.",
            "Ask without tools, or use a model that writes its calls as one of those in docs/SERVING.md.",
        )
    return Calling(structure, form, tokenizer, tools, most)


def tells_calls(tokenizer: Any) -> bool:
    """Whether calls can be told apart in answers of the model, its own or those that it is asked for in words."""
    if not tokenizer.chat_template:
        return False
    in_channels = {START, CHANNEL, MESSAGE} <= tokenizer.get_added_vocab().keys()
    return declares_calls(tokenizer) or in_channels or form_and_template(tokenizer)[0] is not None


def generic_tools(tokenizer: Any) -> bool:
    """Whether the model has a template, and is told of tools in dali's words as that takes none."""
    return bool(tokenizer.chat_template) and not takes_tools(_template_with_tools(tokenizer))


def declares_calls(tokenizer: Any) -> bool:
    declared = getattr(tokenizer, "response_template", None)
    return isinstance(declared, dict) and "tool_calls" in declared.get("fields", ())


def form_and_template(tokenizer: Any) -> tuple[Form | None, str]:
    """The form of calls, None where it is not known, and the template, or the words, that ask for it."""
    if generic_tools(tokenizer):
        return FORM, AFTER
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    template = _template_with_tools(tokenizer)
    return form_of(template, special), template


def _template_with_tools(tokenizer: Any) -> str:
    """The one that conversations with tools go through."""
    return str(tokenizer.get_chat_template(None, [{}]))
