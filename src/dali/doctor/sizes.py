"""A model's sizes: plain numbers of its experts, of everything else, and of what a sequence keeps; and the bytes they take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from dali.errors import DaliError
from dali.kernels.packed import (
    FORMATS,
    GROUP,
    expert_matrices,
    expert_parts,
    get_format,
    record_bytes,
)
from dali.step.size import Reservation, StateSize

LINEARS = "w8"  # what linears are packed in where their file has nothing better
BLOCK = 4096  # columns, a multiple of every format's block
FEWEST_ROWS = 16  # of a linear that is packed
ITEM = {"float32": 4, "bfloat16": 2, "float16": 2}
FLOATS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


class CannotTell(DaliError):
    """Headers from which nothing can be told, of a model that may run all the same."""


class Dense(NamedTuple):
    """Weights beside routed experts: matrices [rows, columns], or so many rows of one in all. `own`: the packed format with the
    values of their file, "" where there is none."""

    rows: int
    columns: int
    kind: str  # "linear", "embedding", "router" or "other"
    own: str = ""
    head: bool = False  # of logits

    @property
    def elements(self) -> int:
        return self.rows * self.columns


class Kept(NamedTuple):
    """What a layer keeps of a token: a key and a value of so many values for each of its heads; how far back it attends; the
    heads of its queries, each of which attends; and whether queries and keys are normed."""

    heads: int
    key: int
    value: int
    window: int | None
    queries: int
    normed: bool = False


class ExpertFormat(NamedTuple):
    """How the experts of a layer are packed: its name for people; bytes of a record, and of what of it is read."""

    name: str
    record: int
    weights: int


@dataclass(frozen=True)
class ModelSizes:
    """Of one model. `moe_layers` of the decoder's `layers` have `experts`, of which a token is routed to `top_k`. `own`: of each
    MoE layer the packed formats of its matrices that hold their file's values, none for files that say them as floats. `state`:
    bytes of recurrent state. `rope`: its rotary parameters, as transformers has them. `dtype`: of everything but experts.
    `file_bytes`: of the files with weights."""

    name: str
    family: str
    layers: int
    moe_layers: int
    experts: int
    top_k: int
    hidden: int
    intermediate: int
    gated: bool
    biased: bool
    dense: tuple[Dense, ...]
    kept: tuple[Kept, ...]
    context: int
    vocab: int
    dtype: str
    file_bytes: int
    rope: Mapping[str, Any] = field(default_factory=dict)
    own: tuple[Mapping[str, str], ...] = ()
    state: int = 0
    gguf: bool = False
    quantization: str = ""  # the packed format that the files are quantized in, "fp8", or none

    @property
    def parameters(self) -> int:
        """Weights of all experts and everything else."""
        return self.expert_parameters * self.experts * self.moe_layers + sum(
            one.elements for one in self.dense
        )

    @property
    def computed(self) -> int:
        """Weights beside routed experts that a token is multiplied with: of embeddings those alone that are the output's, too."""
        heads = any(one.head for one in self.dense)
        return sum(one.elements for one in self.dense if one.kind != "embedding" or not heads)

    @property
    def widest(self) -> int:
        """Rows of the widest linear but that of logits."""
        return max(
            (one.rows for one in self.dense if one.kind in ("linear", "router") and not one.head), default=0
        )

    @property
    def expert_parameters(self) -> int:
        """Weights of one expert."""
        return (3 if self.gated else 2) * self.hidden * self.intermediate

    def layouts(self, quant: str) -> list[ExpertFormat]:
        """How each MoE layer's experts are packed: "keep" (of a GGUF file "auto", too) as their file has them, or one format."""
        matrices = expert_matrices(self.hidden, self.intermediate, self.gated)
        if self.gguf and quant in ("auto", "keep"):
            return [self._layout(matrices, formats) for formats in self.own]
        name = self.kept_format if quant == "keep" else quant
        return [self._layout(matrices, dict.fromkeys(matrices, name))] * self.moe_layers

    @property
    def fp8(self) -> bool:
        """Whether no packed format has the values of its experts."""
        return self.quantization == "fp8"

    @property
    def kept_format(self) -> str:
        """The packed format with the values of a safetensors file."""
        return self.quantization or FLOATS[self.dtype]

    def requantized(self, file_bytes: int) -> ModelSizes:
        """The same model in GGUF files of so many bytes: all of it in the packed format whose weights take about as much."""
        wanted = file_bytes / self.parameters
        row = 16 * BLOCK
        nearest = min(FORMATS.values(), key=lambda format: abs(format.matrix_bytes(16, BLOCK) / row - wanted))
        matrices = expert_matrices(self.hidden, self.intermediate, self.gated)
        return replace(
            self,
            own=(dict.fromkeys(matrices, nearest.name),) * self.moe_layers,
            dense=tuple(one._replace(own=nearest.name) if one.own else one for one in self.dense),
            file_bytes=file_bytes,
        )

    def _layout(self, matrices: Mapping[str, tuple[int, int]], formats: Mapping[str, str]) -> ExpertFormat:
        parts = expert_parts(matrices, {name: get_format(formats[name]) for name in matrices}, self.biased)
        others = ", ".join(f"{name} {formats[name]}" for name in matrices if formats[name] != formats["up"])
        return ExpertFormat(
            f"{formats['up']} ({others})" if others else formats["up"],
            record_bytes(parts),
            sum(size for _, size in parts.values()),
        )

    def dense_bytes(self, dtype: str, packed: bool) -> int:
        """Of everything but experts while they are loaded; of a GGUF file those that can be are `packed` by then."""
        return sum(
            get_format(one.own).matrix_bytes(one.rows, one.columns)
            if packed and one.own
            else one.elements * ITEM[dtype]
            for one in self.dense
        )

    @property
    def stored(self) -> tuple[Dense, ...]:
        """Embeddings that stay in their GGUF file beside quantized experts on disk: no output shares them."""
        alone = self.gguf and any(one.head for one in self.dense)
        return tuple(one for one in self.dense if alone and one.kind == "embedding" and one.own)

    def read_dense(self, one: Dense, dtype: str, packed: bool) -> tuple[str, int]:
        """The format that a matrix is computed in, and its bytes."""
        if packed and (one.kind == "linear" or (one.kind == "embedding" and one.own)):
            format = get_format(one.own or LINEARS)
            return format.name, format.matrix_bytes(one.rows, one.columns)
        return FLOATS[dtype], one.elements * ITEM[dtype]

    @property
    def tied(self) -> tuple[Dense, ...]:
        """The linear of logits, where it is the embeddings' matrix."""
        if any(one.head for one in self.dense):
            return ()
        tables = [one for one in self.dense if one.kind == "embedding"]
        return (
            (max(tables, key=lambda one: one.elements)._replace(kind="linear", head=True),) if tables else ()
        )

    def running_bytes(self, dtype: str, packed: bool) -> int:
        """Of everything but experts once it runs. Embeddings in floats stay beside a `packed` linear of logits that is made of
        them."""
        made = [one for one in self.tied if packed and not one.own]
        return sum(self.read_dense(one, dtype, packed)[1] for one in (*self.dense, *made))

    def states(self, dtype: str, in_q8: bool) -> StateSize:
        """What a sequence keeps."""

        def row(width: int) -> int:
            return (width + 2 * -(-width // GROUP)) if in_q8 else width * ITEM[dtype]

        layers = tuple((one.heads * (row(one.key) + row(one.value)), one.window) for one in self.kept)
        return StateSize(layers, fixed=self.state)

    def state_bytes(self, tokens: int, dtype: str, in_q8: bool, chunk: int = 256) -> int:
        """Keys and values of so many tokens, and recurrent state."""
        return self.states(dtype, in_q8).nbytes(Reservation(tokens, chunk))


def quantized(format: str) -> bool:
    """Whether experts in it are computed in integers."""
    return FORMATS[format.partition(" ")[0]].quantized
