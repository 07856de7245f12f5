"""What a user can tell the chat itself: lines that begin with a slash."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dali.cli.chat.conversation import Conversation
from dali.cli.flags.option import Option, options_of
from dali.cli.terminal import log
from dali.errors import UsageError

COMMANDS = {
    "/clear": "forget the conversation",
    "/set NAME VALUE": "a flag of the answer from now on, as in /set temp 0.2; alone: what they are",
    "/system TEXT": "what the model is told before the first message; alone: what it is",
    "/save FILE": "write the messages to a file, as JSON",
    "/load FILE": "go on with a file's messages",
    "/stats": "what the last answer took",
    "/exit, /bye": "leave, as Ctrl-D does",
    "/help": "this",
}
HELP = "\n".join(
    [
        *(f"{name:<16} {does}" for name, does in COMMANDS.items()),
        "",
        'Ctrl-C stops an answer. A message has several lines if it is pasted, if it begins and ends with """, or where lines end '
        "with a backslash.",
    ]
)
LEAVE = ("/exit", "/bye")


def is_command(text: str) -> bool:
    """Whether this is told the chat: one line that begins with a slash, and with no path that words follow."""
    first, *more = text.split(None, 1) or [""]
    return text.startswith("/") and "\n" not in text and not ("/" in first[1:] and more)


def run_command(text: str, conversation: Conversation) -> bool:
    """Do what was told; whether to go on with the chat. DaliError: it cannot be."""
    name, _, rest = text.partition(" ")
    rest = rest.strip()
    if name in LEAVE and not rest:
        return False
    if name in _WITHOUT and not rest:
        _WITHOUT[name](conversation)
    elif name in _WITH:
        _WITH[name](conversation, rest)
    elif name in _WITHOUT or name in LEAVE:
        raise UsageError(f"{name} takes nothing more, and {rest!r} was given.", "Write it alone.")
    else:
        known = ", ".join(
            word for usage in COMMANDS for word in usage.replace(",", "").split() if word[0] == "/"
        )
        raise UsageError(
            f"There is no command {name!r}.",
            f"Choose one of {known}; a question that begins with a slash needs a word before it.",
        )
    return True


def _clear(conversation: Conversation) -> None:
    conversation.clear()
    log.info("The conversation is forgotten.")


def _stats(conversation: Conversation) -> None:
    if conversation.last is None:
        raise UsageError("There was no answer yet.", "Ask something first.")
    log.info(conversation.last.summary(long=True))


def _set(conversation: Conversation, rest: str) -> None:
    options: dict[str, Option] = {
        option.name: option
        for option in options_of(type(conversation.settings))
        if option.heading == "answer"
    }
    name, _, value = rest.partition(" ")
    if not rest:
        for option in options.values():
            log.info(f"{option.name:<18} {_shown(getattr(conversation.settings, option.key))}")
        return
    option = options.get(name.lstrip("-").replace("_", "-"))  # type: ignore[assignment]
    if option is None:
        raise UsageError(f"There is no {name!r} to set.", f"Choose one of {', '.join(options)}.")
    read: Any = option.read(value.strip(), f"/set {option.name}")
    conversation.set(**{option.key: (read,) if option.repeatable else read})


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(repr, value)) or "none"
    return "the model's own" if value is None else str(value)


def _system(conversation: Conversation, rest: str) -> None:
    if conversation.settings.raw:
        raise UsageError("With --raw there is no system prompt.", "Start without it.")
    if rest:
        conversation.system_prompt = rest
    log.info(f"System prompt: {conversation.system_prompt or 'none'}")


def _save(conversation: Conversation, rest: str) -> None:
    conversation.save(_file(rest, "/save"))
    log.info(f"{len(conversation.messages)} messages are in {rest}.")


def _load(conversation: Conversation, rest: str) -> None:
    conversation.load(_file(rest, "/load"))
    log.info(f"{len(conversation.messages)} messages from {rest}.")


def _file(rest: str, command: str) -> str:
    if not rest:
        raise UsageError(f"{command} needs the name of a file.", f"Write {command} FILE.")
    return rest


_WITHOUT: dict[str, Callable[[Conversation], None]] = {
    "/clear": _clear,
    "/stats": _stats,
    "/help": lambda conversation: log.info(HELP),
}
_WITH: dict[str, Callable[[Conversation, str], None]] = {
    "/set": _set,
    "/system": _system,
    "/save": _save,
    "/load": _load,
}
