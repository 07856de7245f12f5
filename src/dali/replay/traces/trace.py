"""Routing traces, version 1: which experts each token of some sequences was routed to, in an .npz file.

ids          uint8 or uint16 [tokens, layers, top_k]
seq_ptr      int64 [sequences + 1]: sequence s holds the tokens seq_ptr[s] to seq_ptr[s + 1]
phase        uint8 [tokens]: 0 a prompt's token, 1 a generated one; a sequence's prompt comes first
meta         JSON: "format": "dali-trace-v1", "model", "n_experts", "top_k", "n_layers"; what else there is, as its maker saw fit
weights      optional, [tokens, layers, top_k]: what the experts' outputs are weighted with; integers count in 1/255
scores       optional, float [tokens, layers, experts]: the router's score of every expert
gate_inputs  optional, float [tokens, layers, hidden]: what the routers saw
embeddings   optional, float [tokens, hidden]: the tokens' embeddings
predicted_KIND_D  optional, as ids: the experts predictor KIND expects D MoE layers further on; meaningless for the last D layers
"""

from __future__ import annotations

import json
import os
import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dali.errors import DaliError, UsageError
from dali.store import whole

FORMAT = "dali-trace-v1"
PREDICTED = re.compile(r"predicted_([a-z_]+)_([1-9])")
PREFILL, DECODE = 0, 1

Array = NDArray[Any]


@dataclass(frozen=True)
class Trace:
    """One file's routing; shapes as above. `predicted`: (predictor, distance) -> ids."""

    name: str
    meta: Mapping[str, Any]
    ids: Array
    seq_ptr: Array
    phase: Array
    weights: Array | None = None
    scores: Array | None = None
    gate_inputs: Array | None = None
    embeddings: Array | None = None
    predicted: Mapping[tuple[str, int], Array] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        return len(self.ids)

    @property
    def layers(self) -> int:
        return int(self.ids.shape[1])

    @property
    def top_k(self) -> int:
        return int(self.ids.shape[2])

    @property
    def experts(self) -> int:
        return int(self.meta["n_experts"])

    @property
    def sequences(self) -> int:
        return len(self.seq_ptr) - 1

    @property
    def signals(self) -> frozenset[str]:
        """What a policy may ask for beyond the chosen ids, and this trace holds."""
        names = ("weights", "scores", "gate_inputs", "embeddings")
        return frozenset(name for name in names if getattr(self, name) is not None)


def read(path: str | Path) -> Trace:
    """The trace in a file. DaliError: it is no trace of this version, or its fields contradict each other."""
    path = Path(path)
    if not os.path.isfile(path):  # Path's raises for what no path can be
        raise UsageError(
            f"There is no trace {str(path)!r}.", "Record one with `dali trace MODEL -o FILE.npz`."
        )
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        zipfile.BadZipFile,
        zlib.error,
        MemoryError,
        TypeError,
    ) as error:
        reason = " ".join(str(error).split())
        # Of what it does not know, numpy says how to trust it; of a .npy file, that it is no context manager.
        if "pickle" in reason or isinstance(error, TypeError):
            reason = "no archive of arrays of numbers"
        raise _broken(path, f"it is no readable .npz file ({reason})") from error
    try:
        return _checked(path.stem, arrays)
    except _Contradiction as error:
        raise _broken(path, str(error)) from None


def write(path: str | Path, trace: Trace) -> None:
    """Write a trace: whole, or not at all. DaliError: the file cannot be written."""
    path = Path(path)
    arrays: dict[str, Array] = {
        "meta": np.array(json.dumps({"format": FORMAT, **trace.meta})),
        "ids": trace.ids,
        "seq_ptr": trace.seq_ptr,
        "phase": trace.phase,
    }
    arrays |= {name: getattr(trace, name) for name in sorted(trace.signals)}
    arrays |= {f"predicted_{kind}_{ahead}": ids for (kind, ahead), ids in sorted(trace.predicted.items())}
    _checked(trace.name, arrays)
    try:
        with whole.written(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # its stub takes no mapping
    except OSError as error:
        reason = error.strerror or error
        raise DaliError(
            f"Cannot write the trace {path} ({reason}).", "Name a file in a writable folder."
        ) from error


class _Contradiction(Exception):
    """What is wrong with a trace's fields, as a clause."""


def _broken(path: Path, why: str) -> DaliError:
    return DaliError(
        f"The trace {path} cannot be used: {why}.", "Record it again with `dali trace MODEL -o FILE.npz`."
    )


def _require(holds: object, why: str) -> None:
    if not holds:
        raise _Contradiction(why)


def _checked(name: str, arrays: Mapping[str, Array]) -> Trace:
    for needed in ("meta", "ids", "seq_ptr", "phase"):
        _require(needed in arrays, f"the field {needed!r} is missing")
    meta = _checked_meta(arrays["meta"])
    ids, seq_ptr, phase = arrays["ids"], arrays["seq_ptr"], arrays["phase"]
    _check_ids("ids", ids, meta["n_experts"])
    tokens, layers, top_k = ids.shape
    for key, value in (("top_k", top_k), ("n_layers", layers)):
        _require(meta[key] == value, f"meta says {key} {meta[key]!r}, ids has {value}")
    ordered = np.sort(ids, axis=2)
    _require((ordered[..., 1:] != ordered[..., :-1]).all(), "a token names an expert twice in one layer")

    _require(
        seq_ptr.dtype.kind in "iu" and seq_ptr.ndim == 1,
        f"seq_ptr is {_shape(seq_ptr)}, not int64 [sequences + 1]",
    )
    _require(len(seq_ptr) > 1, "it holds zero sequences")
    pointers = seq_ptr.astype(np.int64)
    _require((np.diff(pointers) > 0).all(), "seq_ptr does not rise from each sequence to the next")
    ends = (int(pointers[0]), int(pointers[-1]))
    _require(ends == (0, tokens), f"seq_ptr runs from {ends[0]} to {ends[1]}, the tokens from 0 to {tokens}")

    _require(
        phase.shape == (tokens,) and phase.dtype.kind in "iu",
        f"phase is {_shape(phase)}, not uint8 [{tokens}]",
    )
    _require(np.isin(phase, (PREFILL, DECODE)).all(), "phase has a value other than 0 and 1")
    back = np.flatnonzero((phase[1:] == PREFILL) & (phase[:-1] == DECODE)) + 1
    _require(np.isin(back, pointers).all(), "a sequence has a prompt's token behind a generated one")

    floats = {
        "weights": (tokens, layers, top_k),
        "scores": (tokens, layers, meta["n_experts"]),
        "gate_inputs": (tokens, layers, None),
        "embeddings": (tokens, None),
    }
    found = {key: _checked_floats(key, arrays[key], shape) for key, shape in floats.items() if key in arrays}
    predicted = {}
    for key, array in arrays.items():
        if match := PREDICTED.fullmatch(key):
            _check_ids(key, array, meta["n_experts"])
            _require(array.shape == ids.shape, f"{key} is {_shape(array)}, ids {_shape(ids)}")
            predicted[match[1], int(match[2])] = array
    return Trace(name, meta, ids, pointers, phase.astype(np.uint8), predicted=predicted, **found)


def _checked_meta(array: Array) -> dict[str, Any]:
    try:
        meta = json.loads(str(array))
    except ValueError:
        meta = None
    if not isinstance(meta, dict):
        raise _Contradiction("meta is no JSON object")
    version = meta.get("format")
    _require(version == FORMAT, f"its format is {version!r}, and this version reads {FORMAT!r}")
    for key in ("n_experts", "top_k", "n_layers"):
        value = meta.get(key)
        _require(type(value) is int and value > 0, f"meta says {key} {value!r}, not a positive number")
    _require(isinstance(meta.get("model"), str), "meta does not name the model")
    return meta


def _check_ids(name: str, ids: Array, experts: int) -> None:
    _require(
        ids.ndim == 3 and ids.size and ids.dtype in (np.uint8, np.uint16),
        f"{name} is {_shape(ids)}, not uint8 or uint16 [tokens, layers, top_k]",
    )
    largest = int(ids.max())
    _require(largest < experts, f"{name} has the expert {largest}, of {experts} (0 to {experts - 1})")


def _checked_floats(name: str, array: Array, shape: tuple[int | None, ...]) -> Array:
    fits = array.ndim == len(shape) and all(
        want in (None, size) for want, size in zip(shape, array.shape, strict=True)
    )
    _require(
        fits and array.dtype.kind in "fu",
        f"{name} is {_shape(array)}, not numbers {list(shape)}".replace("None", "hidden"),
    )
    if array.dtype.kind == "u":
        return array / np.float32(255)
    _require(np.isfinite(array).all(), f"{name} has a value that is not finite")
    if name in ("weights", "scores"):
        _require(array.min() >= 0, f"{name} has a negative value")
    return array


def _shape(array: Array) -> str:
    return f"{array.dtype} {list(array.shape)}"
