"""Conversations from Python: reasoning apart, ends, tools, and what comes last continued."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest

import dali
from calling_model import QUESTION, calling_model
from dali.engine.text.piece import Piece
from gguf_models import encode_as, rewrite, write_gguf
from scripted import (
    CHATML,
    CHATML_TOKENS,
    HARMONY,
    HARMONY_TOKENS,
    save_scripted,
    scripted_model,
    scripted_tokenizer,
)

HI = [{"role": "user", "content": "Hi"}]
THINK = {
    "script": ["<think>", "Hm.", "</think>", "Hello", " you", "<|im_end|>", " and on", "<|endoftext|>"],
    "added": ("<think>", "</think>"),
    "template": CHATML.replace(
        "m['content']", "m['content'] if m['role'] == 'user' else m['content'].split('</think>')[-1]"
    ),
}
GREEDY = {"temperature": 0, "max_tokens": 20}


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    monkeypatch.setenv("DALI_CACHE_DIR", str(tmp_path / "cache"))


def test_reasoning_is_no_part_of_the_text(tmp_path):
    with dali.load(save_scripted(tmp_path / "model", **THINK)) as llm:
        answer = llm.chat(HI, **GREEDY)
        assert (answer.reasoning, answer.text, answer.finish_reason) == ("Hm.", "Hello you", "stop")
        assert list(llm.chat(HI, stream=True, **GREEDY)) == [
            Piece(reasoning="Hm."),
            Piece("Hello"),
            Piece(" you"),
        ]
        # A text that is continued has no structure.
        ids = llm.chat_prompt(HI)
        assert llm.generate(ids, **GREEDY).text == "<think>Hm.</think>Hello you"
        assert "".join(llm.stream(ids, **GREEDY)) == "<think>Hm.</think>Hello you"


def test_a_channel_of_its_own_is_the_answer(tmp_path):
    script = ["<|channel|>", "final", "<|message|>", "Hello", " you", "<|return|>", " and on"]
    model = {"special": HARMONY_TOKENS, "template": HARMONY, "eos": "<|return|>", "after": "t"}
    with dali.load(save_scripted(tmp_path / "model", script, **model)) as llm:
        answer = llm.chat(HI, **GREEDY)
        assert (answer.reasoning, answer.text, answer.finish_reason) == ("", "Hello you", "stop")
        assert llm.chat(HI, stop="<|message|>", **GREEDY).text == ""


@pytest.mark.parametrize("ended", [False, True])
def test_a_token_that_only_the_template_ends_turns_with_ends_them(tmp_path, ended):
    known = (
        {"special": CHATML_TOKENS} if ended else {"special": CHATML_TOKENS[:2], "added": CHATML_TOKENS[2:]}
    )
    script = ["Hello", "<|im_end|>", " and on", "<|endoftext|>"]
    notes: list[str] = []
    with dali.load(save_scripted(tmp_path / "model", script, **known), notify=notes.append) as llm:
        assert llm.model.config.eos_token_id == llm.tokenizer.get_vocab()["<|endoftext|>"]
        assert llm.chat(HI, **GREEDY).text == "Hello"
    assert len(notes) == (not ended)
    assert ended or notes[0].startswith("<|im_end|>: text in the model's files")


@pytest.mark.parametrize("type", [None, 1, 2, 4, 5])
def test_a_gguf_file_may_take_its_control_tokens_for_text(tmp_path, type):
    tokenizer = scripted_tokenizer(("Hello", " and on"))
    model = scripted_model(tokenizer, ["Hello", "<|im_end|>", " and on", "<|endoftext|>"])
    file = write_gguf(model, tokenizer, tmp_path / "m.gguf", encode_as(gguf.GGMLQuantizationType.F32))
    with dali.load(shutil.copy(file, tmp_path / "right.gguf")) as right:
        expected = right.chat_prompt(HI)
        assert right.controls == []
    types = list(gguf.GGUFReader(file).fields["tokenizer.ggml.token_type"].contents())
    types[1] = types[2] = type
    rewrite(file, {"tokenizer.ggml.token_type": None if type is None else types})
    notes: list[str] = []
    with dali.load(file, notify=notes.append) as llm:
        assert llm.chat_prompt(HI) == expected
        assert llm.chat(HI, **GREEDY).text == "Hello"
        assert "<|im_end|>" not in llm.chat(HI, ignore_eos=True, **GREEDY).text
    assert [note for note in notes if note.startswith("<|im_end|>")] if type != 2 else not notes


def test_an_answer_that_was_begun_goes_on(dali_tiny):
    with dali.load(dali_tiny) as llm:
        whole = llm.chat(HI, temperature=0)
        begun = llm.tokenizer.decode(whole.tokens[:4])
        rest = llm.chat([*HI, {"role": "assistant", "content": begun}], temperature=0)
        assert begun + rest.text == whole.text


def test_numbers_and_ids_may_be_numpys(dali_tiny):
    with dali.load(dali_tiny) as llm:
        plain = llm.generate([5, 6, 7], temperature=0.5, seed=3, max_tokens=4)
        llm.engine.forget()  # in bfloat16, what is cached was computed in other company
        given = llm.generate(
            [np.int64(5), np.int64(6), np.int64(7)],
            temperature=np.float32(0.5),
            seed=np.int64(3),
            max_tokens=np.int32(4),
        )
        assert given.tokens == plain.tokens


def test_an_ended_turn_is_not_said_of_models_that_say_it(dali_tiny: Path):
    with dali.load(dali_tiny) as llm:
        assert llm.controls == []
        named = llm.model.config.eos_token_id
        assert llm.eos >= set(named if isinstance(named, list) else [named])


def weather(city: str) -> str:
    """The weather of a city.

    Args:
        city: which one
    """
    return f"rain in {city}"


@pytest.fixture(scope="module")
def caller(tmp_path_factory):
    with calling_model(tmp_path_factory.mktemp("caller")) as server:
        yield server.llm


def test_calls_are_told_apart_and_go_back_as_they_are(caller):
    messages = [{"role": "user", "content": QUESTION}]
    answer = caller.chat(messages, tools=[weather], temperature=0)
    assert (answer.reasoning, answer.text.strip()) == ("Hm.", "I look.")
    [call] = answer.tool_calls
    assert call["function"] == {"name": "weather", "arguments": {"city": "Paris"}}
    messages += [{"role": "assistant", "content": answer.text, "tool_calls": answer.tool_calls}]
    result = weather(**call["function"]["arguments"])
    messages += [{"role": "tool", "content": result, "tool_call_id": call["id"]}]
    last = caller.chat(messages, tools=[weather], temperature=0)
    assert (last.text, last.tool_calls) == ("It rains!", [])


def test_a_streams_calls_come_as_pieces(caller):
    pieces = list(
        caller.chat([{"role": "user", "content": QUESTION}], tools=[weather], stream=True, temperature=0)
    )
    calls = [piece.call for piece in pieces if piece.call]
    assert [call.name for call in calls if call.name] == ["weather"]
    assert json.loads("".join(call.arguments for call in calls)) == {"city": "Paris"}
    assert "<tool_call>" not in "".join(piece.text for piece in pieces)


def test_a_call_that_was_cut_off_is_given_as_far_as_it_came(caller):
    whole = caller.chat([{"role": "user", "content": QUESTION}], tools=[weather], temperature=0)
    cut = caller.chat(
        [{"role": "user", "content": QUESTION}],
        tools=[weather],
        temperature=0,
        max_tokens=len(whole.tokens) - 4,
    )
    assert cut.finish_reason == "length"
    [call] = cut.tool_calls
    assert call["function"]["name"] == "weather"
    assert '{"city": "Paris"}'.startswith(call["function"]["arguments"])


def test_without_a_form_that_is_known_calls_are_text(tmp_path):
    template = "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}" + CHATML
    script = ["call", " weather", "<|im_end|>", "<|endoftext|>"]
    with dali.load(save_scripted(tmp_path / "model", script, template=template)) as llm:
        answer = llm.chat(HI, tools=[weather], **GREEDY)
        assert (answer.text, answer.tool_calls) == ("call weather", [])
