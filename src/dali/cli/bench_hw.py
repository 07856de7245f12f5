"""`dali bench hw`: this machine, measured with dali's own kernels, and kept as the profile that plans and replays go by."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path

import dali
from dali.cli.flags.always import Always
from dali.cli.flags.kinds import FILE
from dali.cli.flags.option import SWITCH, flag
from dali.cli.flags.verb import Verb
from dali.cli.flags.written import check_written, write_whole
from dali.cli.importing import importing
from dali.cli.terminal import log, share_bar
from dali.hardware import own


@dataclass(frozen=True)
class Settings(Always):
    json: bool = flag(
        "bench", SWITCH, "print the profile as JSON in place of the table", variable="DALI_BENCH_HW_JSON"
    )
    output: str | None = flag(
        "bench",
        FILE,
        "write the profile here, for --profile, and not where it is used from then on",
        variable="DALI_BENCH_HW_OUTPUT",
    )
    html: str | None = flag(
        "bench", FILE, "write a self-contained page with plots here", variable="DALI_BENCH_HW_HTML"
    )


VERB = Verb(
    "bench hw",
    "Measure this machine in about a minute: memory, experts and linears of each format, attention, the disk of dali's cache, "
    "and a GPU with its link if there is one. What is found is kept in the user's configuration folder, and from then on "
    "--device cuda, --ram and `dali simulate` plan with it. Close other programs first.",
    Settings,
    headings=("bench",),
)


def main(settings: Settings) -> int:
    path = own.own_path() if settings.output is None else Path(settings.output)
    own.check_writable(path)
    if settings.html is not None:
        check_written(settings.html)
    with importing():
        from dali.probe import report, whole
    with share_bar("Measuring", sum(whole.PARTS.values())) as advance:
        profile = whole.measure(advance)
    own.write(profile, path)
    if settings.html is not None:
        made = f"Measured on {date.today()} by dali {dali.__version__}: dali bench hw."
        write_whole(settings.html, report.page(profile, made))
    print(profile.to_json() if settings.json else report.text(profile), end="" if settings.json else "\n")
    for note in profile.notes:
        log.warning(note)
    log.info(f"Kept in {path}." if settings.output is None else f"Written to {path}: give it to --profile.")
    return 0
