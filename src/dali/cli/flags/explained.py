"""--explain: what is told of experts, on stderr or in a file that says by its suffix what it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dali.cli.flags.option import SWITCH, Kind
from dali.cli.flags.written import check_suffix, write_whole
from dali.cli.terminal import log
from dali.errors import UsageError

if TYPE_CHECKING:
    from dali.llm import LLM
    from dali.measure.explained import Explained
    from dali.replay.explain.slices import LayerStep

TABLE = ""  # no file
EVENTS, PICTURE = ".json", ".svg"
FILES = {EVENTS: "trace events", PICTURE: "a picture of one step"}
PIXELS = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".pdf")
# A word after the flag is its file if it ends in one of these; else it is the next argument.
FILE_LIKE = (*FILES, *PIXELS, ".html", ".txt", ".csv", ".md")


def _is_file(word: str) -> bool:
    return Path(word).suffix.lower() in FILE_LIKE


def _explain(text: str) -> str | None:
    if _is_file(text):
        return text
    return TABLE if SWITCH.parse(text) else None


EXPLAIN = Kind("[FILE]", "nothing, or a file that ends in .json or .svg", _explain, takes=_is_file)


def check_explain(name: str) -> None:
    """UsageError for a file that cannot be written, or is of no kind that is."""
    if name == TABLE:
        return
    suffix = Path(name).suffix.lower()
    if suffix in PIXELS:
        vectors = Path(name).with_suffix(PICTURE)
        raise UsageError(
            f"--explain draws {PICTURE}, not {suffix}, as in {name!r}.",
            f"Give {vectors}, which browsers show; `rsvg-convert` and Inkscape make PNG and PDF of it.",
        )
    check_suffix(name, "explain", FILES)


@contextmanager
def explaining(llm: LLM, explain: str | None) -> Iterator[Explained | None]:
    """Tell at the end, however it comes, what experts did meanwhile."""
    if explain is None:
        yield None
        return
    from dali.measure.explained import Explained

    explained = Explained(llm)
    if explained.slows:
        log.info(
            "With --explain, plans for the GPU are made in Python and not in compiled code: steps take longer."
        )
    try:
        yield explained
    finally:
        if explain == TABLE:
            log.info(explained.table())
        else:
            write_explained(explain, explained.steps(), explained.times, explained.about)


def write_explained(name: str, steps: Sequence[LayerStep], times: str, about: str = "") -> None:
    """Layers' steps into a file of the kind that its suffix says; `times`: "modelled" or "measured"; `about`: what else is to be
    known of them."""
    from dali.replay.explain import events, picture

    suffix = Path(name).suffix.lower()
    told = f"Times are {times}. {about}".rstrip()
    write_whole(name, events.explained(steps, told) if suffix == EVENTS else picture.picture(steps, times))
    log.info(f"{name}: {FILES[suffix]}, {times}")
