"""How far back each layer attends, as a configuration says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def windows(config: Mapping[str, Any], layers: int) -> list[int | None]:
    """Tokens that a query of each layer sees, itself included; None for all."""
    window = config.get("sliding_window")
    if type(window) is not int or window < 1 or config.get("use_sliding_window") is False:
        return [None] * layers
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and len(kinds) >= layers:
        return [window if kind == "sliding_attention" else None for kind in kinds[:layers]]
    if type(first := config.get("max_window_layers")) is int and "use_sliding_window" in config:
        return [window if layer >= first else None for layer in range(layers)]
    return [window] * layers
