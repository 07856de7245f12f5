"""Flags that were meant, where there is none of the name that was given."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches

# What others call a flag, where it is not spelt nearly alike.
NEAR = {
    **dict.fromkeys(("max-tokens", "max-new-tokens", "num-predict", "max-length"), "predict"),
    **dict.fromkeys(("max-model-len", "num-ctx", "context", "n-ctx", "max-seq-len"), "ctx-size"),
    "temperature": "temp",
    "repetition-penalty": "repeat-penalty",
    **dict.fromkeys(("system", "sys"), "system-prompt"),
    **dict.fromkeys(("num-threads", "n-threads"), "threads"),
    **dict.fromkeys(("gpu", "gpus"), "device"),
    **dict.fromkeys(("cache-type-k", "cache-type-v", "ctk", "ctv", "kv-cache-dtype"), "cache-type"),
    **dict.fromkeys(("max-memory", "memory"), "ram"),
}

ALIKE = 0.7  # of difflib's measure of how much two words share: "temprature" and "temperature" have 0.95


def near_flag(name: str, flags: Collection[str]) -> str | None:
    """The one of `flags` that `name` was probably meant for."""
    names = {other: flag for other, flag in NEAR.items() if flag in flags} | {flag: flag for flag in flags}
    close = get_close_matches(name.replace("_", "-").lower(), names, 1, ALIKE)
    return names[close[0]] if close else None
