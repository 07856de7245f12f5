"""The interactive chat, held over a terminal as a user holds it."""

from __future__ import annotations

import builtins
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from transformers import PreTrainedConfig

from dali.cli.chat import loop as chat_module
from dali.cli.chat.commands import COMMANDS
from dali.cli.terminal import set_log_level

STORY = "Tell me a story about a little dog."
PROMPT = "\n> "
SECONDS = 60  # to give up after; a busy machine may take long to start


class Chat:
    """`dali run` in a terminal of its own."""

    def __init__(self, *flags: str) -> None:
        self._terminal, end = pty.openpty()
        environment = os.environ | {"TERM": "xterm", "INPUTRC": os.devnull}
        line = [sys.executable, "-m", "dali", "run", *flags]
        self.process = subprocess.Popen(line, stdin=end, stdout=end, stderr=end, env=environment)
        os.close(end)
        self._screen = "\n"

    def until(self, expected: str) -> str:
        """What the terminal shows up to and with `expected`, without control sequences."""
        deadline = time.monotonic() + SECONDS
        while expected not in self._screen:
            ready, _, _ = select.select([self._terminal], [], [], max(0, deadline - time.monotonic()))
            try:
                shown = os.read(self._terminal, 4096) if ready else b""
            except OSError:  # the other end is closed
                shown = b""
            assert shown, f"no {expected!r} in {self._screen!r}"
            text = self._screen + shown.decode()
            self._screen = re.sub(r"\x1b\[[?\d;]*[a-zA-Z]|\r", "", text)
        before, _, self._screen = self._screen.partition(expected)
        return before + expected

    def say(self, line: str, expected: str = PROMPT) -> str:
        """Type a line; what is shown in answer, without the line's echo."""
        os.write(self._terminal, f"{line}\n".encode())
        return self.until(expected).removeprefix(f"{line}\n")

    def press(self, key: bytes) -> None:
        os.write(self._terminal, key)

    def ctrl_c(self, expected: str = PROMPT) -> str:
        """At the prompt only after `pause`: readline sleeps through a signal that comes before it waits."""
        self.process.send_signal(signal.SIGINT)
        return self.until(expected)

    def pause(self) -> None:
        time.sleep(0.5)

    def leave(self) -> int:
        try:
            return self.process.wait(SECONDS)
        finally:
            os.close(self._terminal)


@pytest.fixture
def chat(request):
    chats = []

    def chat(*flags: str) -> Chat:
        chats.append(Chat(*flags))
        return chats[-1]

    yield chat
    for one in chats:
        one.process.kill()
        one.process.wait()


def test_a_conversation(chat, story):
    user = chat("--temp", "0")
    assert "/help" in user.until(PROMPT)

    # Ctrl-C stops the answer; what was said stays in the conversation, whose beginning is not computed again.
    user.say(STORY, expected="Once")
    cut = "Once" + user.ctrl_c()
    said = cut.split("^C")[0].splitlines()[0]
    assert story.startswith(said)
    assert story not in cut
    assert "answer tokens" in cut
    assert re.search(r"prompt \(\d\d cached\)", user.say("And then?"))
    assert re.search(r"KV [\d.]+ MiB", user.say("/stats"))

    # What does not fit is refused, and the conversation goes on; a cleared one begins anew.
    assert "at most 511 leave room" in user.say("word " * 600)
    assert "forgotten" in user.say("/clear")
    # Its tokens are still cached, computed in other company: in bfloat16 a near-tie further on may fall otherwise.
    assert user.say(STORY).startswith(story[:70])

    # Ctrl-C drops a line that was begun; on an empty one it says how to leave.
    user.press(b"half a line")
    user.until("half a line")
    user.pause()
    assert "leaves" not in user.ctrl_c()
    user.pause()
    assert "leaves" in user.ctrl_c()
    user.press(b"\x04")
    assert user.leave() == 0


def test_messages_of_several_lines_and_what_is_typed_before(chat, tmp_path, monkeypatch):
    monkeypatch.setenv("DALI_CACHE_DIR", str(tmp_path / "cache"))
    user = chat("--temp", "0", "-n", "3")
    user.until(PROMPT)
    file = tmp_path / "said.json"

    def asked() -> str:
        user.say(f"/save {file}")
        return json.loads(file.read_text())[-2]["content"]

    user.press(b"one\ntwo\nthree\n")  # pasted into a terminal that does not tell
    user.until("tok/s")
    user.until(PROMPT)
    assert asked() == "one\ntwo\nthree"
    user.press(b"\x1b[200~/one\n/two\x1b[201~\n")
    user.until("tok/s")
    user.until(PROMPT)
    assert asked() == "/one\n/two"
    user.say('"""one', expected="... ")
    user.say("", expected="... ")
    user.say('two"""')
    assert asked() == "one\n\ntwo"
    user.say("one \\", expected="... ")
    user.say("two")
    assert asked() == "one \ntwo"
    user.say("/bye", expected="/bye")
    assert user.leave() == 0

    history = tmp_path / "cache" / "history"
    assert history.stat().st_mode & 0o777 == 0o600
    again = chat("--temp", "0", "-n", "3")
    again.until(PROMPT)
    for _ in range(3):  # before it: /bye and /save
        again.press(b"\x1b[A")
    assert "tok/s" in again.say("")
    again.say(f"/save {file}")
    assert json.loads(file.read_text())[0]["content"] == "one \ntwo"


@pytest.fixture
def typed(monkeypatch):
    """Hold a chat with no model in it: each key is a line, or what input() raises."""

    def typed(*keys: str | BaseException | type[BaseException]) -> list[object]:
        set_log_level("info")
        left = list(keys)

        def read(prompt: str = "") -> str:
            key = left.pop(0)
            if isinstance(key, str):
                return key
            raise key

        monkeypatch.setattr(builtins, "input", read)
        llm = SimpleNamespace(format_name="w8", ctx_size=512)
        chat_module.chat(SimpleNamespace(llm=llm), "tiny")
        return left

    return typed


NOT_TEXT = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")


@pytest.mark.parametrize(
    "keys",
    [
        [EOFError],
        ["", "/exit"],
        ["/bye"],
        [KeyboardInterrupt, KeyboardInterrupt],
        [KeyboardInterrupt, "/help", KeyboardInterrupt, EOFError],  # only two in a row mean it
    ],
)
def test_ways_to_leave(typed, keys):
    assert typed(*keys) == []


@pytest.mark.parametrize(
    ("size", "advice"),
    [(512, "."), (64, "; --ctx-size up to 512 holds more.")],
)
def test_a_full_context_comes_with_advice(monkeypatch, capsys, size, advice):
    llm = SimpleNamespace(
        ctx_size=size, model=SimpleNamespace(config=PreTrainedConfig(max_position_embeddings=512))
    )
    answer = SimpleNamespace(stream=lambda: None, summary=lambda long: "summed up", filled_context=True)
    conversation = SimpleNamespace(llm=llm, answer_to=lambda line: answer, remember=lambda line, answer: None)
    set_log_level("info")
    chat_module._answer("hi", conversation, verbose=False)
    said = f"The answer ends where the context of {size} tokens is full{advice}"
    assert capsys.readouterr().err.splitlines()[-1] == said


def test_help_and_mistakes_are_answered_on_stderr(typed, capsys):
    typed("/help", "/frob", NOT_TEXT, "/exit")
    out, err = capsys.readouterr()
    assert all(command in err for command in COMMANDS)
    assert "error: There is no command '/frob'." in err
    assert "error: That line is not UTF-8 (invalid start byte)." in err
    assert out == ""
