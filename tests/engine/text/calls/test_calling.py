"""Calls beside reasoning, by tokens of their own, in channels, and as a tokenizer declares them."""

from __future__ import annotations

import pytest

from dali.engine.text.structure import calling_structure_of
from dali.engine.text.text import Text
from dali.errors import UsageError
from scripted import CHATML, CHATML_TOKENS, HARMONY, HARMONY_TOKENS, scripted_tokenizer

TOOLS = [
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}
]
HERMES = CHATML + "{# <think></think> <tool_call> tools #}"
MISTRAL = CHATML + "{# [TOOL_CALLS] tools #}"
DECLARED = {
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "thinking": {"open": "<|why|>", "close": "<|so|>"},
        "tool_calls": {"open": "<call>", "close": "</call>", "content": "json", "repeats": True},
        "content": {"close": "<|im_end|>"},
    },
}


def said(tokenizer, answer: str, most: int | None = None) -> list[tuple]:
    """The answer's pieces, those of one kind joined, and "over" where it was ended."""
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_dict=False
    )
    text = Text(tokenizer, structure=calling_structure_of(tokenizer, prompt, "", TOOLS, most))
    over = any(text.push(token) for token in tokenizer(answer)["input_ids"])
    if not over:
        text.finish()
    found: list[tuple] = []
    for piece in text.pieces:
        kind, what = (
            ("call", piece.call)
            if piece.call
            else ("why" if piece.reasoning else "text", piece[0] or piece[1])
        )
        if kind == "call" and what.name:
            found.append(("call", what.number, what.name, what.arguments))
        elif kind == "call":
            found[-1] = (*found[-1][:3], found[-1][3] + what.arguments)
        elif found and found[-1][0] == kind:
            found[-1] = (kind, found[-1][1] + what)
        else:
            found.append((kind, what))
    return found + ([("over",)] if over else [])


CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


def test_reasoning_comes_apart_and_calls_in_it_are_none():
    tokenizer = scripted_tokenizer(
        template=HERMES, added=("<think>", "</think>", "<tool_call>", "</tool_call>")
    )
    assert said(tokenizer, f"<think>\nA {CALL}?\n</think>\n\nYes.\n{CALL}") == [
        ("why", f"A {CALL}?"),
        ("text", "Yes."),
        ("call", 0, "now", "{}"),
    ]


def test_marks_may_be_special_tokens():
    special = (*CHATML_TOKENS, "[TOOL_CALLS]", "[ARGS]")
    tokenizer = scripted_tokenizer(template=MISTRAL, special=special)
    assert said(tokenizer, "So[TOOL_CALLS]now[ARGS]{}") == [("text", "So"), ("call", 0, "now", "{}")]


def test_the_answer_ends_after_as_many_calls_as_it_may_have():
    tokenizer = scripted_tokenizer(template=HERMES)
    assert said(tokenizer, f"{CALL}\n{CALL}", most=1) == [("call", 0, "now", "{}"), ("over",)]


@pytest.mark.parametrize(
    "header",
    [
        " to=functions.now<|channel|>commentary json<|message|>",
        "<|channel|>commentary to=functions.now <|constrain|>json<|message|>",
    ],
)
def test_messages_to_functions_are_calls(header):
    tokenizer = scripted_tokenizer(template=HARMONY + "{# tools #}", special=HARMONY_TOKENS)
    begun = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
    assert said(tokenizer, f'{begun}{header}{{"a": 1}}<|call|>') == [
        ("why", "Hm."),
        ("call", 0, "now", '{"a": 1}'),
    ]
    browser = header.replace("functions.now", "browser.open")
    assert said(tokenizer, f"{begun}{browser}{{}}<|call|>") == [
        ("why", "Hm."),
        ("text", "to=browser.open {}"),
    ]


def test_declared_calls_come_whole():
    tokenizer = scripted_tokenizer(
        template=CHATML + "{# tools #}", special=(*CHATML_TOKENS, "<|why|>", "<|so|>")
    )
    tokenizer.response_template = DECLARED
    call = '<call>{"name": "now", "arguments": {"a": "ö"}}</call>'
    assert said(tokenizer, f"<|why|>Hm.<|so|>So.{call}{call}") == [
        ("why", "Hm."),
        ("text", "So."),
        ("call", 0, "now", '{"a": "ö"}'),
        ("call", 1, "now", '{"a": "ö"}'),
    ]
    assert said(tokenizer, f"{call}{call}", most=1) == [("call", 0, "now", '{"a": "ö"}'), ("over",)]
    assert said(tokenizer, 'A<call>{"nam') == [("text", 'A{"nam')]
    assert said(tokenizer, "A<call>{no}</call> B") == [
        ("text", "A{no}> B")
    ]  # all but what the parser had taken for a tag


def test_calls_of_an_unknown_form_are_refused():
    with pytest.raises(UsageError, match="does not know"):
        said(scripted_tokenizer(template=CHATML + "{# tools #}"), "Hi")
