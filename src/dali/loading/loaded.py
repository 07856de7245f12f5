"""A model that is in memory: its dense part transformers', its experts dali's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dali.kernels.expert import ExpertLayout
from dali.store.expert_pool import ExpertPool
from dali.telemetry import Telemetry


@dataclass
class LoadedModel:
    """A dense transformers model whose experts modules run dali's layers."""

    name: str
    fingerprint: str  # of the files it is from
    model: Any
    tokenizer: Any
    pool: ExpertPool
    telemetry: Telemetry
    ctx_size: int  # tokens a sequence may have
    top_k: int  # experts a token is routed to
    sampling: dict[str, Any] = field(
        default_factory=dict
    )  # fields of SamplingParams, as the model's files have them
    converted: dict[str, float] = field(
        default_factory=dict
    )  # what experts lost: "Q6_K to w8" -> relative L2 error, measured
    converted_linears: dict[str, float] = field(default_factory=dict)

    @property
    def layouts(self) -> Sequence[ExpertLayout]:
        """Of each MoE layer's records."""
        return self.pool.layouts

    @property
    def layout(self) -> ExpertLayout:
        """The layout of the largest records, which fit any layer's."""
        return largest(self.layouts)

    @property
    def format_name(self) -> str:
        """What the experts are packed in, for people."""
        return describe_layouts(self.layouts)

    @property
    def conversions(self) -> list[str]:
        """What was lost, for people: "experts Q6_K to w8 (0.35%)"."""
        each = (("experts", self.converted), ("linears", self.converted_linears))
        return [f"{what} {name} ({error:.2%})" for what, lost in each for name, error in lost.items()]

    @property
    def expert_bytes(self) -> int:
        """Bytes of RAM the experts take."""
        return self.pool.nbytes

    @property
    def dense_bytes(self) -> int:
        """Bytes of everything but the experts."""
        return sum(tensor.nbytes for tensor in (*self.model.parameters(), *self.model.buffers()))


def largest(layouts: Sequence[ExpertLayout]) -> ExpertLayout:
    """The one of the largest records."""
    return max(layouts, key=lambda layout: layout.record_bytes)


def describe_layouts(layouts: Sequence[ExpertLayout]) -> str:
    """The formats of all layers, for people: "w8", or "q4k, q4k (down w8)" where layers differ."""
    return ", ".join(dict.fromkeys(layout.format_name for layout in layouts))


def conversion_note(what: str, conversion: str, error: float) -> str:
    """What a user is told of a conversion ("Q6_K to w8") that lost something of a file's values."""
    return f"{what} are converted from {conversion}: relative error {error:.2%}."
