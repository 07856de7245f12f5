"""What was typed before."""

from __future__ import annotations

import json

import pytest

from dali.cli.chat import history
from dali.cli.chat.history import History


class Lines:
    """Stands in for readline."""

    def __init__(self) -> None:
        self.known: list[str] = []

    def set_auto_history(self, on: bool) -> None:
        assert not on

    def add_history(self, line: str) -> None:
        self.known.append(line)


def test_messages_come_back_in_the_next_chat(tmp_path):
    file = tmp_path / "cache" / "history"
    first = History(Lines(), file)
    first.add("one\ntwo")
    first.add("caf\u00e9 \udce9")
    assert file.stat().st_mode & 0o777 == 0o600
    History(lines := Lines(), file)
    assert lines.known == ["one\ntwo", "caf\u00e9 \udce9"]


def test_a_long_history_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(history, "MOST", 3)
    file = tmp_path / "history"
    file.write_text("".join(f"{json.dumps(str(n))}\n" for n in range(7)))
    History(lines := Lines(), file)
    assert lines.known == ["4", "5", "6"]
    assert file.read_text() == '"4"\n"5"\n"6"\n'


@pytest.mark.parametrize("content", [b"no JSON\n", b"\xff\n"])
def test_a_file_that_holds_no_history_is_left_out(tmp_path, content):
    file = tmp_path / "history"
    file.write_bytes(content)
    History(lines := Lines(), file).add("one")
    assert lines.known == ["one"]


def test_a_place_that_cannot_be_written_costs_only_the_file(tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    known = History(lines := Lines(), tmp_path / "cache" / "history")
    known.add("one")
    assert lines.known == ["one"]
