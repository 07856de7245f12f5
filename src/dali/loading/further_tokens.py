"""Blocks that predict tokens after the next one (MTP, nextn): in a model's files, and no part of transformers' model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# Named so, or a layer after the last with what joins a token's embedding to the layers' output.
BLOCK = re.compile(r"^((?:\w+\.)*?(?:mtp\w*|nextn\w*|layers\.\d+(?=\.(?:eh_proj|enorm|hnorm)\.)))\.")


def further_blocks(tensors: Iterable[str]) -> list[str]:
    """Where such blocks begin among the names of a checkpoint's tensors."""
    return sorted({found[1] for name in tensors if (found := BLOCK.match(name))})


def left_out(blocks: Sequence[str]) -> list[str]:
    """What is said of them, if there are any."""
    where = ", ".join(blocks)
    return [
        f"The model's files can predict tokens after the next one, too ({where}), which is left out."
    ] * bool(blocks)
