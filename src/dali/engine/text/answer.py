"""The grammar of a whole answer: reasoning as the model writes it, and then what was asked for."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dali.engine.constraint.grammars import Grammars
from dali.engine.constraint.lark import ANY, Lark, letters, without
from dali.engine.constraint.shape import Shape
from dali.engine.text.calls.form import Form, Function, Written, functions_of
from dali.engine.text.harmony import Harmony
from dali.engine.text.structure import Structure, form_and_template
from dali.engine.text.thinking import TAGS
from dali.errors import UsageError

if TYPE_CHECKING:
    from dali.engine.constraint.constraint import Constraint
    from dali.engine.constraint.vocabulary import Vocabulary

GIVEN = "given"  # a client's own grammar
MOST_GBNF = 2**14  # letters: making Lark of it takes as long as their square
GBNF = re.compile(r"(?m)^\s*[\w-]+\s*::=")
ESCAPE = re.compile(r"(?s)\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|.)")
OPENINGS = "|".join(letters(opening) for opening, _ in TAGS)
NO_REASONING = rf"~/\s*({OPENINGS})(?s:.*)/"  # a text that begins so would be taken for it


def constraint_of(
    grammars: Grammars,
    tokenizer: Any,
    shape: Shape,
    structure: Structure,
    tools: Sequence[Mapping[str, Any]] = (),
    calls: int | None = 0,
) -> Constraint:
    """What holds an answer of `structure` to `shape`; `calls` of `tools` are told apart in it. UsageError: it cannot be."""
    form, template = form_and_template(tokenizer) if tools else (None, "")
    source = answer_grammar(grammars.vocabulary, shape, structure, form, template, tools, calls)
    return grammars.constraint(source)


def answer_grammar(
    vocabulary: Vocabulary,
    shape: Shape,
    structure: Structure,
    form: Form | None = None,
    template: str = "",
    tools: Sequence[Mapping[str, Any]] = (),
    calls: int | None = None,
) -> str:
    """What llguidance compiles. form: how calls of `tools` are written, where they are told apart, as `template` asks for it; at
    most `calls` of them. UsageError: what cannot be written, by name."""
    lark = Lark(vocabulary)
    functions = functions_of(tools, shape.strict, shape.only)
    text = _text(lark, shape)
    if isinstance(structure, Harmony):
        body = _in_channels(lark, shape, structure, functions, text)
    elif not functions:
        body = text or ANY
    else:
        if form is None or form.write is None:
            raise UsageError(
                "In the form in which this model writes calls of tools, they cannot be asked for or held to a schema.",
                "Leave calls to the model: tool_choice auto, and no strict tools.",
            )
        body = _with_calls(lark, shape, form.write(lark, functions, template), text, calls)
    source = lark.grammar(f"{structure.lead(lark)} {body}")
    if shape.grammar is None:
        return source
    given = _as_lark(shape.grammar)
    return json.dumps({"grammars": [{"lark_grammar": source}, {"name": GIVEN, "lark_grammar": given}]})


def _text(lark: Lark, shape: Shape) -> str | None:
    """The text that was asked for; None for any."""
    if shape.must_call:
        return None
    if shape.grammar is not None:
        return f"@{GIVEN}"
    return None if shape.schema is None else f"{lark.begin} {lark.json(shape.schema)}"


def _with_calls(lark: Lark, shape: Shape, written: Written, text: str | None, most: int | None) -> str:
    group = f"{lark.begin} {written.group(lark, most)}"
    if shape.must_call:
        return group
    if text is not None:
        return lark.one_of([text, group])
    free = f"{without([*written.reads, written.begin] if written.begin else written.reads)} & {NO_REASONING}"
    if not written.begin:  # an answer that is a call, or none
        return lark.one_of([group, lark.terminal(rf"({free}) & /([^\s{{](?s:.*))?/")])
    calls = f"{lark.until_any(free, written.begin)} {written.after_begin(lark, most)}"
    return f"({calls})* {lark.terminal(free)}"


def _in_channels(
    lark: Lark, shape: Shape, harmony: Harmony, functions: Sequence[Function], text: str | None
) -> str:
    final = f"{harmony.final(lark)} {text or lark.terminal(ANY)}"
    if not functions:
        return final
    call = harmony.write_call(lark, functions)
    if shape.must_call:
        return call
    before = "" if text else f"({harmony.commentary(lark)})*"
    return f"{before} {lark.one_of([final, call])}"


def _as_lark(grammar: str) -> str:
    """UsageError: GBNF that is none, or that llguidance cannot make Lark of."""
    from llguidance.gbnf_to_lark import gbnf_to_lark

    if not GBNF.search(grammar):
        return grammar
    if len(grammar) > MOST_GBNF:
        raise UsageError(
            f"The grammar has {len(grammar)} letters of GBNF, and may have {MOST_GBNF}.",
            "Write it in llguidance's Lark.",
        )
    try:
        return gbnf_to_lark(ESCAPE.sub(_letter, grammar))
    except Exception as error:  # its parser has errors of all kinds
        said = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(
            f"The grammar is no GBNF that can be used ({said[:200]}).",
            "Correct it, or write it in llguidance's Lark.",
        ) from error


def _letter(escape: re.Match[str]) -> str:
    """An escape of GBNF without \\u and \\U, of which llguidance drops the leading zeros."""
    code = int(escape[1] or escape[2] or "0", 16)
    if not code or code > sys.maxunicode or 0xD800 <= code < 0xE000:
        return escape[0]
    return f"\\x{code:02x}" if code < 256 else chr(code)
