"""Calls out of the grammar of each form, chosen by chance over schemas at random: the form reads them as they were meant."""

from __future__ import annotations

import json
from contextlib import suppress
from random import Random

import pytest

from constrained import CLOSING, answer_by_chance, pieces_of, read
from dali.engine.constraint.grammars import Grammars
from dali.engine.constraint.shape import Shape
from dali.engine.text.answer import answer_grammar
from dali.engine.text.calls.calling import Calling
from dali.engine.text.calls.found import FORMS, form_of
from dali.engine.text.structure import Plain
from dali.errors import UsageError
from schemas import follows, random_schema
from scripted import CHATML_TOKENS, scripted_tokenizer

TEMPLATES = {
    "hermes": '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>',
    "lines": "<tool_calls>",
    "granite": "<|tool_call|>",
    "phi": "<|tool_call|>[]<|/tool_call|>",
    "nemotron": "<TOOLCALL>",
    "gigachat": "<|function_call|>",
    "command": "<|START_ACTION|>",
    "qwen coder": "<tool_call>\n<function=example>\n<parameter=example>",
    "seed": "<seed:tool_call>\n<function=example>\n",
    "minimax": '<minimax:tool_call>\n<invoke name="tool">\n<parameter name="key">',
    "deepseek 3.2": "{% set dsml_token = '｜DSML｜' %} <｜DSML｜function_calls>",
    "glm": "<tool_call>{function-name}<arg_key>{arg-key-1}</arg_key>",
    "mistral": "[AVAILABLE_TOOLS] [TOOL_CALLS]",
    "mistral names": "[AVAILABLE_TOOLS] [TOOL_CALLS]name[ARGS]{}",
    "llama": 'Respond in the format {"name": function name, "parameters": dictionary}.',
    "deepseek": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>name\n```json",
    "deepseek 3.1": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>",
    "kimi": "<|tool_calls_section_begin|><|tool_call_begin|>",
    "solar": "<|tool_call:begin|>",
}
UNWRITTEN = ("<|tool_call_start|>", "<|tool_call>call:")
NAMES = ("weather", "now-2.x")
STRICT = frozenset(NAMES)
ANY_NUMBER = None


def tools_at_random(chance: Random) -> dict[str, dict]:
    return {name: random_schema(chance) for name in NAMES}


def as_tools(schemas: dict[str, dict]) -> list[dict]:
    return [
        {"type": "function", "function": {"name": name, "parameters": one}} for name, one in schemas.items()
    ]


def test_every_form_is_written_or_known_to_be_not():
    written = {id(form_of(template)) for template in TEMPLATES.values()}
    unwritten = {id(form_of(template)) for template in UNWRITTEN}
    same = {id(form) for form in FORMS if any(mark == "<｜DSML｜tool_calls>" for mark in form.marks)}
    assert written | unwritten | same == {id(form) for form in FORMS}
    assert all(form.write is None for form in FORMS if id(form) in unwritten)


@pytest.mark.parametrize("spelt", ["letters", "words", "special"])
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_what_the_grammar_of_a_form_lets_through_the_form_reads(template, spelt):
    form, chance = form_of(template), Random(len(template))
    words = (*CLOSING, *form.marks) if spelt == "words" else CLOSING
    special = (*CHATML_TOKENS, *form.marks) if spelt == "special" else CHATML_TOKENS
    tokenizer = scripted_tokenizer(words, special=special)
    eos = [tokenizer.eos_token_id]
    grammars, calls_read = Grammars(tokenizer, frozenset(eos)), 0
    for shape, most in ((Shape(must_call=True, strict=STRICT), 1), (Shape(must_call=True, strict=STRICT), None),
                        (Shape(strict=STRICT), None)):  # fmt: skip
        for _ in range(2):
            schemas = tools_at_random(chance)
            tools = as_tools(schemas)
            source = answer_grammar(grammars.vocabulary, shape, Plain(), form, template, tools, most)
            answer = answer_by_chance(grammars.constraint(source), tokenizer, eos, chance, most=10000)
            text, calls = read(pieces_of(answer, tokenizer, Calling(Plain(), form, tokenizer, tools, most)))
            said = tokenizer.decode(answer)
            if shape.must_call:
                assert (bool(calls), text) == (True, ""), said
                assert most is None or len(calls) == 1, said
            for name, arguments in calls:
                assert follows(json.loads(arguments), schemas[name]), (said, schemas[name])
            calls_read += len(calls)
    assert calls_read >= 4


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_only_the_tool_that_is_named_is_called(template):
    form, tokenizer = form_of(template), scripted_tokenizer(CLOSING)
    grammars = Grammars(tokenizer, frozenset([tokenizer.eos_token_id]))
    tools = as_tools({name: {"properties": {}, "additionalProperties": False} for name in NAMES})
    shape = Shape(must_call=True, only=NAMES[1])
    held = grammars.constraint(answer_grammar(grammars.vocabulary, shape, Plain(), form, template, tools, 1))
    answer = answer_by_chance(held, tokenizer, [tokenizer.eos_token_id], Random(1))
    assert read(pieces_of(answer, tokenizer, Calling(Plain(), form, tokenizer, tools, 1)))[1] == [
        (NAMES[1], "{}")
    ]


def one_call_grammar(template, name):
    tokenizer = scripted_tokenizer()
    vocabulary = Grammars(tokenizer, frozenset([tokenizer.eos_token_id])).vocabulary
    return answer_grammar(
        vocabulary, Shape(must_call=True), Plain(), form_of(template), template, as_tools({name: {}}), 1
    )


@pytest.mark.parametrize("template", UNWRITTEN)
def test_a_form_that_nobody_has_written_down_is_refused(template):
    with pytest.raises(UsageError, match="form"):
        one_call_grammar(template, "f")


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"properties": {"a": {"type": "string", "pattern": "x"}}}, "pattern"),
        ({"properties": {"a": {"type": "string", "format": "date"}}}, "format"),
        ({"properties": {}, "minProperties": 1}, "minProperties"),
        ({"properties": {}, "required": ["b"]}, "'b'"),
        ({"properties": {"a>": {"type": "string"}}}, "'a>'"),
        ({"properties": {"a": {"type": "array", "items": {"$ref": "#/properties/a"}}}}, "#/properties/a"),
    ],
)
def test_what_text_between_tags_cannot_be_held_to_is_refused_by_name(parameters, says):
    tokenizer, template = scripted_tokenizer(), TEMPLATES["qwen coder"]
    grammars = Grammars(tokenizer, frozenset([tokenizer.eos_token_id]))

    def write(strict: frozenset[str]) -> str:
        shape = Shape(must_call=True, strict=strict)
        return answer_grammar(
            grammars.vocabulary, shape, Plain(), form_of(template), template, as_tools({"f": parameters}), 1
        )

    with pytest.raises(UsageError) as refused:
        write(frozenset(["f"]))
    assert says in refused.value.problem
    if says in ("pattern", "format", "minProperties", "'b'"):  # without strict, as far as it goes
        grammars.constraint(write(frozenset()))


JUNK = [
    5, None, "x", [], {}, [[]], True, -1, 1e30, {"$ref": 5}, {"$ref": "#/"}, {"$ref": "#"}, {"type": 5},
    {"enum": 5}, {"required": 5}, {"properties": []}, {"anyOf": {}}, {"anyOf": [5]}, {"enum": [{}]}, {"const": {}},
    {"type": "string", "minLength": "x"}, {"type": "string", "minLength": -3}, {"type": "string", "maxLength": 1e30},
    {"type": "string", "enum": ["/", "\\", '"', "\0"]},
]  # fmt: skip
KEYWORDS = [
    "type", "properties", "required", "anyOf", "oneOf", "allOf", "enum", "const", "$ref", "$defs", "minLength", "items",
    "additionalProperties", "patternProperties", "x-guidance", "minimum", "format", "pattern",
]  # fmt: skip


def objects(value):
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from objects(part)


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_schemas_that_are_none_are_refused_or_passed_over(template):
    tokenizer, chance, form = scripted_tokenizer(), Random(7), form_of(template)
    grammars = Grammars(tokenizer, frozenset([tokenizer.eos_token_id]))
    for at in range(40):
        schemas = tools_at_random(chance)
        place = chance.choice([*objects(schemas["weather"])])
        place[chance.choice([*KEYWORDS, *place])] = chance.choice(JUNK)
        shape = Shape(must_call=True, strict=STRICT if at % 2 else frozenset())
        with suppress(UsageError):
            source = answer_grammar(
                grammars.vocabulary, shape, Plain(), form, template, as_tools(schemas), None
            )
            grammars.constraint(source)


def test_a_name_that_not_every_form_can_write_is_refused():
    with pytest.raises(UsageError, match="a b"):
        one_call_grammar(TEMPLATES["hermes"], "a b")
