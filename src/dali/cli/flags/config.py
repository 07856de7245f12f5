"""The file that --config names: flags that stand in YAML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dali.cli import verbs
from dali.cli.flags.near import near_flag
from dali.cli.flags.option import Option
from dali.errors import UsageError


def read_config(file: str, options: Sequence[Option]) -> dict[str, list[tuple[str, str]]]:
    """Key -> (text, origin) of those of `options` that the file gives. Every flag of every verb may stand in it."""
    own = {name: option for option in options for name in option.names}
    all_of_them = verbs.options() | own
    found: dict[str, list[tuple[str, str]]] = {}
    for given, entry in _entries(file).items():
        name = str(given).replace("_", "-")
        option = all_of_them.get(name)
        if option is None or name == "config":
            known = ", ".join(sorted(all_of_them.keys() - {"config"}))
            near = near_flag(name, all_of_them)
            meant = f"Did you mean {near}? " if near else ""
            raise UsageError(f"Unknown flag {given!r} in {file}.", f"{meant}Known flags: {known}.")
        texts = entry if option.repeatable and isinstance(entry, list) else [entry]
        if not all(isinstance(text, str) for text in texts):
            raise UsageError(f"{given} in {file} cannot be {entry!r}.", f"Give {option.kind.expected}.")
        if name in own and (name == option.name or not found.get(option.key)):
            found[option.key] = [(text, f"{given} in {file}") for text in texts if text]
    return found


def _entries(file: str) -> dict[Any, Any]:
    import yaml

    try:
        with open(file, encoding="utf-8-sig") as stream:
            entries = yaml.load(stream, yaml.BaseLoader) or {}  # all its scalars stay text
        if not isinstance(entries, dict):
            raise ValueError("it holds no flags")
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        problem = f"Cannot read the config file {file} ({reason})."
        raise UsageError(problem, "Give a YAML file with one flag a line, as `temp: 0.7`.") from error
    return entries
