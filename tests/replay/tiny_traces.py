"""Traces for the replay's tests: small random ones, and the public ones where they are at hand."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from dali.replay.shapes import Shape
from dali.replay.traces.public import read
from dali.replay.traces.trace import Trace

SHAPE = Shape(64, 32, 3, "w4", 3456, 20_000, 40_000, 5)


def random_trace(sequences=4, prompt=3, answer=12, layers=3, experts=8, top_k=2, seed=0, **more) -> Trace:
    """Skewed routing that changes slowly, as real routing does."""
    generator = np.random.default_rng(seed)
    tokens = sequences * (prompt + answer)
    drift = np.cumsum(generator.normal(size=(tokens, layers, experts)), axis=0)
    order = np.argsort(-(drift + generator.normal(size=(tokens, layers, experts))), axis=2)
    phase = np.tile(np.repeat([0, 1], [prompt, answer]), sequences).astype(np.uint8)
    meta = {
        "model": "tiny",
        "n_experts": experts,
        "top_k": top_k,
        "n_layers": layers,
        "shape": SHAPE.as_meta(),
    }
    pointers = np.arange(sequences + 1) * (prompt + answer)
    return Trace("tiny", meta, order[..., :top_k].astype(np.uint8), pointers, phase, **more)


def trace_of(ids, experts, sequences=None) -> Trace:
    """One layer's routing by hand: ids [tokens][top_k], all generated; `sequences`: their lengths."""
    array = np.array(ids, np.uint8)[:, None]
    pointers = np.cumsum([0, *(sequences or [len(ids)])])
    meta = {"model": "by hand", "n_experts": experts, "top_k": array.shape[2], "n_layers": 1}
    return Trace("by hand", meta, array, pointers, np.ones(len(ids), np.uint8))


def fields(trace: Trace) -> dict[str, np.ndarray]:
    """What a file of the trace holds."""
    meta = {"format": "dali-trace-v1", **trace.meta}
    return {
        "meta": np.array(json.dumps(meta)),
        "ids": trace.ids,
        "seq_ptr": trace.seq_ptr,
        "phase": trace.phase,
    }


def public_folder() -> Path:
    """Where the public traces are: $DALI_TRACES, or a folder `traces` near the repository."""
    named = os.environ.get("DALI_TRACES")
    near = Path(__file__).parents[3].glob("*/traces/olmoe-1b-7b_dev.npz")
    folder = Path(named) if named else next((file.parent for file in near), None)
    if folder is None or not (folder / "olmoe-1b-7b_dev.npz").is_file():
        pytest.skip("The public traces are not here: name their folder by DALI_TRACES.")
    return folder


def public_trace(name: str, every: int = 1) -> Trace:
    """A public trace, of each `every`-th layer."""
    trace = read(public_folder() / f"{name}.npz")
    meta = {**trace.meta, "n_layers": len(range(0, trace.layers, every))}
    weights = None if trace.weights is None else trace.weights[:, ::every]
    return Trace(trace.name, meta, trace.ids[:, ::every], trace.seq_ptr, trace.phase, weights)
