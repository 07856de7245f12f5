"""Notes while a long prompt is read."""

from __future__ import annotations

import io
import sys
import time
from types import SimpleNamespace

from dali.cli.chat import reading
from dali.cli.chat.reading import Reading


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_long_prompt_is_read_with_notes(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(reading, "SECONDS", 0.001)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    sequence = SimpleNamespace(computed=1024, prompt_tokens=2000)
    notes = Reading(sequence)
    while "Reading the prompt: 1,024 of 2,000 tokens" not in terminal.getvalue():
        time.sleep(0.001)
    notes.end()
    ended = terminal.getvalue()
    assert ended.endswith("\r\x1b[K")
    notes.end()
    time.sleep(0.01)
    assert terminal.getvalue() == ended


def test_a_pipe_has_no_notes(monkeypatch):
    monkeypatch.setattr(sys, "stderr", pipe := io.StringIO())
    Reading(SimpleNamespace(computed=0, prompt_tokens=9)).end()
    assert pipe.getvalue() == ""
