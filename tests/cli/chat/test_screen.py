"""Where text and reasoning are shown."""

from __future__ import annotations

import io
import sys

import pytest

from dali.cli.chat.screen import Screen
from dali.engine.text.piece import Piece


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


PIECES = [Piece(reasoning="Hm"), Piece(reasoning=", so."), Piece("Yes"), Piece(", it is.")]
DIM = "\x1b[2m{}\x1b[0m"


@pytest.mark.parametrize(
    ("out", "err", "shown", "noted"),
    [
        (Terminal, Terminal, DIM.format("Hm, ") + DIM.format("so.") + "\n\nYes, it is.\n", ""),
        (io.StringIO, Terminal, "Yes, it is.\n", DIM.format("Hm, ") + DIM.format("so.") + "\n\n"),
        (io.StringIO, io.StringIO, "Yes, it is.\n", ""),
    ],
)
def test_reasoning_is_dim_and_on_terminals_only(monkeypatch, out, err, shown, noted):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stdout, stderr = out(), err()
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(sys, "stderr", stderr)
    screen = Screen()
    for piece in PIECES:
        screen.show(piece)
    screen.end()
    assert (stdout.getvalue(), stderr.getvalue()) == (shown, noted)


@pytest.mark.parametrize(("said", "shown"), [([], ""), (["Yes\n"], "Yes\n"), (["Yes"], "Yes\n")])
def test_what_follows_begins_on_a_new_line(capsys, said, shown):
    screen = Screen()
    for text in said:
        screen.show(Piece(text))
    screen.end()
    assert capsys.readouterr().out == shown
