"""What is kept of conversations, so that prompts which begin alike are not read twice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dali.cli.flags.accelerator import Accelerator
from dali.cli.flags.kinds import FOLDER, SIZE
from dali.cli.flags.option import flag


@dataclass(frozen=True)
class Prefixes(Accelerator):
    """None leaves a choice to LoadOptions."""

    cache_ram: int | None = flag(
        "model",
        SIZE,
        "memory for the beginnings of prompts (default: a quarter of what is free, at most 8GiB)",
    )
    cache_dir: str | None = flag(
        "model", FOLDER, "a folder that keeps them for later runs (default: none)", variable="DALI_PREFIX_DIR"
    )
    cache_disk: int | None = flag("model", SIZE, "the most they may take there (default: 16GiB)")

    def _parameters(self) -> dict[str, Any]:
        return super()._parameters() | {
            "cache_ram": self.cache_ram,
            "cache_dir": self.cache_dir,
            "cache_disk": self.cache_disk,
        }
