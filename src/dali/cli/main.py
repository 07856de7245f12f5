"""The command `dali`: finds the verb, runs it, and says what went wrong."""

from __future__ import annotations

import atexit
import errno
import gc
import io
import logging
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import dali
from dali.cli import verbs
from dali.cli.importing import importing
from dali.cli.interrupt import INTERRUPTED, interruptible
from dali.cli.terminal import log, passing_note, report, set_log_level
from dali.cli.verbs import VERBS
from dali.errors import DaliError, UsageError

if TYPE_CHECKING:
    from dali.cli.flags.verb import Parser

BROKEN_PIPE = 141  # as if SIGPIPE had ended the process


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; its exit code: 0, 1 after a failure, 2 for a request that cannot be meant."""
    _open_streams()
    set_log_level("info")
    atexit.register(gc.freeze)  # else the interpreter spends a second on garbage that exit frees anyway
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an answer may have letters the terminal lacks
    try:
        try:
            with interruptible():
                return _dispatch(list(sys.argv[1:] if arguments is None else arguments))
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        passing_note()
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output has seen enough
        _drop_output()
        return BROKEN_PIPE
    except DaliError as error:
        return _fail(error, error)
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            _drop_output()
            full = DaliError(
                "There is no space left where dali writes.", "Free some, or write to another disk."
            )
            return _fail(full, error)
        problem = f"dali failed with an unexpected {type(error).__name__} ({error})."
        fix = "That should not happen: run it again with -v, and report what it says."
        return _fail(DaliError(problem, fix), error)


def _open_streams() -> None:
    """Give what whoever started dali has closed a place: nobody reads stdout, as behind a pipe whose reader has left, and stderr
    goes nowhere. Else files that are opened later would get what is written there."""
    if sys.stderr is None:
        sys.stderr = os.fdopen(_to(os.open(os.devnull, os.O_WRONLY), 2), "w")
    if sys.stdout is None:
        reader, writer = os.pipe()
        os.close(reader)
        sys.stdout = os.fdopen(_to(writer, 1), "w")


def _to(descriptor: int, number: int) -> int:
    """The same file by another descriptor."""
    if descriptor != number:
        os.dup2(descriptor, number)
        os.close(descriptor)
    return number


def _drop_output() -> None:
    """Send what is still to be flushed nowhere, as it would fail once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(arguments: list[str]) -> int:
    arguments = arguments or ["--help"]
    name, rest = verbs.split(arguments)
    if name in VERBS:
        with importing():
            verb = verbs.module(name)
        settings = verb.VERB.settings(rest)
        set_log_level("debug" if settings.verbose else settings.log_level or "info")
        log.debug("%s: %s", name, vars(settings))
        code: int = verb.main(settings)
        return code
    if name.startswith("-"):
        _parser().parse_args(arguments)
        return 0
    raise UsageError(f"There is no `dali {name}`.", f"Choose one of {', '.join(VERBS)}; see `dali --help`.")


def _parser() -> Parser:
    """What the command knows without a verb: --help and --version."""
    from argparse import RawDescriptionHelpFormatter

    from dali.cli.flags.verb import Parser

    verbs = "\n".join(f"  {verb:<8}  {does}" for verb, does in VERBS.items())
    parser = Parser(
        "dali",
        "dali VERB ...",
        "Run Mixture-of-Experts language models on ordinary PCs.",
        f"verbs:\n{verbs}\n\n`dali VERB --help` lists a verb's flags.",
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dali {dali.__version__}")
    return parser


def _fail(error: DaliError, cause: Exception) -> int:
    passing_note()
    if log.isEnabledFor(logging.DEBUG):
        log.debug("", exc_info=cause)
    report(error)
    return error.exit_code
