"""What --chat-template gives: a Jinja template, or the file that holds one."""

from __future__ import annotations

from pathlib import Path

from dali.cli.plain_text import plain_text
from dali.errors import UsageError


def read_template(given: str) -> str:
    """The template; UsageError for a file that cannot be read, and for a template that cannot be parsed, with the line."""
    template, origin = given, "--chat-template"
    if "{{" not in given and "{%" not in given:
        template, origin = _read(given), given
    from jinja2 import Environment, TemplateSyntaxError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser

    class Generation(Extension):
        """transformers' own tag around what the assistant says."""

        tags = {"generation"}  # noqa: RUF012  # as jinja2 declares it

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    try:
        Environment(extensions=[Generation, loopcontrols]).parse(template)
    except TemplateSyntaxError as error:
        raise UsageError(
            f"Line {error.lineno} of {origin} is no Jinja ({(error.message or '').rstrip('.')}).",
            "Correct it there, or leave --chat-template out for the model's own.",
        ) from error
    return template


def _read(file: str) -> str:
    try:
        return plain_text(Path(file).read_bytes())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        problem = f"Cannot read the chat template {file!r} ({reason})."
        raise UsageError(problem, "Give a Jinja template or the file that holds one.") from error
