"""Errors a user can meet. Each says what is wrong (with the offending value) and what to do about it."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from typing import Any

_BEGIN, _END = "\ufdd0", "\ufdd1"  # noncharacters, which no text has


def parameter(name: str) -> str:
    """How an error's sentences name a parameter of the library: Python's users then read `name`, and those of the command its
    flag."""
    return f"{_BEGIN}{name}{_END}"


class DaliError(Exception):
    """A failure at run time: the command exits with code 1.

    `problem` is one sentence that shows the offending value, `fix` one sentence with the way out.
    """

    exit_code = 1

    def __init__(self, problem: str, fix: str) -> None:
        self._sentences = problem, fix
        self.problem, self.fix = self.told(str)
        super().__init__(f"{self.problem}\n{self.fix}")

    def told(self, shown: Callable[[str], str]) -> tuple[str, str]:
        """`problem` and `fix`, with each parameter as `shown` writes its name."""

        def tell(sentence: str) -> str:
            return re.sub(f"{_BEGIN}(.*?){_END}", lambda found: shown(found[1]), sentence)

        problem, fix = self._sentences
        return tell(problem), tell(fix)

    def about(self, there: str, name: str) -> DaliError:
        """The same error, with `name` wherever it speaks of what lies `there`."""
        return _restored(type(self), *(sentence.replace(there, name) for sentence in self._sentences))

    def __reduce__(self) -> tuple[Any, ...]:
        """So that another process can hand it back, whatever a subclass takes."""
        return _restored, (type(self), *self._sentences)


def _restored(kind: type[DaliError], problem: str, fix: str) -> DaliError:
    error = kind.__new__(kind)
    DaliError.__init__(error, problem, fix)
    return error


class UsageError(DaliError):
    """A request that cannot be meant: an unknown flag value, an impossible budget. Exit code 2."""

    exit_code = 2


class Unsupported(UsageError):
    """A request that can be meant, and not done: with a schema or a variable that is beyond dali or the model."""


class TooLong(UsageError):
    """A prompt that leaves no room for an answer in the context."""


def unreadable(path: object, error: OSError) -> DaliError:
    """Of a file that the system does not let us read, which says nothing against what it holds."""
    return DaliError(f"Cannot read {path} ({error.strerror or error}).", "Make it readable, or pick another.")


def reason(error: BaseException) -> str:
    """What another library's exception says, on one line."""
    return textwrap.shorten(str(error), 250) or type(error).__name__


class StoreError(DaliError):
    """Experts that cannot be read from the store at `path`."""

    def __init__(self, path: object, why: str) -> None:
        super().__init__(
            f"Cannot use the expert store {path}: {why}.",
            "Try again; if it stays like that, delete the file and load the model again, which packs it anew, on another disk "
            "with DALI_CACHE_DIR.",
        )
        self.path = path
