"""What runs beside the CPU, and what decides which experts it computes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from dali import systems
from dali.cli.flags.kinds import SIZE, one_of, whole
from dali.cli.flags.model import Model
from dali.cli.flags.option import SWITCH, Kind, flag
from dali.errors import UsageError
from dali.hardware import profile
from dali.policies import registry

HEADING = "accelerator"


def _device(text: str) -> str:
    if text.startswith("sim:"):
        profile.load(text.removeprefix("sim:"))
    elif not re.fullmatch(r"cpu|cuda(:\d+)?", text):
        raise ValueError
    return text


def _profile(text: str) -> str:
    profile.load(text)
    return text


def _system(text: str) -> str:
    return systems.get(text).name


def _policy(kind: registry.Kind, decides: str) -> Any:
    names, default = registry.names(kind), registry.DEFAULT[kind]
    return flag(HEADING, one_of(tuple(names)), f"{decides}: {', '.join(names)} (default: {default})")


DEVICE = Kind("DEVICE", f"cpu, cuda, cuda:N, or sim: and one of {', '.join(profile.known())}", _device)
PROFILE = Kind(
    "NAME", f"one of {', '.join(profile.known())}, {profile.OWN} for this one's, or the file of one", _profile
)
SYSTEM = Kind(
    "NAME",
    f"one of {', '.join(systems.names())}, another that --list-policies shows, or a file that ends in .py",
    _system,
)


@dataclass(frozen=True)
class Accelerator(Model):
    """None leaves a choice to LoadOptions."""

    device: str | None = flag(
        HEADING,
        DEVICE,
        "cpu (default), cuda, cuda:N, or sim:PROFILE: same answers, modelled times (see --list-devices)",
    )
    vram: int | None = flag(
        HEADING, SIZE, "accelerator memory for experts (default: what dense weights, keys and values leave)"
    )
    profile: str | None = flag(
        HEADING,
        PROFILE,
        "hardware profile to plan with on cuda, by name or file (default: what `dali bench hw` measured, else the nearest); "
        "sim:PROFILE brings its own",
    )
    assign: str | None = _policy("assign", "where experts run")
    prefetch: str | None = _policy(
        "prefetch", "what is fetched ahead; with --ram and experts on disk, none or next_gate"
    )
    cache: str | None = _policy("cache", "what stays on the accelerator")
    cpu_moe: bool = flag(HEADING, SWITCH, "all experts on the CPU: --assign cpu")
    n_cpu_moe: int | None = flag(
        HEADING, whole(0), "experts of the first N MoE layers on the CPU, all others on the accelerator"
    )
    system: str | None = flag(
        HEADING,
        SYSTEM,
        "a published system, in place of --assign, --prefetch and --cache (see --list-policies); --policy means the same",
        also="policy",
    )
    lossy: bool = flag(HEADING, SWITCH, "with those parts of the system that change the model's answers")

    def _parameters(self) -> dict[str, Any]:
        if self.cpu_moe and (self.assign not in (None, "cpu") or self.n_cpu_moe is not None):
            raise UsageError("--cpu-moe excludes --assign and --n-cpu-moe.", "Leave one of them out.")
        return super()._parameters() | {
            "device": self.device,
            "vram": self.vram,
            "profile": self.profile,
            "assign": "cpu" if self.cpu_moe else self.assign,
            "prefetch": self.prefetch,
            "cache": self.cache,
            "n_cpu_moe": self.n_cpu_moe,
            "policy": self.system,
            "lossy": self.lossy,
        }
