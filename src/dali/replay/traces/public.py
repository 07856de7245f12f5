"""The public traces behind docs/EVALUATION.md: what they are made from, and how to know that a file is one of them.

A file's own hash changes with the version of whatever compressed it, so what is checked is the routing itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from dali.errors import DaliError
from dali.replay.traces import trace as traces
from dali.replay.traces.trace import Trace


@dataclass(frozen=True)
class Source:
    """`origin`: repository @ commit, and where in it; `routing`: see `fingerprint`."""

    origin: str
    routing: str


PUBLIC = {
    "gpt-oss-20b_dev": Source(
        "github.com/AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting @ 72b368f, data/*/*/*_examples.json",
        "5a4736b17edd7d4686f5bf9274668c415261f7fe066d39b4064119af2a99e09e",
    ),
    "olmoe-1b-7b_dev": Source(
        "github.com/sqliteai/warp @ 7f1fbba, tests/, olmoe-1b-7b_decode_299tok",
        "7e09be5ce947153c90641450ea4b81c08a007149ddaee3cf0184063291164146",
    ),
    "kimi-linear-48b-a3b_dev": Source(
        "github.com/sqliteai/warp @ 7f1fbba, tests/, kimi-linear-48b-a3b_decode_300tok",
        "6af60126ba1130ca9add19de4d147f4c14622eeee05a0dc7c52fc861b0d4f2dc",
    ),
}


def fingerprint(trace: Trace) -> str:
    """SHA-256 of the ids, each as two bytes, and then of seq_ptr, each as eight; little-endian, in the order of the format."""
    digest = sha256(np.ascontiguousarray(trace.ids, "<u2").tobytes())
    digest.update(np.ascontiguousarray(trace.seq_ptr, "<i8").tobytes())
    return digest.hexdigest()


def read(path: str | Path) -> Trace:
    """The trace in a file. DaliError: it has the name of a public one and other routing than that, or it is no trace at all."""
    trace = traces.read(path)
    known = PUBLIC.get(trace.name)
    if known is not None and fingerprint(trace) != known.routing:
        raise DaliError(
            f"The routing in {path} is not that of the public trace {trace.name}: its SHA-256 is {fingerprint(trace)}.",
            f"Make it again from {known.origin} (docs/TRACES.md), or give the file another name.",
        )
    return trace
