"""What a policy may learn of a step beside its workload, for those that ask; numpy arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.floating[Any]]
    Integers = NDArray[np.integer[Any]]


class Signals(NamedTuple):
    """One MoE layer's routing in one step: `ids` [tokens, top_k], the chosen experts; `weights` [tokens, top_k], of their
    outputs; `scores` [tokens, experts], the router's, none negative: its softmax, or sigmoid if the model has one; `gate_inputs`
    [tokens, hidden], what the router saw. None: nobody recorded it."""

    ids: Integers
    weights: Floats | None = None
    scores: Floats | None = None
    gate_inputs: Floats | None = None


class Step(NamedTuple):
    """A forward step before its first layer: `sequences` [tokens], the request each token belongs to, by a number no other
    request ever has; `prefill` [tokens], whether it is a prompt's; `embeddings` [tokens, hidden], None: nobody recorded them."""

    sequences: Integers
    prefill: NDArray[np.bool_]
    embeddings: Floats | None = None
