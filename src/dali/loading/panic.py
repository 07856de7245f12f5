"""A panic of the tokenizers library, as an error like others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """ValueError in place of a panic, which is no Exception, so that nobody who catches errors sees it."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ != "PanicException":
            raise
        raise ValueError(str(error)) from error
