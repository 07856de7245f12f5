"""Errors a user can meet. Each says what is wrong (with the offending value) and what to do about it."""

from __future__ import annotations

import re
import textwrap
from typing import Any

# Of `dali.load`, and each a flag of the command line: --n-cpu-moe there.
PARAMETERS = (
    "quant",
    "dtype",
    "ctx_size",
    "ram",
    "threads",
    "offline",
    "device",
    "vram",
    "profile",
    "assign",
    "prefetch",
    "cache",
    "n_cpu_moe",
    "policy",
    "lossy",
    "seed",
)


class DaliError(Exception):
    """A failure at run time: the command exits with code 1.

    `problem` is one sentence that shows the offending value, `fix` one sentence with the way out. Both name flags as the command
    line has them, --n-cpu-moe; as text, which Python's users see, an error names their parameters, n_cpu_moe.
    """

    exit_code = 1

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(_with_parameters(f"{problem}\n{fix}"))
        self.problem = problem
        self.fix = fix

    def __reduce__(self) -> tuple[Any, ...]:
        """So that another process can hand it back, whatever a subclass takes."""
        return _restored, (type(self), self.problem, self.fix)


def _restored(kind: type[DaliError], problem: str, fix: str) -> DaliError:
    error = kind.__new__(kind)
    DaliError.__init__(error, problem, fix)
    return error


def _with_parameters(text: str) -> str:
    """--n-cpu-moe -> n_cpu_moe; commands, which stand in backquotes, keep their flags."""
    names = "|".join(parameter.replace("_", "-") for parameter in PARAMETERS)
    return re.sub(
        rf"`[^`]*`|(?<![\w-])--({names})(?![\w-])",
        lambda found: (found[1] or "").replace("-", "_") or found[0],
        text,
    )


class UsageError(DaliError):
    """A request that cannot be meant: an unknown flag value, an impossible budget. Exit code 2."""

    exit_code = 2


def reason(error: BaseException) -> str:
    """What another library's exception says, on one line."""
    return textwrap.shorten(str(error), 250) or type(error).__name__
