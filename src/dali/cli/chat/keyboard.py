"""Messages as a user types or pastes them."""

from __future__ import annotations

import select
import sys

from dali.cli.chat.history import History
from dali.store.cache import cache_root

try:
    import readline  # gives input() line editing and a history
except ImportError:
    readline = None  # type: ignore[assignment]

BLOCK = '"""'
PASTING = 0.03  # seconds within which the next line of what is pasted has come
FIRST, MORE = "> ", "... "


class Keyboard:
    """Reads one message after the other from stdin."""

    def __init__(self) -> None:
        self._history: History | None = None
        if readline is not None:
            self._history = History(readline, cache_root() / "history")
            if "libedit" not in (readline.__doc__ or ""):
                readline.parse_and_bind("set enable-bracketed-paste on")  # what is pasted is one input

    @staticmethod
    def has_begun() -> bool:
        """Whether a line was begun and not ended."""
        return bool(readline and readline.get_line_buffer())

    def read(self) -> str:
        '''The next message: a line, or several: as pasted, between """ and """, or each but the last ending in a backslash.
        Raises what input() does.'''
        text = _line(FIRST)
        while not text.lstrip().startswith("/"):
            if text.lstrip().startswith(BLOCK):
                if len(text.strip()) >= 2 * len(BLOCK) and text.rstrip().endswith(BLOCK):
                    text = text.strip().removeprefix(BLOCK).removesuffix(BLOCK)
                    break
            elif text.endswith("\\"):
                text = text[:-1]
            elif not _more_is_there():
                break
            text += "\n" + _line(MORE)
        text = text.strip()
        if text and self._history is not None:
            self._history.add(text)
        return text


def _line(prompt: str) -> str:
    if sys.stdout.isatty():
        return input(prompt)
    print(prompt, end="", file=sys.stderr, flush=True)  # stdout is for answers
    return input()


def _more_is_there() -> bool:
    """Whether the next line is there already: a terminal that does not tell what is pasted gives it line by line."""
    if not (sys.stdin and sys.stdin.isatty()):
        return False
    try:
        return bool(select.select([sys.stdin], [], [], PASTING)[0])
    except (OSError, ValueError):  # not for a terminal's input, on some systems
        return False
