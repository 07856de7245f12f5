"""`dali simulate`: recorded routing, replayed under policies and hardware profiles."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

from dali.cli.interrupt import ending_at_once
from dali.cli.options import FILE, NAMES, Option, whole
from dali.cli.settings import Verb
from dali.cli.terminal import passing_note
from dali.errors import DaliError, UsageError

SLOTS = ("25%", "50%")
PROFILE = "paper"

VERB = Verb(
    "simulate",
    "Replay traces event by event through the policies, residency and timeline of live runs, computing nothing, and compare: hit "
    "rates beside the offline optimum, modelled tokens a second beside a bound. Traces come from `dali trace`.",
    {
        "comparison": ("policy", "cache-slots", "batch", "profile", "shape", "tokens", "cache-only", "seed"),
        "output": ("json", "html"),
    },
    words="TRACE.npz [TRACE.npz ...]",
    own=(
        Option("json", FILE, 'write the rows here, as {"rows": [...]}'),
        Option("seed", whole(0), "of the first residents and of random eviction (default: 0)"),
        Option("profile", NAMES, f"hardware profiles, by name or file (default: {PROFILE})"),
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
        from dali.replay import cells, sweep
        from dali.replay.report import page, table

    planned = cells.plan(
        settings.words,
        _policies(settings.policy or ("all",), settings.cache_only),
        settings.profile or (PROFILE,),
        settings.shape or ("own",),
        settings.batch or (1,),
        settings.cache_slots or SLOTS,
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
            _write(settings.html, page.page(outcomes, planned))
    finally:  # a full disk must not take the table, too
        passing_note()
        print(table.table(outcomes))
    return 0


def _policies(named: tuple[str, ...], cache_only: bool) -> list[str]:
    """Names, each once, "all" spelt out; "lossless" is the same, as nothing lossy is ever replayed."""
    from dali import systems
    from dali.replay import eviction

    found: list[str] = []
    for name in named:
        if name not in ("all", "lossless"):
            found.append(name)
        elif cache_only:
            found += eviction.POLICIES
        else:
            found += sorted(systems.names(), key=lambda name: name != "default")
    return list(dict.fromkeys(found))


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
