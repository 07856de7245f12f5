"""One sequence's text, and its ends."""

from __future__ import annotations

import pytest

from dali.engine.text.structure import structure_of
from dali.engine.text.text import Text
from scripted import scripted_tokenizer


def shown(text: Text) -> str:
    return "".join(piece.text for piece in text.pieces)


@pytest.mark.parametrize("token", ["<|im_end|>", "<tool>"])
def test_a_stop_string_that_is_a_token_of_its_own_stops_at_it(token):
    tokenizer = scripted_tokenizer(added=("<tool>",))
    text = Text(tokenizer, stop=("###", token))
    assert [text.push(id) for id in tokenizer(f"ab#{token}")["input_ids"]] == [False, False, False, True]
    assert shown(text) == "ab#"
    assert text.stopped_by == token


def test_what_is_held_back_for_a_stop_string_comes_before_a_marker():
    tokenizer = scripted_tokenizer(added=("<think>", "</think>"))
    text = Text(tokenizer, stop=("\n\n\n",), structure=structure_of(tokenizer, [5]))
    for id in tokenizer("<think>a\n\n</think>b\n")["input_ids"]:
        text.push(id)
    assert shown(text) == "b"
    text.finish()
    assert shown(text) == "b\n"
    assert "".join(piece.reasoning for piece in text.pieces) == "a"


def test_a_stop_string_ends_reasoning_too():
    tokenizer = scripted_tokenizer(added=("<think>", "</think>"))
    text = Text(tokenizer, stop=("wait",), structure=structure_of(tokenizer, [5]))
    assert [text.push(id) for id in tokenizer("<think>so w")["input_ids"]].count(True) == 0
    assert [text.push(id) for id in tokenizer("ait")["input_ids"]] == [False, False, True]
    assert [piece.reasoning for piece in text.pieces] == ["s", "o"]


def test_which_stop_string_it_was_is_known():
    tokenizer = scripted_tokenizer()
    text = Text(tokenizer, stop=("no", "stop", "top"))
    assert text.stopped_by is None
    for id in tokenizer("now")["input_ids"][:2]:
        text.push(id)
    assert text.stopped_by == "no"
    text = Text(tokenizer, stop=("top", "stop"))
    assert [text.push(id) for id in tokenizer("a stop")["input_ids"]][-1]
    assert text.stopped_by == "stop"  # of two that end together, the longer one
