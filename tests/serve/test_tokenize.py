"""Tokens and text."""

from __future__ import annotations

import pytest

from served import STORY


def test_there_and_back(tiny):
    text = "Tom läuft <|end|>"
    _, found = tiny.post("/tokenize", {"content": text})
    assert found["tokens"] == tiny.llm.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tiny.post("/detokenize", {"tokens": found["tokens"]}) == (200, {"content": text})


def test_pieces_are_text_or_the_bytes_of_a_part_of_it(tiny):
    _, found = tiny.post("/tokenize", {"content": "a ∰", "with_pieces": True})
    pieces = [one["piece"] for one in found["tokens"]]
    assert (
        b"".join(bytes(piece) if isinstance(piece, list) else piece.encode() for piece in pieces)
        == "a ∰".encode()
    )
    assert any(isinstance(piece, list) for piece in pieces)


def test_the_template_is_applied(tiny):
    _, found = tiny.post("/apply-template", {"messages": STORY})
    assert found["prompt"] == f"<|user|>\n{STORY[0]['content']}<|end|>\n<|assistant|>\n"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {}),
        ("/tokenize", {"content": 5}),
        ("/tokenize", {"content": "\udcff"}),
        ("/detokenize", {"tokens": "x"}),
        ("/detokenize", {"tokens": [-1]}),
        ("/detokenize", {"tokens": [4096]}),
        ("/apply-template", {"messages": []}),
    ],
)
def test_what_cannot_be_meant_is_refused(tiny, path, body):
    import json

    assert tiny.http.post(path, content=json.dumps(body)).status_code == 400
