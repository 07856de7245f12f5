"""What may come next, against every text of small languages; and steps that are interrupted and tried again."""

from __future__ import annotations

import json

import pytest
import torch

from dali.engine.constraint.constraint import MOST_LETTERS, Grammar
from dali.engine.constraint.lark import HEAD, Lark
from dali.engine.constraint.vocabulary import Vocabulary
from dali.engine.request import Request
from dali.engine.sampling import SamplingParams
from dali.engine.sequence import Sequence
from dali.errors import UsageError
from scripted import scripted_tokenizer

TOKENIZER = scripted_tokenizer(("tr", "true", "e,", "ue", "ab", "b", "[tr", "]", "🐕"))
END = TOKENIZER.eos_token_id
VOCABULARY = Vocabulary(TOKENIZER, frozenset({END}))
HELD = 'start: %json {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}'
CHOICES = [{"properties": {name: {"type": "integer"}}} for name in "abcd"]
SPELT = {id: TOKENIZER.decode([id]) for id in range(len(TOKENIZER)) if id not in VOCABULARY.controls.values()}


def ids(text: str) -> list[int]:
    return TOKENIZER(text)["input_ids"]


def constraint(rules: str):
    return Grammar(f"{HEAD}\n{rules}", VOCABULARY).constraint()


@pytest.mark.parametrize(
    ("rules", "language"),
    [
        ('start: "[" ("true" | "b") ("," "b")? "]"', ["[true]", "[b]", "[true,b]", "[b,b]"]),
        ("start: /a?b{1,2}/", ["ab", "b", "abb", "bb"]),
        ('start: %json {"type": "boolean"}', ["true", "false"]),
        ('start: "🐕"', ["🐕"]),
    ],
)
def test_what_may_come_is_what_leads_to_a_text_of_the_language(rules, language):
    def beginnings(said: str) -> set[int]:
        tokens = {
            id
            for id, text in SPELT.items()
            if text and any(whole.startswith(said + text) for whole in language)
        }
        return tokens | ({END} if said in language else set())

    waiting = [""]
    while waiting:
        said = waiting.pop()
        held = constraint(rules)
        allowed = {*held.allowed(ids(said), len(TOKENIZER)).tolist()}
        if said in language and not any(whole != said and whole.startswith(said) for whole in language):
            assert held.over(ids(said))
            continue
        assert not held.over(ids(said))
        partial = {id for id in allowed if "\N{REPLACEMENT CHARACTER}" in SPELT.get(id, "")}
        assert allowed - partial == beginnings(said)
        waiting += {said + SPELT[id] for id in allowed - partial - {END}}


def test_logits_may_be_more_or_fewer_than_the_tokenizers_tokens():
    held = constraint("start: /[a-z]+/")
    whole = held.allowed((), 10**6)
    assert 0 < int(whole.max()) < len(TOKENIZER)
    assert held.allowed((), 100).tolist() == [id for id in whole.tolist() if id < 100]
    assert whole.dtype == torch.int64


def test_an_answer_that_is_told_anew_is_followed_from_its_beginning():
    held = constraint(HELD)
    answer = ids('{"a":12')
    expected = [constraint(HELD).allowed(answer[:at], 400).tolist() for at in range(len(answer) + 1)]
    for at in (0, 3, 7, 7, 2, 6, 0, 7):
        assert held.allowed(answer[:at], 400).tolist() == expected[at]


def test_a_step_that_is_interrupted_anywhere_and_tried_again_pushes_no_token_twice():
    sequence = Sequence(
        Request((0,), 50, SamplingParams(temperature=0), frozenset({END})),
        None,
        constraint('start: "tr" "ue"'),
    )
    moments = iter([0, 1, 2, 0, 1, 2, 5])

    class Broken:
        """A matcher whose caller is interrupted right before or after it takes tokens."""

        def __init__(self, matcher):
            self.matcher = matcher

        def consume_tokens(self, tokens):
            moment = next(moments, 5)
            if moment == 0:
                raise KeyboardInterrupt
            took = self.matcher.consume_tokens(tokens)
            if moment == 1:
                raise KeyboardInterrupt
            return took

        def deep_copy(self):
            return Broken(self.matcher.deep_copy())

        def __getattr__(self, name):
            return getattr(self.matcher, name)

    held = sequence.constraint
    held._begin, held._matcher = Broken(held._begin), Broken(held._matcher)
    while sequence.finish_reason is None:
        try:
            sequence.advance(torch.zeros(len(TOKENIZER)))
        except KeyboardInterrupt:
            continue
    assert TOKENIZER.decode(sequence.generated) == "true"
    assert sequence.finish_reason == "stop"


def test_an_end_of_answer_is_chosen_only_where_the_answer_may_end():
    def answer(**more) -> Sequence:
        params = SamplingParams(temperature=0, **more)
        found = Sequence(Request((0,), 6, params, frozenset({END})), None, constraint("start: /ab*/"))
        logits = torch.zeros(len(TOKENIZER))
        logits[END] = 9  # the model would rather end at once
        while found.finish_reason is None:
            found.advance(logits)
        return found

    once = answer()
    assert (TOKENIZER.decode(once.generated), once.finish_reason) == ("a", "stop")
    on = answer(ignore_eos=True)
    assert (TOKENIZER.decode(on.generated), on.finish_reason) == ("abbbb", "length")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("nonsense", "Expected token"),
        ("start: other", "unknown name"),
        ('start: %json {"type": "string", "pattern": "(?=a)b"}', "look-around"),
        ('start: %json {"type": "object", "if": {}}', "if"),
        ('start: %json {"type": "array", "uniqueItems": true}', "uniqueItems"),
        ('start: %json {"type": "string", "format": "phone"}', "phone"),
        ('start: %json {"$ref": "http://127.0.0.1:9/schema"}', "http://127.0.0.1:9/schema"),
        ('start: %json {"$ref": "#/nowhere"}', "nowhere"),
        ('start: %json {"type": "integer", "minimum": 5, "maximum": 2}', "minimum"),
        ('start: %json {"enum": []}', "anyOf is empty"),
        ("start: %json " + json.dumps({"allOf": [{"anyOf": CHOICES}] * 12}), "schema too large"),
        ("start: %json " + '{"items":' * 3000 + "1" + "}" * 3000, "recursion"),
        ("start: /[/", "regex"),
        ('start: %json {"oneOf": [{"type": "integer"}, {"type": "number"}]}', "oneOf"),
        ('start: %json {"$ref": "#"}', "nothing follows it"),
        ("start: start", "nothing follows it"),
        ('start: %json {"type": "integer", "multipleOf": 49999991}', "multipleOf"),
        ('start: %json {"type": "number", "multipleOf": -0.5}', "multipleOf is -0.5, and has to be above 0"),
        ('start: %json {"type": "integer", "multipleOf": 0}', "multipleOf is 0, and has to be above 0"),
        (
            'start: %json {"allOf": [{"multipleOf": 9.973}, {"multipleOf": 9967}], "type": "number"}',
            "multipleOf",
        ),
        ("start: " + "a" * MOST_LETTERS, "letters"),
    ],
)
def test_a_grammar_that_cannot_be_used_is_refused_and_says_why(source, says):
    with pytest.raises(UsageError) as refused:
        constraint(source)
    assert says in refused.value.problem
    assert len(refused.value.problem) < 600
    assert not any(word in refused.value.problem for word in ("no_forcing", "NoExtension", "coerce"))


def test_what_takes_too_long_to_compile_is_refused(monkeypatch):
    monkeypatch.setattr("dali.engine.constraint.constraint.MOST_SECONDS", 0)
    with pytest.raises(UsageError, match="seconds"):
        constraint("start: %json " + json.dumps({"enum": [f"word {number}" for number in range(20_000)]}))


def test_a_grammar_with_no_text_at_all_is_refused():
    lark = Lark(VOCABULARY)
    with pytest.raises(UsageError):
        Grammar(lark.grammar(lark.json(False)), VOCABULARY)


MANY = {"type": "object", "additionalProperties": {"type": "null"}, "minProperties": 2}


@pytest.mark.parametrize("schema", [MANY, {"properties": {"a": MANY}}, {"anyOf": [{}, {"items": MANY}]}])
def test_properties_are_not_counted_where_one_may_come_twice(schema):
    with pytest.raises(UsageError, match="minProperties 2"):
        Lark(VOCABULARY).json(schema)
    assert Lark(VOCABULARY).json({"const": MANY})
    assert Lark(VOCABULARY).json({"properties": {"minProperties": {"type": "null"}}, "minProperties": 1})
    assert Lark(VOCABULARY).json(MANY | {"required": ["a", "b"]})
