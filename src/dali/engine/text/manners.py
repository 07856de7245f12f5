"""What chat templates do with a conversation differs; found by trying, and conversations are fitted to it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from dali.conversation import Message

SYSTEM = ("system", "developer")
SAID = "\ufdd5"  # looked for in what a template makes of it; a noncharacter, which no template has
BETWEEN = "\n\n"  # messages that become one


@dataclass(frozen=True)
class Manners:
    """What one template takes. `objects`: arguments of calls as objects, else as the text of one; `head`: the system may speak at
    the head, `systems`: in mid-conversation; `runs`: the user may twice in a row; `thinking`: what it calls the reasoning of a
    message."""

    objects: bool
    head: bool
    systems: bool
    runs: bool
    thinking: str

    @staticmethod
    @lru_cache(maxsize=8)
    def of(tokenizer: Any, template: str) -> Manners:
        called = {"qz": SAID}
        as_object = _rendered(tokenizer, template, _with_call(called))
        as_text = _rendered(tokenizer, template, _with_call(json.dumps(called, ensure_ascii=False)))
        objects = (SAID in as_object and "'qz'" not in as_object) or SAID not in as_text
        head = SAID in _rendered(tokenizer, template, [_message("system", SAID), _message("user")])
        systems = SAID in _rendered(
            tokenizer,
            template,
            [_message("user"), _message("assistant"), _message("system", SAID), _message("user")],
        )
        runs = SAID in _rendered(tokenizer, template, [_message("user"), _message("user", SAID)])
        own = "reasoning_content" not in template and re.search(r"\bmessage\.thinking\b", template)
        return Manners(objects, head, systems, runs, "thinking" if own else "reasoning_content")


def fitted(tokenizer: Any, template: str, messages: Sequence[Message]) -> list[Message]:
    """`messages` as this template takes them. What the system says at the head becomes one message; where the template does not
    let it speak, the user does; what the user says in a row is one message where it has to be. Arguments of calls are as the
    template wants them; results have the name of what was called."""
    messages = _one_head(messages)
    roles = [message["role"] for message in messages]
    if (
        roles[0] not in SYSTEM
        and not {*SYSTEM, "assistant", "tool"} & {*roles[1:]}
        and roles.count("user") < 2
    ):
        return messages
    manners = Manners.of(tokenizer, template)
    return [_fitted(message, manners) for message in _named(_turns(messages, manners))]


def _turns(messages: list[Message], manners: Manners) -> list[Message]:
    fit: list[Message] = []
    joins = False  # the last message is the user's, and what he says next belongs to it
    for message in messages:
        moved = message["role"] in SYSTEM and not (manners.systems if fit else manners.head)
        if moved:
            message = {"role": "user", "content": message["content"]}
        if message["role"] == "user" and fit and fit[-1]["role"] == "user" and (moved or joins):
            fit[-1] = fit[-1] | {"content": f"{fit[-1]['content']}{BETWEEN}{message['content']}"}
        else:
            fit.append(message)
        joins = message["role"] == "user" and (moved or not manners.runs)
    return fit


def _named(messages: list[Message]) -> Iterator[Message]:
    """With the names of what was called in the results."""
    names: dict[Any, str] = {}
    for message in messages:
        names |= {call.get("id"): call["function"]["name"] for call in message.get("tool_calls") or ()}
        if message["role"] == "tool" and not message.get("name") and message.get("tool_call_id") in names:
            message = message | {"name": names[message["tool_call_id"]]}
        yield message


def _fitted(message: Message, manners: Manners) -> Message:
    if message.get("tool_calls"):
        calls = [_call(call, manners.objects) for call in message["tool_calls"]]
        message = message | {"tool_calls": calls, "content": message.get("content") or ""}
    if "reasoning_content" not in message:
        return message
    return {
        manners.thinking if name == "reasoning_content" else name: value for name, value in message.items()
    }


def _one_head(messages: Sequence[Message]) -> list[Message]:
    head = next((at for at, message in enumerate(messages) if message["role"] not in SYSTEM), len(messages))
    if head < 2:
        return list(messages)
    said = BETWEEN.join(message["content"] for message in messages[:head])
    return [messages[0] | {"content": said}, *messages[head:]]


def _call(call: dict[str, Any], objects: bool) -> dict[str, Any]:
    function = call["function"]
    arguments = function.get("arguments")
    if isinstance(arguments, str) and objects:
        arguments = _object(arguments)
    elif not isinstance(arguments, str) and not objects:
        arguments = json.dumps(arguments or {}, ensure_ascii=False)
    return call | {"function": function | {"arguments": {} if arguments is None else arguments}}


def _object(text: str) -> dict[str, Any]:
    """Arguments that a model cut off or misspelt are shown to it as they were."""
    try:
        value = json.loads(text or "{}", strict=False)
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"arguments": text}


def _with_call(arguments: Any) -> list[Message]:
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "qz", "arguments": arguments}}
    return [
        _message("user"),
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "a", "name": "qz", "tool_call_id": "abcdefghi"},
    ]


def _message(role: str, content: str = "a") -> Message:
    return {"role": role, "content": content}


def _rendered(tokenizer: Any, template: str, messages: list[Message]) -> str:
    try:
        return str(tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False))
    except Exception:  # a template that refuses it
        return ""
