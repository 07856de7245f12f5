"""`dali simulate`: recorded routing, replayed under policies and hardware profiles."""

from __future__ import annotations

import os
import shlex
import tempfile
from contextlib import suppress
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import dali
from dali.cli.interrupt import ending_at_once
from dali.cli.options import FILE, NAMES, SWITCH, Option, whole
from dali.cli.settings import Verb
from dali.cli.terminal import passing_note
from dali.errors import DaliError, UsageError

PROFILE = "paper"  # dali.replay.comparison's, which takes long to import; a test compares them

VERB = Verb(
    "simulate",
    "Replay traces event by event through the policies, residency and timeline of live runs, computing nothing, and compare: hit "
    "rates beside the offline optimum, modelled tokens a second beside a bound. Traces come from `dali trace`.",
    {
        "comparison": ("policy", "cache-slots", "batch", "profile", "shape", "tokens", "cache-only", "seed"),
        "output": ("json", "html", "explain"),
    },
    words="TRACE.npz [TRACE.npz ...]",
    own=(
        Option("json", FILE, 'write the rows here, as {"rows": [...]}'),
        Option("seed", whole(0), "of the first residents and of random eviction (default: 0)"),
        Option("profile", NAMES, f"hardware profiles, by name or file (default: {PROFILE})"),
        Option("explain", SWITCH, "say what the table's columns mean"),
        Option(
            "policy",
            NAMES,
            "policies of `dali run --list-policies` and files that end in .py, with commas between them, or all (default) of "
            "dali's own; their lossy parts off",
        ),
    ),
)


def main(settings: SimpleNamespace) -> int:
    if not settings.words:
        raise UsageError("`dali simulate` needs a trace.", "Record one: `dali trace MODEL -o FILE.npz`.")
    for file in (settings.json, settings.html):
        if file is not None and (Path(file).is_dir() or not os.access(Path(file).parent, os.W_OK)):
            raise UsageError(f"{file!r} is no file that can be written.", "Name one in a writable folder.")
    if settings.cache_only and (settings.profile or settings.shape):
        raise UsageError("--cache-only has no times, so no --profile and no --shape.", "Leave them out.")
    passing_note("Reading the traces ...")
    with ending_at_once():
        from dali.replay import cells, comparison, sweep
        from dali.replay.report import page, table

    planned = cells.plan(
        settings.words,
        cells.spelt_out(settings.policy or ("all",), settings.cache_only),
        settings.profile or (comparison.PROFILE,),
        settings.shape or (comparison.SHAPE,),
        settings.batch or (1,),
        settings.cache_slots or comparison.SLOTS,
        settings.tokens,
        settings.seed or 0,
        settings.cache_only,
    )
    outcomes = sweep.sweep(planned, lambda done: passing_note(f"Replayed {done} of {len(planned)} cells"))
    try:  # files first: whoever reads the table may stop in the middle of it
        if settings.json is not None:
            _write(settings.json, table.as_json(outcomes))
        if settings.html is not None:
            passing_note("Drawing ...")
            _write(settings.html, page.page(outcomes, planned, _made(settings)))
    finally:  # a full disk must not take the table, too
        passing_note()
        print(table.table(outcomes, settings.explain))
    return 0


def _made(settings: SimpleNamespace) -> str:
    """The command that makes the report again, and the day."""
    words = ["dali", "simulate", *settings.words]
    for name in (
        name for names in VERB.flags.values() for name in names if name not in ("json", "html", "explain")
    ):
        value = getattr(settings, name.replace("-", "_"))
        if value is True:
            words.append(f"--{name}")
        elif value:
            words += [f"--{name}", ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    return f"Made on {date.today()} by dali {dali.__version__}: {shlex.join(words)}"


def _write(name: str, text: str) -> None:
    """A whole file or none."""
    path = Path(name)
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            temporary = Path(file.name)
            file.write(text)
        os.chmod(temporary, 0o644)
        temporary.replace(path)
    except OSError as error:
        raise DaliError(
            f"Cannot write {name} ({error.strerror or error}).", "Name a file in a writable folder."
        ) from error
    finally:
        if temporary is not None:
            with suppress(OSError):  # it was renamed
                temporary.unlink()
