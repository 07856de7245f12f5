"""The flags that every verb takes."""

from __future__ import annotations

from dataclasses import dataclass, field

from dali.cli.flags.kinds import FILE, one_of
from dali.cli.flags.option import SWITCH, flag

HEADING = "other"
LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True)
class Always:
    """Where more flags stand, and what is said on stderr; and the arguments that are no flags."""

    words: list[str] = field(default_factory=list)
    origins: dict[str, str] = field(
        default_factory=dict
    )  # flag -> where its value came from, as it was written there
    config: str | None = flag(HEADING, FILE, "YAML file that may hold any of these flags, as `temp: 0.7`")
    log_level: str | None = flag(
        HEADING, one_of(LOG_LEVELS), f"what to say on stderr: {', '.join(LOG_LEVELS)} (default: info)"
    )
    verbose: bool = flag(
        HEADING, SWITCH, "the same as --log-level debug: tracebacks, and all statistics of an answer", "-v"
    )
