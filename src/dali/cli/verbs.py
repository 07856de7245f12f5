"""The verbs of the command: each is the module of its name in this folder, with _ between two words."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dali.cli.flags.option import Option

VERBS = {
    "run": "ask a model once, or chat with it",
    "serve": "let programs ask a model over HTTP",
    "doctor": "say before a download what a model would do on this machine, or what is wrong with it",
    "bench": "measure a model's tokens a second",
    "bench hw": "measure this machine, for plans and replays to go by",
    "trace": "record which experts a model's tokens are routed to",
    "simulate": "replay recorded routing under policies and hardware profiles",
    "list": "the models found here, and whether they run",
}


def module(name: str) -> Any:
    """A verb's module: its VERB, and its `main`, which takes the settings."""
    return importlib.import_module(f"dali.cli.{name.replace(' ', '_')}")


def split(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The verb that a command line begins with, or whatever is in its place, and the rest."""
    words = 2 if " ".join(arguments[:2]) in VERBS else 1
    return " ".join(arguments[:words]), list(arguments[words:])


def options() -> dict[str, Option]:
    """Every flag of every verb by each of its names; where verbs share a name, that of the first verb."""
    return {
        name: option
        for verb in reversed(VERBS)
        for option in module(verb).VERB.options
        for name in option.names
    }
