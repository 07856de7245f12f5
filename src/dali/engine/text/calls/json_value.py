"""Where a JSON value ends, letter by letter."""

from __future__ import annotations

import json

CONTROL = {chr(code): json.dumps(chr(code))[1:-1] for code in range(32)}


class JsonValue:
    """Follows one value, which begins with the first letter given. Line breaks that models leave unescaped in strings are
    escaped, so that any reader takes them."""

    def __init__(self) -> None:
        self.ended = False
        self._depth = 0
        self._quoted = self._escaped = self._bare = False

    @property
    def within_string(self) -> bool:
        """Whether a string is not over."""
        return self._quoted

    def push(self, text: str) -> tuple[int, str]:
        """(letters of `text` that are of the value, what they say)."""
        said: list[str] = []
        for at, letter in enumerate(text):
            if (
                not self._quoted
                and not self._depth
                and (letter in ",]} \t\r\n")
                and (self._bare or letter in ",]}")
            ):
                self.ended = True
                return at, "".join(said)
            said.append(self._follow(letter))
            if self.ended:
                return at + 1, "".join(said)
        return len(text), "".join(said)

    def _follow(self, letter: str) -> str:
        if self._quoted:
            if self._escaped:
                self._escaped = False
            elif letter == "\\":
                self._escaped = True
            elif letter == '"':
                self._quoted = False
                self.ended = not self._depth
            return CONTROL.get(letter, letter)
        if letter == '"':
            self._quoted = True
        elif letter in "[{":
            self._depth += 1
        elif letter in "]}":
            self._depth -= 1
            self.ended = not self._depth
        elif not self._depth:
            self._bare = True
        return letter
