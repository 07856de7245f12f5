"""Tables of embeddings that stay packed: a token's row is decoded when it is asked for.

A module is told by what it does: `nn.Embedding`, or a kind of it that a probe finds to multiply its rows by `embed_scale`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dali.fused.probe import REFUSALS
from dali.kernels import native
from dali.kernels.formats import Format
from dali.kernels.packing import unpack_rows
from dali.step.context import MOST_ROWS

SCALE, SCALE_VALUE = (
    "embed_scale",
    "scalar_embed_scale",
)  # transformers' buffer, and the number that it is made of


class PackedEmbedding(nn.Module):
    """An `nn.Embedding` whose table is packed; rows are rounded to `dtype`."""

    def __init__(self, packed: Tensor, embedding: nn.Embedding, format: Format, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = embedding.num_embeddings, embedding.embedding_dim
        self.padding_idx, self.format, self.dtype = embedding.padding_idx, format, dtype
        scale = getattr(embedding, SCALE_VALUE, None)
        self.register_buffer("packed", packed, persistent=False)
        self.register_buffer(SCALE, None if scale is None else torch.tensor(scale), persistent=False)
        self.plain = embedding.forward

    @property
    def weight(self) -> Tensor:
        """Shape and type of the table, on meta: nobody shall compute with it."""
        return torch.empty(self.num_embeddings, self.embedding_dim, dtype=self.dtype, device="meta")

    def rows(self, ids: Tensor) -> Tensor:
        """The table's rows `ids` [n], without a scale: [n, embedding_dim]. IndexError for one beyond."""
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.num_embeddings:
            raise IndexError(f"a token beyond the {self.num_embeddings} that there are")
        return self._decoded(ids).to(self.dtype)

    def _decoded(self, ids: Tensor) -> Tensor:
        packed: Any = self.packed
        return decode_rows(packed, self.embedding_dim, self.format, ids)

    def forward(self, ids: Tensor) -> Tensor:
        rows, scale = self.rows(ids.flatten()).view(*ids.shape, self.embedding_dim), self._buffers[SCALE]
        return rows if scale is None else rows * scale.to(self.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, format={self.format.name}"


class StoredEmbedding(PackedEmbedding):
    """One whose table is not in memory: `read` decodes rows, int64 [n] -> [n, embedding_dim], from wherever they lie."""

    def __init__(
        self, read: Callable[[Tensor], Tensor], embedding: nn.Embedding, format: Format, dtype: torch.dtype
    ) -> None:
        super().__init__(torch.empty(0, dtype=torch.uint8), embedding, format, dtype)
        self._read = read
        self.gathered = torch.zeros(MOST_ROWS, self.embedding_dim, dtype=dtype)

    def _decoded(self, ids: Tensor) -> Tensor:
        return self._read(ids)

    def gather(self, ids: list[int]) -> list[int]:
        """Put the rows of at most MOST_ROWS `ids` into `gathered`, without a scale; their places there."""
        self.gathered[: len(ids)] = self.rows(torch.tensor(ids))
        return list(range(len(ids)))


def decode_rows(packed: Tensor, columns: int, format: Format, rows: Tensor) -> Tensor:
    """What `rows` [n] of a packed matrix stand for: float32 [n, columns]."""
    return (native.rows_of if format.quantized else unpack_rows)(packed, columns, format, rows)


def embeddings_of(model: nn.Module) -> dict[str, nn.Embedding]:
    """Path -> embedding of each that can stay packed. The model may be on meta."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Embedding) and (type(module) is nn.Embedding or _scales(module))
    }


@torch.inference_mode()
def _scales(module: Any) -> bool:
    """Whether a module multiplies rows by its scale, and does nothing else."""
    ids, scale = torch.tensor([[1, 2, 0]]), torch.tensor(0.625)
    table = torch.linspace(-3, 5, 3 * module.embedding_dim).view(3, -1)
    try:
        found = functional_call(module, {"weight": table, SCALE: scale}, (ids,))
        return float(getattr(module, SCALE_VALUE)) > 0 and torch.equal(found, table[ids] * scale)
    except REFUSALS:
        return False
