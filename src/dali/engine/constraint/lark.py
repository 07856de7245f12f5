"""Writes grammars in llguidance's dialect of Lark."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from dali.errors import UsageError, reason

if TYPE_CHECKING:
    from dali.engine.constraint.vocabulary import Vocabulary

Schema = Mapping[str, Any] | bool

ANY = r"/(?s:.*)/"  # any text
WHITE = r"/[ \n]{0,2}/"  # around reasoning, where models were taught line breaks

# JSON on one line: where they may, small models go on with white space for ever.
COMPACT = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}

LITERAL = ("const", "enum", "default", "examples")  # keywords whose values are no schemas

HEAD = '%llguidance {"no_forcing": true}'  # which tokens spell a text is the model's choice


class Lark:
    """Rules that refer to each other by name. Each method returns an expression for the body of a rule."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._controls = vocabulary.controls
        self._tokens = vocabulary.marks | vocabulary.controls
        self._ends = vocabulary.ends
        self.begin = "/ ?/" if vocabulary.drops_space else ""
        """The expression of what an answer's first token may have before its text, and nobody sees."""
        self._lines: list[str] = []
        self._names: dict[str, str] = {}  # of what was written already

    def text(self, text: str) -> str:
        """This text, where it spells control tokens or marks by those. A token that ends an answer is left out: the answer ends
        there."""
        parts = re.split(f"({_any_of(self._tokens)})", text) if self._tokens else [text]
        spelt = [
            f"<[{self._tokens[part]}]>" if at % 2 else json.dumps(part)
            for at, part in enumerate(parts)
            if part and part not in self._ends
        ]
        return " ".join(spelt) or '""'

    def json(self, schema: Schema, lenient: bool = False) -> str:
        """A JSON value that follows `schema`. lenient: keywords that llguidance does not know are passed over."""
        options = {**COMPACT, "lenient": True} if lenient else COMPACT
        if not isinstance(schema, Mapping | bool):
            raise UsageError(
                f"A schema cannot be {schema!r:.60}.",
                "Give a JSON schema as a dict: pydantic's model_json_schema() makes one.",
            )
        if not lenient:
            _check_counts(schema)
        whole = {"not": {}} if schema is False else {} if schema is True else schema
        try:
            return self.rule("%json " + json.dumps({**whole, "x-guidance": options}))
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(
                f"The schema cannot be written as JSON ({reason(error)}).",
                "Give plain dicts, lists, strings and numbers.",
            ) from error

    def until(self, terminal: str, closing: str) -> str:
        """A text of `terminal`, an expression without rules, up to the first `closing`, and that."""
        free = f"({terminal}) & {without([closing])}"
        before, control, after = self._at_control(closing)
        if not control:
            return self.lazy(f"({free}) {json.dumps(closing)}")
        head = self.terminal(f"({free}) {json.dumps(before)}" if before else free)
        return " ".join(filter(None, [head, f"<[{self._controls[control]}]>", after and self.text(after)]))

    def until_any(self, terminal: str, closing: str) -> str:
        """The same where a control token in `closing` may be spelt by letters as well."""
        spelt = self.lazy(f"(({terminal}) & {without([closing])}) {json.dumps(closing)}")
        return f"({spelt} | {self.until(terminal, closing)})" if self._at_control(closing)[1] else spelt

    def rule(self, body: str) -> str:
        return self._named("r", "", body)

    def lazy(self, body: str) -> str:
        """A terminal that ends as soon as it can."""
        return self._named("z", "[lazy]", self.terminal(body))

    def terminal(self, body: str) -> str:
        return self._named("T", "", body)

    def one_of(self, expressions: Iterable[str]) -> str:
        return f"({' | '.join(expressions)})"

    def grammar(self, start: str) -> str:
        return "\n".join([HEAD, f"start: {start}", *self._lines])

    def _at_control(self, text: str) -> tuple[str, str, str]:
        """`text` parted at its first control token."""
        found = re.search(_any_of(self._controls), text) if self._controls else None
        return (text[: found.start()], found[0], text[found.end() :]) if found else (text, "", "")

    def _named(self, kind: str, options: str, body: str) -> str:
        key = f"{kind}{options}: {body}"
        if key not in self._names:
            name = self._names[key] = f"{kind}{len(self._names)}"
            self._lines.append(f"{name}{options}: {body}")
        return self._names[key]


def _check_counts(schema: Any) -> None:
    """UsageError where properties are counted that may come twice: llguidance lets those that `properties` does not name."""
    waiting = [schema]
    while waiting:
        part = waiting.pop()
        if not isinstance(part, Mapping):
            waiting += part if isinstance(part, list) else []
            continue
        waiting += [inner for name, inner in part.items() if name not in LITERAL]
        least, required = part.get("minProperties"), part.get("required")
        named = len(required) if isinstance(required, list) else 0
        free = part.get("additionalProperties") is not False or part.get("patternProperties")
        if isinstance(least, int | float) and least > max(named, 1) and free:
            raise UsageError(
                f"An answer cannot be held to minProperties {least} where names are free: the same one may come twice.",
                "Leave it out, or name as many properties in `required`.",
            )


def without(texts: Iterable[str]) -> str:
    """A terminal: any text that has none of `texts` in it."""
    return rf"({ANY} & ~/(?s:.*)({'|'.join(map(letters, texts))})(?s:.*)/)"


def letters(text: str) -> str:
    """A regular expression that is `text` itself."""
    return "".join(letter if letter.isalnum() else f"\\x{{{ord(letter):x}}}" for letter in text)


def _any_of(texts: Iterable[str]) -> str:
    return "|".join(map(re.escape, sorted(texts, key=len, reverse=True)))
