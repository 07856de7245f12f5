"""Grammars of whole answers: reasoning first, channels, text or calls; each read by the structure that divides the answer."""

from __future__ import annotations

import json
from random import Random

import pytest

from constrained import CLOSING, answer_by_chance, pieces_of, read
from dali.engine.constraint.grammars import Grammars
from dali.engine.constraint.shape import Shape
from dali.engine.text.answer import answer_grammar, constraint_of
from dali.engine.text.structure import calling_structure_of, structure_of
from dali.errors import UsageError
from schemas import follows, random_schema
from scripted import CHATML, CHATML_TOKENS, HARMONY, HARMONY_TOKENS, scripted_tokenizer

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "properties": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
                "required": ["days"],
                "additionalProperties": False,
            },
        },
    }
]
HERMES = '{% for tool in tools or [] %}{{ tool }}{% endfor %}<tool_call>\n{"name": <name>, "arguments": {}}\n</tool_call>'
THINK = "{{ '</think>' }}"


class Model:
    """A tokenizer, and answers of it by chance."""

    def __init__(self, template: str, special=CHATML_TOKENS, eos="<|endoftext|>", words=(), added=()) -> None:
        self.tokenizer = scripted_tokenizer((*CLOSING, *words), special, template, added, eos)
        self.eos = [self.tokenizer.eos_token_id]
        self.grammars = Grammars(self.tokenizer, frozenset(self.eos))

    def structure(self, said: str, tools=(), most=None):
        prompt = self.ids(said)
        if tools:
            return calling_structure_of(self.tokenizer, prompt, "", tools, most)
        return structure_of(self.tokenizer, prompt)

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def held(self, shape: Shape, prompt: str, tools=(), most=None):
        return constraint_of(
            self.grammars, self.tokenizer, shape, self.structure(prompt, tools, most), tools, most
        )

    def answers(self, shape: Shape, prompt: str, tools=(), most=None, times=3):
        for seed in range(times):
            held = self.held(shape, prompt, tools, most)
            answer = answer_by_chance(held, self.tokenizer, self.eos, Random(seed), 10000, 0.9)
            pieces = pieces_of(answer, self.tokenizer, self.structure(prompt, tools, most))
            yield "".join(piece.reasoning for piece in pieces), *read(pieces)

    def takes(self, held, *parts: str) -> bool:
        """Whether an answer may go so."""
        answer: list[int] = []
        for token in (token for part in parts for token in self.ids(part)):
            if token not in held.allowed(answer, len(self.tokenizer)).tolist():
                return False
            answer.append(token)
        return True


@pytest.mark.parametrize(
    "tags",
    [
        {"added": ("<think>", "</think>")},
        {"special": (*CHATML_TOKENS, "<think>", "</think>")},
        {"words": ("<think>", "</think>")},
    ],
    ids=["added", "special", "letters"],
)
@pytest.mark.parametrize("opened", [False, True])
def test_a_model_reasons_first_and_then_follows_the_schema(tags, opened):
    model, schema = Model(CHATML + THINK, **tags), random_schema(Random(3))
    prompt = "<think>\n" if opened else ""
    for _, text, calls in model.answers(Shape(schema), prompt):
        assert follows(json.loads(text), schema)
        assert not calls
    held = model.held(Shape({"type": "null"}), prompt)
    begin = "" if opened else "<think>"
    assert model.takes(held, begin, "Well, {null", "</think>", "\n\nnull")
    assert not model.takes(model.held(Shape({"type": "null"}), prompt), begin, "Well", "</think>", "\n\nWell")
    assert model.takes(model.held(Shape({"type": "null"}), prompt), "null", "<|endoftext|>") != opened
    assert not model.takes(model.held(Shape({"type": "null"}), prompt), begin, "Well", "<|endoftext|>")


def test_reasoning_that_the_prompt_has_closed_does_not_begin():
    model = Model(CHATML + THINK, added=("<think>", "</think>"))
    prompt = "<think>\n\n</think>\n\n"
    assert model.takes(model.held(Shape({"type": "null"}), prompt), "null")
    assert not model.takes(model.held(Shape({"type": "null"}), prompt), "<think>")


def test_a_call_that_has_to_be_made_comes_after_reasoning_and_is_all_there_is():
    model = Model(HERMES + THINK, added=("<think>", "</think>", "<tool_call>", "</tool_call>"))
    for _, text, calls in model.answers(Shape(must_call=True), "<think>", TOOLS):
        assert text == ""
        assert calls
        assert all(name == "weather" and 1 <= json.loads(arguments)["days"] <= 9 for name, arguments in calls)


@pytest.mark.parametrize(
    "tags",
    [
        {"added": ("<tool_call>", "</tool_call>")},
        {"special": (*CHATML_TOKENS, "<tool_call>", "</tool_call>")},
        {},
    ],
    ids=["added", "special", "letters"],
)
def test_a_strict_tool_is_called_if_the_model_likes_and_then_to_the_letter(tags):
    model, shape = Model(HERMES, **tags), Shape(strict=frozenset(["weather"]))
    call = '<tool_call>\n{"name": "weather", "arguments": {"days": '
    end = "}}\n</tool_call>"

    def takes(*parts: str) -> bool:
        return model.takes(model.held(shape, "", TOOLS), *parts)

    assert takes("No call, <tool", " {", "<|endoftext|>")
    assert takes("Two. ", call, "3", end, "\n", call, "4", end, " So.", "<|endoftext|>")
    assert not takes(call, "33")
    assert not takes("Or ", call, "3", end, " and ", call, "0")
    assert not takes("<tool_call>", "What")
    for _, _, calls in model.answers(shape, "", TOOLS):
        assert all(name == "weather" and 1 <= json.loads(arguments)["days"] <= 9 for name, arguments in calls)


def test_an_answer_follows_the_schema_or_is_a_call_where_both_may_be():
    model, shape = Model(HERMES, added=("<tool_call>", "</tool_call>")), Shape({"type": "null"})
    assert model.takes(model.held(shape, "", TOOLS), "null")
    assert model.takes(model.held(shape, "", TOOLS), "<tool_call>\n", '{"name": "weather"')
    assert not model.takes(model.held(shape, "", TOOLS), "Well")


@pytest.mark.parametrize(
    "shape", [Shape(random_schema(Random(5))), Shape(must_call=True)], ids=["schema", "call"]
)
def test_of_channels_the_last_is_held_to_it(shape):
    model = Model(HARMONY, HARMONY_TOKENS, "<|return|>")
    tools = TOOLS if shape.must_call else ()
    for reasoning, text, calls in model.answers(
        shape, "<|start|>user<|message|>Hi<|end|><|start|>assistant", tools
    ):
        assert isinstance(reasoning, str)
        if shape.must_call:
            assert (text, [name for name, _ in calls]) == ("", ["weather"])
            assert 1 <= json.loads(calls[0][1])["days"] <= 9
        else:
            assert follows(json.loads(text), shape.schema)


def test_channels_that_the_prompt_has_begun_are_refused():
    model = Model(HARMONY, HARMONY_TOKENS, "<|return|>")
    with pytest.raises(UsageError, match="channel"):
        model.held(Shape({}), "<|start|>assistant<|channel|>final<|message|>")


def test_strict_tools_leave_channels_to_the_model():
    model, shape = Model(HARMONY, HARMONY_TOKENS, "<|return|>"), Shape(strict=frozenset(["weather"]))
    prompt = "<|start|>assistant"
    begin, turn = "<|channel|>commentary", "<|end|><|start|>assistant"
    call = f'{begin} to=functions.weather <|constrain|>json<|message|>{{"days": '

    def takes(*parts: str) -> bool:
        return model.takes(model.held(shape, prompt, TOOLS), *parts)

    assert takes("<|channel|>analysis<|message|>Hm", turn, f"{begin}<|message|>I look.", turn, call, "3}")
    assert takes("<|channel|>final<|message|>It rains.", "<|return|>")
    assert not takes(call, "30")


@pytest.mark.parametrize(
    "grammar",
    [
        'root ::= ("yes" | "no") "!"?',
        'root ::= ans\nans ::= "yes" | [m-n] "o" "!"',
        'start: ("yes" | "no") "!"',
    ],
)
def test_a_clients_own_grammar_is_lark_or_gbnf(grammar):
    model = Model(CHATML)
    assert model.takes(model.held(Shape(grammar=grammar), ""), "no!")
    assert not model.takes(model.held(Shape(grammar=grammar), ""), "not")


@pytest.mark.parametrize(
    "grammar", ["root ::= (", "root ::= other", 'other ::= "a"', "start: %json", "root ::= " + "(" * 5000]
)
def test_a_grammar_that_is_none_is_refused(grammar):
    with pytest.raises(UsageError, match="grammar"):
        Model(CHATML).held(Shape(grammar=grammar), "")


def test_a_tokenizer_that_declares_the_form_of_its_answers_is_refused():
    model = Model(CHATML)
    model.tokenizer.response_template = {
        "start_anchor": "<|im_start|>assistant\n",
        "fields": {"content": {"close": "<|im_end|>"}},
    }
    with pytest.raises(UsageError, match="declares"):
        model.held(Shape({}), "<|im_start|>assistant\n")


def test_grammars_are_compiled_once():
    grammars = Model(CHATML).grammars
    source = answer_grammar(
        grammars.vocabulary, Shape({"type": "null"}), structure_of(scripted_tokenizer(), [])
    )
    first = grammars.constraint(source)
    compiled = grammars._compiled[source]
    assert grammars.constraint(source) is not first
    assert grammars._compiled == {source: compiled}
