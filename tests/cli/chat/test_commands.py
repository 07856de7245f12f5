"""What a user tells the chat itself."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from dali.cli.chat.commands import is_command, run_command
from dali.cli.chat.conversation import Conversation
from dali.cli.flags.chat import Chat
from dali.cli.terminal import set_log_level
from dali.errors import DaliError


@pytest.fixture
def conversation():
    return Conversation(SimpleNamespace(ctx_size=512), Chat(temp=0.5))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("/help", True),
        ("/set temp 0.2", True),
        ("/Foo-1", True),
        ("/frob now", True),
        ("/usr/bin/x", True),
        ("/usr/bin/x: what is that?", False),
        ("/one\n/two", False),
        ("What is /usr/bin?", False),
        ("", False),
    ],
)
def test_which_lines_are_told_the_chat(text, told):
    assert is_command(text) is told


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("/frob", "There is no command '/frob'."),
        ("/Foo-1", "There is no command '/Foo-1'."),
        ("/usr/bin/x", "There is no command '/usr/bin/x'."),
        ("/exit now", "/exit takes nothing more, and 'now' was given."),
        ("/clear all", "/clear takes nothing more, and 'all' was given."),
        ("/set temprature 1", "There is no 'temprature' to set."),
        ("/set temp hot", "/set temp cannot be 'hot'."),
        ("/set temp", "/set temp cannot be ''."),
        ("/save", "/save needs the name of a file."),
        ("/save /no/such/folder/f", "Cannot write /no/such/folder/f (No such file or directory)."),
        ("/save ~nobody-here/f", "Cannot write ~nobody-here/f (No such file or directory)."),
        ("/save /dev/null", "Cannot write /dev/null (it is no plain file)."),
        (
            "/load ~nobody-here/f",
            "Cannot load a conversation from ~nobody-here/f (No such file or directory).",
        ),
        ("/load no-such", "Cannot load a conversation from no-such (No such file or directory)."),
        ("/stats", "There was no answer yet."),
    ],
)
def test_what_cannot_be_done_is_said(conversation, text, problem):
    with pytest.raises(DaliError) as error:
        run_command(text, conversation)
    assert error.value.problem == problem


@pytest.mark.parametrize("text", ["/exit", "/bye"])
def test_ways_to_leave(conversation, text):
    assert run_command(text, conversation) is False


def test_settings_hold_from_the_next_answer_on(conversation, capsys):
    set_log_level("info")
    for text in ("/set temp 0.25", "/set --top-k 7", "/set repeat_penalty 1.5", "/set stop a b"):
        assert run_command(text, conversation)
    sampling = conversation.settings.sampling()
    assert (sampling["temperature"], sampling["top_k"], sampling["repeat_penalty"]) == (0.25, 7, 1.5)
    assert sampling["stop"] == ("a b",)
    assert run_command("/set", conversation)
    shown = dict(line.split(None, 1) for line in capsys.readouterr().err.splitlines())
    assert (shown["temp"], shown["stop"], shown["seed"]) == ("0.25", "'a b'", "the model's own")


def test_a_system_prompt_can_be_given_later(conversation, capsys):
    set_log_level("info")
    run_command("/system Be kind.", conversation)
    assert conversation.messages == [{"role": "system", "content": "Be kind."}]
    run_command("/clear", conversation)
    run_command("/system", conversation)
    assert capsys.readouterr().err.splitlines()[-1] == "System prompt: Be kind."


def test_a_conversation_is_saved_and_loaded(conversation, tmp_path):
    conversation.system_prompt = "Be kind."
    conversation.remember("Hi\u00e9", SimpleNamespace(text="Hello"))
    file = tmp_path / "said.json"
    run_command(f"/save {file}", conversation)
    messages = json.loads(file.read_text())
    assert [message["role"] for message in messages] == ["system", "user", "assistant"]
    other = Conversation(SimpleNamespace(ctx_size=512), Chat())
    run_command(f"/load {file}", other)
    assert other.messages == messages


@pytest.mark.parametrize(
    ("content", "why"),
    [("{", "Expecting"), ('[{"role": "user"}]', "A message of the user"), ("[]", "A conv")],
)
def test_a_file_without_a_conversation_changes_nothing(conversation, tmp_path, content, why):
    conversation.remember("Hi", SimpleNamespace(text="Hello"))
    before = conversation.messages
    file = tmp_path / "said.json"
    file.write_text(content)
    with pytest.raises(DaliError) as error:
        run_command(f"/load {file}", conversation)
    assert error.value.problem.startswith(f"Cannot load a conversation from {file} ({why}")
    assert conversation.messages == before
