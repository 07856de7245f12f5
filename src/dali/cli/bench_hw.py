"""`dali bench hw`: this machine, measured with dali's own kernels, and kept as the profile that plans and replays go by."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

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
    for name in (settings.output, settings.html):
        if name is not None:
            check_written(name)
    if settings.output is None:
        own.check_writable()
    with importing():
        from dali.probe import report, whole
    with share_bar("Measuring", sum(whole.PARTS.values())) as advance:
        profile = whole.measure(advance)
    if settings.output is None:
        own.write(profile)
    else:
        write_whole(settings.output, profile.to_json())
    if settings.html is not None:
        made = f"Measured on {date.today()} by dali {dali.__version__}: dali bench hw."
        write_whole(settings.html, report.page(profile, made))
    print(profile.to_json() if settings.json else report.text(profile), end="" if settings.json else "\n")
    for note in profile.notes:
        log.warning(note)
    if settings.output is None:
        log.info(f"Kept in {own.own_path()}.")
    else:
        log.info(f"Written to {settings.output}: give it to --profile.")
    return 0
