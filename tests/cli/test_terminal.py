"""What a terminal shows that a file does not."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable

import pytest

from dali.cli.terminal import DIM, meter, passing_note, styled


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def stderr(monkeypatch: pytest.MonkeyPatch) -> Callable[[io.StringIO], io.StringIO]:
    """Put a stream in stderr's place; called within the test, since pytest puts its own there before."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)

    def replace(stream: io.StringIO) -> io.StringIO:
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    return replace


def test_a_terminal_gets_styles_notes_and_bars(stderr):
    terminal = stderr(Terminal())
    assert styled("x", DIM) == "\x1b[2mx\x1b[0m"
    passing_note("Loading")
    assert terminal.getvalue() == "\r\x1b[KLoading"
    advance = meter("Packing", 10)
    advance(4)
    advance(6)
    assert "Packing" in terminal.getvalue()
    assert "\n" not in terminal.getvalue()  # all of it goes away


def test_no_color_is_honoured(stderr, monkeypatch):
    stderr(Terminal())
    monkeypatch.setenv("NO_COLOR", "1")
    assert styled("x", DIM) == "x"


@pytest.mark.parametrize(("stream", "term"), [(Terminal, "dumb"), (io.StringIO, "xterm")])
def test_a_dumb_terminal_or_a_file_gets_none_of_it(stderr, monkeypatch, stream, term):
    monkeypatch.setenv("TERM", term)
    shown = stderr(stream())
    passing_note("Loading")
    meter("Packing", 10)(10)
    assert styled("x", DIM) == "x"
    assert shown.getvalue() == ""
