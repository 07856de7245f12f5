"""Answers of a form that the tokenizer declares."""

from __future__ import annotations

import pytest

from dali.engine.text.declared import Declared
from dali.engine.text.structure import structure_of
from dali.engine.text.text import Text
from scripted import CHATML_TOKENS, scripted_tokenizer

DECLARED = {
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "thinking": {"open": "<|why|>", "close": "<|so|>"},
        "tool_calls": {"open": "<call>", "close": "</call>", "content": "json"},
        "content": {"close": "<|im_end|>"},
    },
}


def divided(said: str, begun: str = "", **declared: object) -> tuple[str, str]:
    tokenizer = scripted_tokenizer(special=(*CHATML_TOKENS, "<|why|>", "<|so|>"))
    tokenizer.response_template = DECLARED | declared
    prompt = tokenizer(f"<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n{begun}")["input_ids"]
    structure = structure_of(tokenizer, prompt)
    assert isinstance(structure, Declared)
    text = Text(tokenizer, structure=structure)
    for token in tokenizer(said)["input_ids"]:
        text.push(token)
    text.finish()
    assert all(bool(piece.text) != bool(piece.reasoning) for piece in text.pieces)
    return "".join(piece.reasoning for piece in text.pieces), "".join(piece.text for piece in text.pieces)


@pytest.mark.parametrize(
    ("begun", "said", "expected"),
    [
        ("", "<|why|>\nHm.<|so|>\n\nYes <|x.", ("Hm.", "Yes <|x.")),
        ("", "Yes", ("", "Yes")),
        ("<|why|>", " Hm.<|so|>Yes", ("Hm.", "Yes")),
        ("", "<|why|>cut", ("cut", "")),
        ("", 'I call.<call>{"name": "f"}</call>', ("", 'I call.{"name": "f"}')),
    ],
)
def test_its_fields_are_reasoning_or_text(begun, said, expected):
    assert divided(said, begun) == expected


def test_an_answer_of_another_form_is_shown_all_the_same():
    assert divided("<|why|>Hm.<|so|>A <call>{no</call> B<|so|> C") == ("Hm.", "A {no> B C")
