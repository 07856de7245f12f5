"""Python files and installed packages that bring what does not ship with dali: found, run once, and named when they are wrong."""

from __future__ import annotations

import os
import sys
from functools import cache, lru_cache
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

from dali.errors import DaliError
from dali.policies.decisions import line_of, reason, shown

MEND = "Mend it; docs/POLICIES.md shows one that works."


class PluginError(DaliError):
    """A plug-in that cannot be used at all. It is no UsageError, which whoever reads flags words anew."""

    exit_code = 2


def installed(group: str) -> list[str]:
    """The names of an entry point group, of all installed packages; none of them is imported for it."""
    return sorted(_entries(group))


def from_file(name: str) -> tuple[ModuleType, str]:
    """A Python file as a module, run anew when the file has changed, and its whole path. PluginError: there is no such file, or
    it raises."""
    path = os.path.abspath(os.path.expanduser(name))
    try:
        status = os.stat(path)
        with open(path, "rb") as file:
            source = file.read()
    except OSError as error:
        raise PluginError(
            f"Cannot read the policy file {name} ({error.strerror or error}).",
            "Give the path of a Python file; docs/POLICIES.md shows one that works.",
        ) from error
    return _run(path, status.st_mtime_ns, source), path


@lru_cache(maxsize=64)
def from_package(group: str, name: str) -> tuple[Any, str]:
    """What an installed package's entry point names, and the file it is in. PluginError: it raises."""
    entry = _entries(group)[name]
    package = entry.dist.name if entry.dist is not None else "?"
    what = group.removeprefix("dali.").removesuffix("s")
    try:
        found = entry.load()
    except (Exception, SystemExit) as error:
        folder, _, _ = entry.module.partition(".")
        file, line = _last_frame(error, folder)
        where = f" at {shown(file)}, line {line}" if file else ""
        raise PluginError(
            f"The {what} {name} of the package {package} ({entry.value}) raises {reason(error)}{where}.",
            f"Mend or uninstall {package}.",
        ) from error
    return found, getattr(sys.modules.get(entry.module), "__file__", None) or entry.value


def first_line(of: type) -> int:
    """The line of a class's first method."""
    codes = [getattr(part, "__code__", None) for part in vars(of).values()]
    return min([code.co_firstlineno for code in codes if code is not None], default=1)


def _entries(group: str) -> dict[str, EntryPoint]:
    return _entries_on(group, tuple(sys.path))


@cache
def _entries_on(group: str, path: tuple[str, ...]) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=group)}


@lru_cache(maxsize=64)
def _run(path: str, changed: int, source: bytes) -> ModuleType:
    module = ModuleType(f"dali_policy_file:{path}")
    module.__file__ = path
    sys.modules[module.__name__] = module  # where dataclasses, for one, look for their own
    try:
        exec(compile(source, path, "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        line = (
            error.lineno
            if isinstance(error, SyntaxError) and error.filename == path
            else line_of(error, path)
        )
        said = error.msg if isinstance(error, SyntaxError) else ""
        what = f"SyntaxError ({said})" if said else reason(error)
        raise PluginError(f"The policy file {shown(path)}, line {line or 1}, raises {what}.", MEND) from error
    return module


def _last_frame(error: BaseException, package: str) -> tuple[str, int]:
    """The innermost frame of a package's own files; ("", 0) where it has none."""
    found = ("", 0)
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if trace.tb_frame.f_globals.get("__name__", "").partition(".")[0] == package:
            found = code.co_filename, trace.tb_lineno
        trace = trace.tb_next
    return found
