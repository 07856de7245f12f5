"""What is said on stderr: log lines, errors, and bars and passing notes, which only a terminal shows."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from dali.cli.flags.option import as_flag
from dali.errors import DaliError

log = logging.getLogger("dali")

DIM, RED = "\x1b[2m", "\x1b[31m"
CLEAR_LINE = "\r\x1b[K"


def set_log_level(level: str) -> None:
    """Say on stderr what is at least as urgent as `level`; at "debug" the libraries speak too."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.handlers, log.propagate = [handler], False
    log.setLevel(level.upper())
    if level == "debug":
        logging.basicConfig(level=logging.DEBUG, format="%(levelname)s %(name)s: %(message)s")


def is_terminal() -> bool:
    """Whether control codes sent to stderr mean something there."""
    return _takes_codes(sys.stderr)


def styled(text: str, style: str, file: TextIO | None = None) -> str:
    """`text` in a style, where `file` (None: stderr) has styles and nobody asked for none (https://no-color.org)."""
    plain = os.environ.get("NO_COLOR") or not _takes_codes(file or sys.stderr)
    return text if plain else f"{style}{text}\x1b[0m"


def _takes_codes(file: TextIO) -> bool:
    return file.isatty() and os.environ.get("TERM") != "dumb"


def report(error: DaliError) -> None:
    """Say what is wrong, and what to do."""
    problem, fix = error.told(as_flag)
    print(f"{styled('error:', RED)} {problem}\n{fix}", file=sys.stderr)


def passing_note(text: str = "") -> None:
    """Show `text` until the next note, bar or output; "" takes it away."""
    if is_terminal():
        print(f"{CLEAR_LINE}{text}", end="", file=sys.stderr, flush=True)


@contextmanager
def share_bar(what: str, total: int) -> Iterator[Callable[[str, int], None]]:
    """A bar over work whose parts are `total` together; told of each that is through, by name, and its share of them."""
    from tqdm import tqdm

    passing_note()
    shown = "{desc} {bar} {percentage:3.0f} % {elapsed}"
    with tqdm(desc=what, total=total, bar_format=shown, leave=False, disable=not is_terminal()) as bar:

        def advance(part: str, share: int) -> None:
            bar.set_description(f"{what}, {part} done", refresh=False)
            bar.update(share)

        yield advance


def meter(what: str, total: int) -> Callable[[int], None]:
    """A bar over `total` bytes that goes away when they are done: a dali.progress.Meter."""
    from tqdm import tqdm

    passing_note()
    bar = tqdm(
        desc=what,
        total=total,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        leave=False,
        disable=not is_terminal(),
    )

    def advance(nbytes: int) -> None:
        bar.update(nbytes)
        if bar.n >= total:
            bar.close()

    return advance
