"""Errors a user can meet. Each says what is wrong (with the offending value) and what to do about it."""

from __future__ import annotations


class DaliError(Exception):
    """A failure at run time: the command exits with code 1.

    `problem` is one sentence that shows the offending value, `fix` one sentence with the way out.
    """

    exit_code = 1

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(f"{problem}\n{fix}")
        self.problem = problem
        self.fix = fix


class UsageError(DaliError):
    """A request that cannot be meant: an unknown flag value, an impossible budget. Exit code 2."""

    exit_code = 2
