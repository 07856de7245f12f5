"""The verbs of the command: each is the module of its name in this folder."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dali.cli.flags.option import Option

VERBS = {
    "run": "ask a model once, or chat with it",
    "serve": "let programs ask a model over HTTP",
    "bench": "measure a model's tokens a second",
    "trace": "record which experts a model's tokens are routed to",
    "simulate": "replay recorded routing under policies and hardware profiles",
    "list": "the models found here, and whether they run",
}


def module(name: str) -> Any:
    """A verb's module: its VERB, and its `main`, which takes the settings."""
    return importlib.import_module(f"dali.cli.{name}")


def options() -> dict[str, Option]:
    """Every flag of every verb by each of its names; where verbs share a name, that of the first verb."""
    return {
        name: option
        for verb in reversed(VERBS)
        for option in module(verb).VERB.options
        for name in option.names
    }
