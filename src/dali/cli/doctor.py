"""`dali doctor`: what a model would do here, told before it is downloaded; or what is wrong with this machine."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dali.cli.flags.always import Always
from dali.cli.flags.kinds import whole
from dali.cli.flags.option import SWITCH, as_flag, flag, options_of
from dali.cli.flags.prefixes import Prefixes
from dali.cli.flags.verb import Verb, refuse_unheeded
from dali.cli.terminal import log, passing_note
from dali.doctor import machine, report
from dali.doctor.examine import Examination, Quant, examine, of_quants, read_remote
from dali.doctor.here import device_of, look
from dali.doctor.outline import read_outline
from dali.doctor.remote import scratch
from dali.doctor.verdict import Verdict
from dali.doctor.ways import Way
from dali.errors import UsageError
from dali.loading.locate import find, is_cached, locate


@dataclass(frozen=True)
class Settings(Always, Prefixes):
    json: bool = flag("output", SWITCH, "for machines", variable="DALI_DOCTOR_JSON")
    parallel: int | None = flag(
        "accelerator", whole(1), "answers at once, as `dali serve` gives them (default: 1, as `dali run`)"
    )

    def _parameters(self) -> dict[str, Any]:
        return super()._parameters() | {"parallel": self.parallel}


VERB = Verb(
    "doctor",
    "Say before a download what MODEL (as for `dali run`) would do on this machine, from the headers of its files: memory, where "
    "its experts would be, what decides that, and how fast it would be. Without MODEL: what this machine has, what is wrong with "
    "it, and the command that mends it. Exit code 0: it fits; 1: it does not; 2: a flag is wrong.",
    Settings,
    headings=("output", "model", "accelerator"),
    words="[MODEL]",
)


def main(settings: Settings) -> int:
    if len(settings.words) > 1:
        raise UsageError(
            f"`dali doctor` takes one MODEL, not {len(settings.words)}.", "Ask for one after the other."
        )
    model = settings.words[0] if settings.words else settings.model
    if model is None:
        of_models = {option.key for option in options_of(Prefixes)} | {"parallel"}
        refuse_unheeded(settings, lambda key: key in of_models, "Without MODEL, this machine is told of")
        return _machine(settings.json)
    passing_note(f"Looking at {model} ...")
    found, quants = _examine(model, settings)
    if found.refusal is not None:  # in the words of the command line
        found = replace(found, verdict=Verdict("NO", *found.refusal.told(as_flag)))
    if settings.cpu_moe:
        found = replace(found, ways=tuple(map(_without_cpu_moe, found.ways)))
    passing_note()
    if settings.json:
        print(json.dumps(report.as_json(found, as_flag, quants), indent=2))
    else:
        print(report.text(found, as_flag, quants))
    return 0 if found.verdict.fits else 1


def _without_cpu_moe(way: Way) -> Way:
    """With `--cpu-moe` left out by its own name, where a way has another assignment than that."""
    if "assign" not in (*way.added, *way.dropped):
        return way
    return way._replace(dropped=[*(name for name in way.dropped if name != "assign"), "cpu_moe"])


def _examine(model: str, settings: Settings) -> tuple[Examination, list[Quant]]:
    options = settings.load_options()
    here = look(options)
    for note in () if options.device_kind == "sim" else here.said:  # its profile tells all times
        log.info(note)
    device = device_of(options, here.profile)
    origins = settings.origins
    if settings.cpu_moe:  # which is an assignment, too
        origins = {**origins, "assign": origins.get("cpu_moe", as_flag("cpu_moe"))}
    place = find(model)
    if isinstance(place, Path) or options.offline or is_cached(place):
        outline = read_outline(place if isinstance(place, Path) else locate(model, offline=True))
        return examine(outline, options, here, device, origins), []
    with scratch() as folder:
        outline, there = read_remote(place, folder)
        found = examine(outline, options, here, device, origins)
        if found.refusal is not None:
            found = replace(found, refusal=found.refusal.about(str(folder), place.name))
    quants = {} if place.quant is None else there.quants
    return found, of_quants(quants, found, options, here, device)


def _machine(as_json: bool) -> int:
    findings = machine.findings()
    if as_json:
        print(json.dumps([finding._asdict() for finding in findings], indent=2))
    else:
        print(report.findings(findings))
    return 1 if any(finding.broken for finding in findings) else 0
