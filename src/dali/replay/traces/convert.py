"""Traces made from rows of routing that other tools wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dali.errors import UsageError
from dali.replay.traces.formats import Rows, read_rows
from dali.replay.traces.trace import PREFILL, Array, Trace

MOST_EXPERTS = 65536  # ids are uint16 at most


def convert(
    path: str | Path, model: str | None = None, experts: int | None = None
) -> tuple[Trace, list[str]]:
    """The trace that a file of rows holds, and what was left out of it, a sentence each.

    `model`: its name, else what the file says; `experts`: a layer's, else what the file says, else what the largest id needs.
    UsageError: there is no such file. DaliError: by row and column, what is missing, unsorted or contradicts the others.
    """
    rows = read_rows(path)
    notes = list(rows.notes)
    table = _Table(rows)
    table.check_order()
    kept = table.whole_tokens(notes)
    ids, weights, top_k = table.cells(kept, notes)
    count = _experts(rows, experts, notes)
    beyond = np.flatnonzero(table.expert >= count)
    if len(beyond):
        row = beyond[table.line[beyond].argmin()]
        raise rows.wrong(
            int(table.line[row]), "expert", f"{table.expert[row]} is none of {count} (0 to {count - 1})"
        )
    first = table.first[kept]
    starts = np.flatnonzero(np.diff(table.sequence[first], prepend=-1))
    phase = table.phase[first].astype(np.uint8)
    back = np.flatnonzero(
        (np.diff(phase.astype(int), prepend=0) < 0) & ~np.isin(np.arange(len(phase)), starts)
    )
    if len(back):
        row = first[back[0]]
        raise rows.wrong(int(table.line[row]), "phase", "it is a prompt's token behind a generated one")
    name = model or rows.facts.get("model") or rows.path.stem
    meta = {
        "model": name,
        "n_experts": count,
        "top_k": top_k,
        "n_layers": ids.shape[1],
        "source": f"dali trace --import {rows.path.name}",
    }
    pointers = np.append(starts, len(first)).astype(np.int64)
    small = ids.astype(np.uint8 if count <= 256 else np.uint16)
    return Trace(rows.path.stem, meta, small, pointers, phase, weights), notes


class _Table:
    """A file's rows by token and layer: tokens in the order of sequence and step, rows of one cell in the file's order."""

    def __init__(self, rows: Rows) -> None:
        columns = (rows.line, rows.sequence, rows.step, rows.expert, rows.phase, rows.weight)
        self.rows = rows
        self.line, self.sequence, self.step, self.expert, self.phase, self.weight = map(np.array, columns)
        self.names, self.layer = np.unique(np.array(rows.layer), return_inverse=True)
        order = np.lexsort((self.layer, self.step, self.sequence))  # stable
        for column in ("line", "sequence", "step", "expert", "phase", "weight", "layer"):
            setattr(self, column, getattr(self, column)[order])
        changes = (np.diff(self.sequence, prepend=-1) != 0) | (np.diff(self.step, prepend=-1) != 0)
        self.first = np.flatnonzero(changes)  # row of each token
        self.token = np.cumsum(changes) - 1
        self.layers = len(self.names)
        cells = self.token * self.layers + self.layer
        self.count = np.bincount(cells, minlength=len(self.first) * self.layers).reshape(-1, self.layers)

    def check_order(self) -> None:
        """Steps, and sequences, do not go back within a layer."""
        rows = self.rows
        sequence, step, layer = (np.array(column) for column in (rows.sequence, rows.step, rows.layer))
        order = np.argsort(layer, kind="stable")
        same = np.diff(layer[order]) == 0
        later = np.diff(sequence[order])
        back = same & ((later < 0) | ((later == 0) & (np.diff(step[order]) < 0)))
        if not back.any():
            return
        wrong = order[1:][back]
        row = int(wrong.min())
        before = order[np.flatnonzero(order == row)[0] - 1]
        line = rows.line[row]
        if sequence[row] < sequence[before]:
            why = f"{sequence[row]} comes after {sequence[before]}; a sequence's rows must stand together"
            raise rows.wrong(line, "sequence", why)
        why = (
            f"{step[row]} comes after {step[before]} in layer {layer[row]}; rows must be sorted, and where another sequence "
            "begins a column sequence must say so"
        )
        raise rows.wrong(line, "step", why)

    def whole_tokens(self, notes: list[str]) -> Array:
        """The tokens that have a row of every layer. Prompts may lack some: llama.cpp computes their last layer for one token."""
        lacking = (self.count == 0).any(axis=1)
        prompt = self.phase[self.first] == PREFILL
        holes = np.flatnonzero(lacking & ~prompt)
        if len(holes):
            token = holes[0]
            layer = self.names[(self.count[token] == 0).argmax()]
            row = self.first[token]
            raise self.rows.wrong(
                int(self.line[row]), "layer", f"step {self.step[row]} has no row of layer {layer}"
            )
        if lacking.any():
            notes.append(f"{lacking.sum()} prompt tokens are left out: they lack rows of some layers.")
        kept: Array = np.flatnonzero(~lacking)
        if not len(kept):
            raise self.rows.wrong(int(self.line[0]), "layer", "no token has a row of every layer")
        return kept

    def cells(self, kept: Array, notes: list[str]) -> tuple[Array, Array | None, int]:
        """ids [tokens, layers, top_k] of the tokens kept, their weights where all are known, and top_k."""
        count = self.count[kept]
        sizes, often = np.unique(count, return_counts=True)
        top_k = int(sizes[often.argmax()])
        rows = np.flatnonzero(np.isin(self.token, kept))
        if len(sizes) > 1:
            token, layer = np.argwhere(count != top_k)[0]
            cell = (self.token == kept[token]) & (self.layer == layer)
            row = np.flatnonzero(cell)[0]
            why = f"step {self.step[row]} has {count[token, layer]} experts in layer {self.names[layer]}, others have {top_k}"
            raise self.rows.wrong(int(self.line[row]), "expert", why)
        shape = (len(kept), self.layers, top_k)
        ids = self.expert[rows].reshape(shape)
        ordered = np.sort(ids, axis=2)
        twice = np.argwhere((ordered[..., 1:] == ordered[..., :-1]).any(axis=2))
        if len(twice):
            token, layer = twice[0]
            cell = ids[token, layer].tolist()
            place = next(place for place, expert in enumerate(cell) if expert in cell[:place])
            row = rows.reshape(shape)[token, layer, place]
            why = f"step {self.step[row]} has expert {self.expert[row]} twice in layer {self.names[layer]}"
            raise self.rows.wrong(int(self.line[row]), "expert", why)
        weights = self.weight[rows].reshape(shape)
        unknown = int(np.isnan(weights).sum())
        if 0 < unknown < weights.size:
            notes.append(f"All weights are left out: {unknown} of {weights.size} are missing.")
        return ids, None if unknown else weights.astype(np.float32), top_k


def _experts(rows: Rows, given: int | None, notes: list[str]) -> int:
    said = rows.facts.get("n_expert", "")
    count = given or (int(said) if said.isdigit() else 0)
    if not count:
        count = max(rows.expert) + 1
        notes.append(
            f"The largest expert is {count - 1}, so a layer is taken to have {count}; "
            "`dali trace --experts` says otherwise."
        )
    if count > MOST_EXPERTS:
        raise UsageError(
            f"A layer cannot have {count} experts.", f"A trace holds ids of at most {MOST_EXPERTS}."
        )
    return count
