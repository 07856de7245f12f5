"""Text from files and pipes, as whoever wrote it meant it."""

from __future__ import annotations


def plain_text(given: bytes) -> str:
    """`given` without the byte order mark that Windows' programs put first, and with every line end as one newline: to a model
    both would be tokens. UnicodeDecodeError: it is not UTF-8."""
    return given.decode().removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
