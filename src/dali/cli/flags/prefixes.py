"""What verbs that answer have to make answers sooner: what is kept of conversations, and drafts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dali.cli.flags.accelerator import Accelerator
from dali.cli.flags.kinds import FOLDER, SIZE, one_of
from dali.cli.flags.option import flag
from dali.options import DRAFTS

NEAR = dict.fromkeys(("lookup", "ngram-simple", "prompt-lookup", "prompt_lookup"), "ngram")


@dataclass(frozen=True)
class Prefixes(Accelerator):
    """None leaves a choice to LoadOptions."""

    draft: str | None = flag(
        "model",
        one_of(DRAFTS, near=NEAR),
        "guess tokens and check several in a step: ngram, by what followed the same words before; the answer stays the same "
        "(default: none)",
    )
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
            "draft": self.draft,
            "cache_ram": self.cache_ram,
            "cache_dir": self.cache_dir,
            "cache_disk": self.cache_disk,
        }
