"""Text that a terminal does not break within a word."""

from __future__ import annotations

import unicodedata

TAB = 8


class Wrapping:
    """Lets text through in whole words, each on a new line where it would go over the edge of a terminal `width` wide.

    A word is held back until it ends; one that is wider than the terminal is let through as it comes.
    """

    def __init__(self, width: int) -> None:
        self._width = max(width, 1)
        self._column = 0
        self._word = ""
        self._word_width = 0
        self._runs_on = False  # the word is wider than the terminal, and its beginning was shown

    def push(self, text: str) -> str:
        """What can be shown with `text`, which came next."""
        return "".join(map(self._letter, text))

    def flush(self) -> str:
        """The word that was held back."""
        out = self._show_word()
        self._runs_on = False
        return out

    def _letter(self, letter: str) -> str:
        if letter == "\n":
            out = self.flush()
            self._column = 0
            return out + letter
        if letter in " \t":
            out = self.flush()
            wide = 1 if letter == " " else TAB - self._column % TAB
            if self._column + wide > self._width:  # the line's end is white space enough
                self._column = self._width
                return out
            self._column += wide
            return out + letter
        width = _width(letter)
        out = self.flush() if width == 2 else ""  # Chinese and its like have no spaces, and break anywhere
        self._word += letter
        self._word_width += width
        if width == 2:
            return out + self.flush()
        if self._runs_on or self._word_width > self._width:
            out += self._show_word()
            self._runs_on = True
        return out

    def _show_word(self) -> str:
        out, width = self._word, self._word_width
        self._word, self._word_width = "", 0
        if self._column and not self._runs_on and self._column + width > self._width:
            out, self._column = f"\n{out}", 0
        self._column += width
        while self._column > self._width:  # the terminal breaks what is wider
            self._column -= self._width
        return out


def _width(letter: str) -> int:
    """Columns of a terminal."""
    if unicodedata.combining(letter) or unicodedata.category(letter) in ("Cf", "Cc", "Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1
