"""What a parameter is made of in a file, where it is not one tensor as it lies: other orders of rows or columns, several tensors,
other values. Each undoes what llama.cpp's converter does (conversion/ in its repository)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # what families say of sizes is asked before anything needs torch
    from torch import Tensor

Shape = tuple[int, ...]
Order = Callable[[Any, int], NDArray[np.int64]]
"""(configuration, how many there are) -> for each row or column of the parameter the one it is in the tensor. ValueError where
the configuration does not divide them."""


@dataclass(frozen=True)
class Ordered:
    """One tensor, its rows or its columns in another order."""

    order: Order
    columns: bool = False


@dataclass(frozen=True)
class Made:
    """Tensors of a block, by name, and how a parameter comes of their float32 values."""

    tensors: tuple[str, ...]
    make: Callable[..., Tensor]  # (configuration, a tensor each) -> the parameter's values, in any shape
    shapes: Callable[[Any, Shape], list[Shape]] = lambda config, shape: [shape]
    """Theirs, of the configuration and the parameter's shape; dimensions of 1 are not looked at."""


Part = Ordered | Made


def grid(count: int, *sizes: int) -> NDArray[np.int64]:
    """The numbers below `count` as an array of `sizes`, one of them -1. ValueError where they do not divide it."""
    return np.arange(count).reshape(sizes)


def blocks_in_order(order: NDArray[np.int64], columns: int) -> NDArray[np.int64] | None:
    """An order of columns as one of blocks of so many; None where it takes blocks apart."""
    if len(order) % columns:
        return None
    blocks = order.reshape(-1, columns)
    whole = (blocks[:, 0] % columns == 0).all() and (np.diff(blocks, axis=1) == 1).all()
    return blocks[:, 0] // columns if whole else None


def pairwise(heads: str) -> Ordered:
    """Query or key rows in llama's order, in which values that turn together are neighbours; `heads`: the field that counts."""

    def order(config: Any, count: int) -> NDArray[np.int64]:
        return grid(count, getattr(config, heads), -1, 2).swapaxes(1, 2).reshape(-1)

    return Ordered(order)


PAIRWISE: dict[str, Part] = {
    f"self_attn.{one}_proj.{suffix}": pairwise(heads)
    for one, heads in (("q", "num_attention_heads"), ("k", "num_key_value_heads"))
    for suffix in ("weight", "bias")
}


def _split_shapes(config: Any, shape: Shape) -> list[Shape]:
    heads, rank = config.num_attention_heads, config.kv_lora_rank
    return [(heads, rank, config.qk_nope_head_dim), (heads, config.v_head_dim, rank)]


def _split_kv(config: Any, keys: Tensor, values: Tensor) -> Tensor:
    import torch

    return torch.cat([keys.transpose(1, 2), values], dim=1)


SPLIT_KV = Made(  # [heads, rank, nope] and [heads, value, rank] -> [heads * (nope + value), rank]
    ("attn_k_b.weight", "attn_v_b.weight"),
    _split_kv,
    _split_shapes,
)


def joined(config: Any, *parts: Tensor) -> Tensor:
    """Tensors one after the other."""
    import torch

    return torch.cat(parts)


def halves(first: str, second: str) -> Made:
    """Two tensors of as many rows, one after the other."""

    return Made(
        (first, second),
        joined,
        lambda config, shape: [(shape[0] // 2, *shape[1:])] * 2,
    )


def less_one(tensor: str) -> Made:
    """A norm's weights, which the file has with the 1 that the model adds."""
    return Made((tensor,), lambda config, value: value - 1)


def log_of_negative(tensor: str) -> Made:
    """Decay rates, of which the model keeps the logarithm and the file -exp of it."""
    return Made((tensor,), lambda config, value: (-value).log())
