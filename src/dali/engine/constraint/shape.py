"""What a request says that its answer has to be."""

from __future__ import annotations

from dataclasses import dataclass

from dali.engine.constraint.lark import Schema


@dataclass(frozen=True)
class Shape:
    """`schema`: the answer's text is JSON that follows this JSON schema; `grammar`: it is of this grammar, in llguidance's Lark
    or in llama.cpp's GBNF. `must_call`: the answer calls a tool, and has no other text; `only`: the tool that it calls, where
    that is not the model's choice; `strict`: names of the tools whose arguments follow their schemas to the letter. Reasoning
    before the text, or before calls, is free."""

    schema: Schema | None = None
    grammar: str | None = None
    must_call: bool = False
    only: str | None = None
    strict: frozenset[str] = frozenset()

    @property
    def asks(self) -> bool:
        """Whether it asks for anything."""
        return self.schema is not None or self.grammar is not None or self.must_call or bool(self.strict)
