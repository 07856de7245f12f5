"""A conversation as the token ids of a prompt, through the model's chat template."""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from textwrap import shorten
from typing import Any

from dali.conversation import Message, encodable
from dali.engine.text.generic_tools import in_words, takes_tools
from dali.engine.text.manners import fitted
from dali.engine.text.thinking import TAGS
from dali.errors import Unsupported, UsageError, reason

Tool = dict[str, Any] | Callable[..., Any]

OPEN, CLOSE = (
    "\ufdd3",
    "\ufdd4",
)  # around what spells a control token and is none; noncharacters, which no text has


def chat_prompt(
    tokenizer: Any,
    name: str,
    messages: Sequence[Message],
    tools: Sequence[Tool] | None = None,
    variables: Mapping[str, Any] | None = None,
) -> list[int]:
    """Token ids of `messages`, ready for an answer, or for more of the answer that comes last among them.

    What messages say is text: where it spells a control token, it becomes the letters of it. Tools that the template does not
    take are told in words. name: the model's, for errors.
    """
    variables = dict(variables or {})
    template = tokenizer.get_chat_template(None, [*tools] if tools else None)
    _check_variables(tokenizer, name, template, variables)
    goes_on = bool(begun_answer(messages))
    try:
        schemas = None if tools is None else [schema_of(tool) for tool in tools]
        if not takes_tools(template):
            messages, schemas = in_words(template, messages, schemas or ()), None
        rendered = tokenizer.apply_chat_template(
            _as_letters(tokenizer, fitted(tokenizer, template, messages)),
            tools=None if schemas is None else [_as_letters_of(tokenizer, schema) for schema in schemas],
            add_generation_prompt=not goes_on,
            continue_final_message=goes_on,
            tokenize=False,
            **variables,
        )
    except UsageError:
        raise
    except Exception as error:  # what a template calls and divides is its own affair
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == "<template>"]
        where = f" at line {lines[-1]}" if lines else ""
        raise UsageError(
            f"The chat template of {name} fails on this conversation{where} ({reason(error)}).",
            "Give messages it is made for, or another template (`dali run --chat-template`).",
        ) from error
    return _encode(tokenizer, encodable(rendered))


def begun_answer(messages: Sequence[Message]) -> str:
    """What the assistant has said in the last of `messages`, to be continued; "" where a new answer is to come."""
    last = messages[-1]
    answers = last["role"] == "assistant" and not last.get("tool_calls")
    return last.get("content") or "" if answers else ""


def _check_variables(tokenizer: Any, name: str, template: str, variables: dict[str, Any]) -> None:
    own = inspect.signature(tokenizer.apply_chat_template).parameters.keys() - {"documents"}
    for variable in variables:
        if variable in own or not re.search(rf"\b{re.escape(str(variable))}\b", template):
            raise Unsupported(
                f"The chat template of {name} has no variable {variable!r}.",
                "Leave it out: it would change nothing.",
            )


def schema_of(tool: Tool) -> dict[str, Any]:
    """What describes a tool to the model. UsageError: a function that nothing describes."""
    if isinstance(tool, dict):
        return tool
    from transformers.utils import get_json_schema

    try:
        schema: dict[str, Any] = get_json_schema(tool)
    except Exception as error:
        raise UsageError(
            f"The tool {shorten(repr(tool), 60)} cannot be described to the model ({reason(error)}).",
            "Give a function with type hints and a docstring that explains its arguments, or a JSON schema.",
        ) from error
    return schema


def _as_letters(tokenizer: Any, messages: Sequence[Message]) -> list[Message]:
    """The messages, with a sign around whatever in them spells a control token."""
    controls = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    spelt = _any_of(controls)
    of_answers = _any_of(
        controls - {tag for tags in TAGS for tag in tags}
    )  # templates look for their reasoning
    return [
        {
            name: value
            if name == "role"
            else _marked(value, of_answers if message["role"] == "assistant" else spelt)
            for name, value in message.items()
        }
        for message in messages
    ]


def _as_letters_of(tokenizer: Any, tool: dict[str, Any]) -> dict[str, Any]:
    """The same for what describes a tool, which may come from anywhere."""
    controls = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    marked: dict[str, Any] = _marked(tool, _any_of(controls))
    return marked


def _any_of(texts: set[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)")


def _marked(value: Any, spelt: re.Pattern[str]) -> Any:
    """A part of a message with signs around what is `spelt` in it."""
    if isinstance(value, str):
        return spelt.sub(f"{OPEN}\\g<0>{CLOSE}", value.replace(OPEN, "").replace(CLOSE, ""))
    if isinstance(value, dict):
        return {name: _marked(part, spelt) for name, part in value.items()}
    return [_marked(part, spelt) for part in value] if isinstance(value, list) else value


def _encode(tokenizer: Any, rendered: str) -> list[int]:
    """Token ids of a rendered conversation; what stands between the signs is text whatever it spells."""
    first, *others = re.split(f"{OPEN}([^{CLOSE}]*){CLOSE}", rendered)
    ids = _tokens(tokenizer, first)
    before = _tokens(tokenizer, "\n")  # some tokenizers put a space before a text that begins
    for at, part in enumerate(others):
        as_letters = at % 2 == 0
        found = _tokens(tokenizer, f"\n{part}", as_letters)
        whole = found[: len(before)] == before
        ids += found[len(before) :] if whole else _tokens(tokenizer, part, as_letters)
    return ids


def _tokens(tokenizer: Any, text: str, as_letters: bool = False) -> list[int]:
    text = text.replace(OPEN, "").replace(CLOSE, "")  # a template may have cut one from the other
    found = tokenizer(
        text,
        add_special_tokens=False,
        split_special_tokens=as_letters,
        verbose=False,  # of too long ones our own limit says more
    )
    ids: list[int] = found["input_ids"]
    return ids


def plain_prompt(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text that is to be continued: after what the tokenizer begins a text with, unless the text spells that, and
    without what it would end one with."""
    whole: list[int] = tokenizer(encodable(text), verbose=False)["input_ids"]
    own = _tokens(tokenizer, text)
    if not own:
        return whole if whole == [tokenizer.bos_token_id] else []
    for at in range(len(whole) - len(own) + 1):
        if whole[at : at + len(own)] == own:
            return own if own[:at] == whole[:at] else whole[:at] + own
    return whole
