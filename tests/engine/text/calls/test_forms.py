"""Calls in the forms that models write them in, taken from those models' own chat templates."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from dali.engine.text.calls.calling import Calling
from dali.engine.text.calls.found import FORMS as KNOWN
from dali.engine.text.calls.found import form_of
from dali.engine.text.structure import Plain
from scripted import scripted_tokenizer

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "integer"},
                    "wet": {"type": "boolean"},
                    "tags": {"type": "array"},
                    "when": {"type": ["string", "null"]},
                    "unit": {"enum": ["C", "F"]},
                },
            },
        },
    }
    for name in ("weather", "now")
]
TOKENIZER = scripted_tokenizer()
HERMES = '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
QWEN_CODER = "<tool_call>\n<function=example_function_name>\n<parameter=example_parameter_1>"
GLM = "<tool_call>{function-name}<arg_key>{arg-key-1}</arg_key>"
MINIMAX = '<minimax:tool_call>\n<invoke name="tool-name-1">\n<parameter name="param-key-1">'
SEED = "<seed:tool_call>\n<function=example_function_name>\n"
MISTRAL = "[AVAILABLE_TOOLS] [TOOL_CALLS]"
LLAMA = (
    'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.'
)
DEEPSEEK = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>"
KIMI = "<|tool_calls_section_begin|><|tool_call_begin|>"
GRANITE = "<|tool_call|>"
COMMAND = "<|START_ACTION|>"

PARIS = ("weather", {"city": "Paris"})
TWO = ("weather", {"city": 'Bad "Ems"\n}', "days": 3})
NOW = ("now", {})
CALL = json.dumps({"name": "weather", "arguments": TWO[1]})

FORMS = {
    "hermes": (HERMES, f"I look.\n<tool_call>\n{CALL}\n</tool_call>", "I look.", [TWO]),
    "several": (
        HERMES,
        f'<tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n{{"name": "now", "arguments": {{}}}}\n</tool_call>\n\nSo.',
        "So.",
        [TWO, NOW],
    ),
    "arguments first": (HERMES, '<tool_call>{"arguments": {"city": "Paris"}, "name": "weather"}</tool_call>', "", [PARIS]),
    "arguments as text": (
        HERMES, '<tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"Paris\\"}"}</tool_call>', "", [PARIS],
    ),
    "no arguments": (
        HERMES, '<tool_call>{"name": "now"}</tool_call><tool_call>{"name": "now", "arguments": null}', "", [NOW] * 2,
    ),
    "a brace too many": (
        HERMES, '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}}</tool_call> Yes', "Yes", [PARIS],
    ),
    "no closing tag": (
        HERMES, '<tool_call>{"name": "now", "arguments": {}}\n<tool_call>{"name": "now", "arguments": {}}', "", [NOW] * 2,
    ),
    "line breaks in strings": (
        HERMES, '<tool_call>{"name": "weather", "arguments": {"city": "a\nb\tc"}}</tool_call>', "",
        [("weather", {"city": "a\nb\tc"})],
    ),
    "no call": (HERMES, "Tags are <tool_call>{no}</tool_call>, < and <tool.", "Tags are <tool_call>{no}, < and <tool.", []),
    "granite": (GRANITE, f"<|tool_call|>[{CALL}, {CALL}]", "", [TWO, TWO]),
    "command": (
        COMMAND,
        '<|START_ACTION|>[\n {"tool_call_id": "0", "tool_name": "weather", "parameters": {"city": "Paris"}}\n]<|END_ACTION|>',
        "",
        [PARIS],
    ),
    "qwen coder": (
        QWEN_CODER,
        "Let me.\n\n<tool_call>\n<function=weather>\n<parameter=city>\nBad \"Ems\"\n}\n</parameter>\n<parameter=days>\n3\n"
        "</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>",
        "Let me.",
        [TWO, NOW],
    ),
    "values": (
        QWEN_CODER,
        "<function=weather>\n<parameter=wet>\nTrue\n</parameter>\n<parameter=tags>\n[1, \"a\"]\n</parameter>\n<parameter=when>\n"
        "null\n</parameter>\n<parameter=unit>\nC\n</parameter>\n<parameter=other>\n7\n</parameter>\n<parameter=days>\nNaN\n"
        "</parameter>\n<parameter=city>\n\n two\n\n</parameter>\n</function>\n</tool_call>",
        "",
        [("weather", {
            "wet": True, "tags": [1, "a"], "when": None, "unit": "C", "other": 7, "days": "NaN", "city": "\n two\n",
        })],
    ),
    "seed": (
        SEED,
        "<seed:tool_call>\n<function=weather>\n<parameter=city>Paris</parameter>\n</function>\n</seed:tool_call>",
        "",
        [PARIS],
    ),
    "minimax": (
        MINIMAX,
        '<minimax:tool_call>\n<invoke name="weather">\n<parameter name="city">Paris</parameter>\n</invoke>\n<invoke name="now">\n'
        "</invoke>\n</minimax:tool_call>",
        "",
        [PARIS, NOW],
    ),
    "glm": (
        GLM,
        "Well.\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Bad \"Ems\"\n}</arg_value>\n<arg_key>days</arg_key>\n"
        "<arg_value>3</arg_value>\n</tool_call>\n<tool_call>now</tool_call>",
        "Well.",
        [TWO, NOW],
    ),
    "glm on one line": (
        GLM, "<tool_call>weather<arg_key>city</arg_key><arg_value>Paris</arg_value></tool_call>", "", [PARIS],
    ),
    "mistral array": (MISTRAL, f"[TOOL_CALLS] [{CALL}]", "", [TWO]),
    "mistral names": (MISTRAL, '[TOOL_CALLS]now[ARGS]{}[TOOL_CALLS]weather[CALL_ID]abc[ARGS]{"city": "Paris"}', "", [NOW, PARIS]),
    "mistral bare": (MISTRAL, '[TOOL_CALLS]weather{"city": "Paris"}', "", [PARIS]),
    "llama": (LLAMA, '{"name": "weather", "parameters": {"city": "Paris"}}', "", [PARIS]),
    "llama several": (LLAMA, f'<|python_tag|>{CALL}; {{"name": "now", "parameters": {{}}}}', "", [TWO, NOW]),
    "llama json": (LLAMA, '{"name": "Tom", "parameters": {}}', '{"name": "Tom", "parameters": {}}', []),
    "llama text": (LLAMA, 'Use {"name": "now"}.', 'Use {"name": "now"}.', []),
    "deepseek": (
        DEEPSEEK,
        "Hm.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{\"city\": \"Paris\"}\n```"
        "<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "Hm.",
        [PARIS, NOW],
    ),
    "deepseek 3.1": (
        DEEPSEEK,
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{"city": "Paris"}<｜tool▁call▁end｜>'
        "<｜tool▁calls▁end｜>",
        "",
        [PARIS],
    ),
    "deepseek 3.2": (
        "{% set dsml_token = '｜DSML｜' %} <｜DSML｜function_calls>",
        '<｜DSML｜function_calls>\n<｜DSML｜invoke name="weather">\n<｜DSML｜parameter name="other" string="true">7'
        '</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜function_calls>',
        "",
        [("weather", {"other": "7", "days": 3})],
    ),
    "solar": (
        "<|tool_call:begin|>",
        "<|tool_calls|><|tool_call:begin|>abc<|tool_call:name|>weather<|tool_call:args|>{\"city\": \"Paris\"}<|tool_call:end|>"
        "<|calls|>",
        "",
        [PARIS],
    ),
    "lfm": (
        "<|tool_call_start|>",
        "A<|tool_call_start|>[weather(city='Bad \"Ems\"\\n}', days=3), now()]<|tool_call_end|>B",
        "AB",
        [TWO, NOW],
    ),
    "gemma": (
        "<|tool_call>call:",
        '<|tool_call>call:weather{city:<|"|>Bad "Ems"\n}<|"|>,days:3}<tool_call|><|tool_call>call:now{}<tool_call|>',
        "",
        [TWO, NOW],
    ),
    "nemotron": ("<TOOLCALL>", f"<TOOLCALL>[{CALL}]</TOOLCALL>", "", [TWO]),
    "lines of json": ("<tool_calls>", f"<tool_calls>\n{CALL}\n{CALL}\n</tool_calls>", "", [TWO, TWO]),
    "kimi": (
        KIMI,
        '<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>{"city": "Paris"}'
        "<|tool_call_end|><|tool_calls_section_end|>",
        "",
        [PARIS],
    ),
}  # fmt: skip


def calling(template: str, most: int | None = None) -> Calling:
    return Calling(Plain(), form_of(template), TOKENIZER, TOOLS, most)


def read(structure: Calling, parts) -> tuple[str, list[tuple[str, str]]]:
    """What an answer in such parts says."""
    pieces = [piece for part in parts for piece in structure.push(part)] + structure.flush()
    text, calls = "", []
    for piece in pieces:
        text += piece.text
        if piece.call and piece.call.name:
            assert piece.call.number == len(calls)
            calls.append((piece.call.name, ""))
        elif piece.call:
            assert piece.call.number == len(calls) - 1
            calls[-1] = (calls[-1][0], calls[-1][1] + piece.call.arguments)
    return text, calls


@pytest.mark.parametrize("size", [1, 3, 10**6])
@pytest.mark.parametrize(("template", "said", "text", "calls"), FORMS.values(), ids=FORMS)
def test_calls_are_told_from_text_wherever_it_is_cut(template, said, text, calls, size):
    found = read(calling(template), [said[at : at + size] for at in range(0, len(said), size)])
    assert (found[0], [(name, json.loads(arguments)) for name, arguments in found[1]]) == (text, calls)


@pytest.mark.parametrize(("template", "said", "text", "calls"), FORMS.values(), ids=FORMS)
def test_an_answer_that_is_cut_off_is_given_as_far_as_it_came(template, said, text, calls):
    whole = read(calling(template), [said])[1]
    for end in range(len(said)):
        found = read(calling(template), [said[:end]])[1]
        assert len(found) <= len(whole)
        assert all(whole[at][0] == name for at, (name, _) in enumerate(found))
        if "arguments as text" not in said and found:
            assert whole[len(found) - 1][1].startswith(found[-1][1].removesuffix("{}"))


def test_arguments_come_while_they_are_written():
    structure = calling(HERMES)
    structure.push('<tool_call>{"name": "weather", "arguments": {"city": "Par')
    (more,) = structure.push("is and")
    assert more.call == (0, "", "is and")
    structure = calling(QWEN_CODER)
    structure.push("<tool_call><function=weather><parameter=city>\nPar")
    (more,) = structure.push("is\n")
    assert more.call == (0, "", "is")


@pytest.mark.parametrize(("template", "said", "text", "calls"), FORMS.values(), ids=FORMS)
def test_the_answer_ends_after_as_many_calls_as_it_may_have(template, said, text, calls):
    structure = calling(template, most=1)
    assert len(read(structure, said)[1]) == min(len(calls), 1)
    assert structure.over or len(calls) < 2


BITS = some.sampled_from(
    [
        "weather",
        "{",
        "}",
        "[",
        "]",
        '"',
        ":",
        ",",
        "\n",
        " ",
        ";",
        "a",
        "null",
        '{"name": "now", "arguments": ',
        "```json",
        "function",
    ]
)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(data=some.data())
def test_nothing_that_a_model_says_makes_it_fail(data):
    form = data.draw(some.sampled_from(KNOWN))
    parts = data.draw(some.lists(some.sampled_from(form.marks) | BITS, max_size=12))
    structure = Calling(Plain(), form, TOKENIZER, TOOLS)
    found = read(structure, parts)
    assert structure.push("more") == []  # all was read to its end
    assert "".join(parts).count("{") >= found[0].count("{")


def test_a_template_of_no_known_form_is_told():
    assert form_of("{{ tools }}") is None
    assert form_of("{{ tools }}", ["<|im_end|>", "<|tool_call_start|>"]) is form_of("<|tool_call_start|>")
