"""The dense tensors of a GGUF model under transformers' names: decoded one by one, or linears packed as they are."""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dali.errors import DaliError, parameter
from dali.fused.dense import PACKED_ROWS, linears_of
from dali.kernels import native
from dali.kernels.formats import TILE_ROWS, Format, round_up
from dali.loading.gguf.families import Family
from dali.store.arena import Arena
from dali.store.gguf.blocks import Bytes
from dali.store.gguf.header import Gguf, GgufTensor, damaged
from dali.store.gguf.pack import own_format, pack_blocks
from dali.store.gguf.reader import Job, Reading

AT_ONCE = 2**20  # values a read, and between the file and the parameter's type
TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
BLOCK = {  # of all families; what is a family's own stands in its file
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
SINKS = re.compile(r"blk\.(\d+)\.attn_sinks\.weight")
SPLIT_KV = re.compile(r"blk\.(\d+)\.attn_([kv])_b\.weight")
NOT_WEIGHTS = {
    f"rope_{name}.weight" for name in ("factors_long", "factors_short", "freqs")
}  # the configuration has them


class GgufDense:
    """All tensors of `gguf` but `experts`, for the parameters of `skeleton`, a model on meta.

    DaliError, naming the tensor, where one is missing, unknown, or has another shape than the configuration says.
    """

    def __init__(
        self, gguf: Gguf, family: Family, skeleton: Any, experts: set[str], expert_modules: set[str]
    ) -> None:
        self.gguf = gguf
        self.config = skeleton.config
        self._shapes = {
            name: tuple(parameter.shape)
            for name, parameter in skeleton.named_parameters()
            if name.rpartition(".")[0] not in expert_modules
        }
        if self.config.tie_word_embeddings:
            self._shapes.pop("lm_head.weight", None)
        self._blocks = BLOCK | dict(family.blocks)
        self._permuted = family.permuted
        self._sources: dict[str, list[GgufTensor]] = {}
        for tensor in gguf.tensors.values():
            if tensor.name not in experts | NOT_WEIGHTS:
                self._sources.setdefault(self._parameter(tensor), []).append(tensor)
        self._check()
        self.linears = {  # module -> the tensor it can be packed from, block by block
            path: tensors[0]
            for path in linears_of(skeleton)
            if len(tensors := self._sources[self._source(f"{path}.weight")]) == 1
            and own_format(tensors[0].type).quantized
        }

    def _parameter(self, tensor: GgufTensor) -> str:
        """The parameter that `tensor` is, or is half of."""
        stem, _, suffix = tensor.name.rpartition(".")
        if stem in TOP:
            return f"{TOP[stem]}.{suffix}"
        if match := SINKS.fullmatch(tensor.name):
            return f"model.layers.{match[1]}.self_attn.sinks"
        if match := SPLIT_KV.fullmatch(tensor.name):
            return f"model.layers.{match[1]}.self_attn.kv_b_proj.weight"
        _, number, leaf = (*stem.split(".", 2), "", "")[:3]
        parameter = f"model.layers.{number}.{self._blocks.get(leaf)}.{suffix}"
        if parameter in self._shapes:
            return parameter
        raise damaged(
            tensor.path, f"its tensor {tensor.name[:100]} has no place in a {self.config.model_type} model"
        )

    def _check(self) -> None:
        for name, shape in self._shapes.items():
            tensors = self._sources.get(name)
            if not tensors:
                raise damaged(self.gguf.path, f"it has no tensor for {name}")
            if SPLIT_KV.fullmatch(tensors[0].name):
                found = {tensor.name.split(".")[2]: tensor.shape for tensor in tensors}
                if found != self._split_shapes():
                    raise damaged(
                        self.gguf.path, f"the tensors of {name} are {found}, expected {self._split_shapes()}"
                    )
            elif len(tensors) > 1 or _squeezed(tensors[0].shape) != _squeezed(shape):
                raise damaged(
                    tensors[0].path,
                    f"the tensor {tensors[0].name} is {list(tensors[0].shape)}, its metadata says {list(shape)}",
                )
        for name in self._sources.keys() - self._shapes.keys():
            raise damaged(
                self.gguf.path, f"its tensor {self._sources[name][0].name} has no place in the model"
            )

    def _split_shapes(self) -> dict[str, tuple[int, ...]]:
        config = self.config
        heads, rank = config.num_attention_heads, config.kv_lora_rank
        return {
            "attn_k_b": (heads, rank, config.qk_nope_head_dim),
            "attn_v_b": (heads, config.v_head_dim, rank),
        }

    @property
    def nbytes(self) -> int:
        """Bytes of the dense tensors in the file."""
        return sum(tensor.nbytes for tensors in self._sources.values() for tensor in tensors)

    @property
    def dtype(self) -> torch.dtype:
        """What holds the file's matrices best: float32 for files in F32 or F16, else bfloat16."""
        types = {t.type.name for tensors in self._sources.values() for t in tensors if len(t.shape) > 1}
        return torch.float32 if types <= {"F32", "F16"} else torch.bfloat16

    def _source(self, parameter: str) -> str:
        """The parameter whose tensors `parameter` is made from: embeddings, for an output tied to them."""
        return parameter if parameter in self._sources else "model.embed_tokens.weight"

    def _rows_per_head(self, parameter: str) -> int:
        """Of query and key rows in llama's pairwise rotary order; 0 for rows that lie as transformers has them."""
        if not (self._permuted and parameter.endswith(("q_proj.weight", "k_proj.weight"))):
            return 0
        config = self.config
        heads: int = config.num_attention_heads if "q_proj" in parameter else config.num_key_value_heads
        rows: int = self._shapes[parameter][0]
        return rows // heads

    def read(self, dtype: torch.dtype, packed: Collection[str] = ()) -> Reading[dict[str, Tensor]]:
        """Parameter -> its tensor in `dtype`, but the weights of the modules `packed`. Its jobs raise DaliError for values that
        are not finite."""
        names = self._sources.keys() - {f"{path}.weight" for path in packed}
        values = {
            tensor.name: torch.empty(tensor.shape, dtype=dtype)
            for name in names
            for tensor in self._sources[name]
        }
        jobs = [
            Job(tensor, begin, len(rows), partial(_dequantize, tensor, rows))
            for name in names
            for tensor in self._sources[name]
            for begin, rows in _pieces(values[tensor.name])
        ]
        return Reading(jobs, lambda: {name: self._assemble(name, values) for name in names})

    def _assemble(self, name: str, values: dict[str, Tensor]) -> Tensor:
        """A parameter from its tensors' `values`."""
        parts = {tensor.name.split(".")[-2]: values[tensor.name] for tensor in self._sources[name]}
        if len(parts) == 2:  # [heads, rank, nope] and [heads, value, rank] -> [heads * (nope + value), rank]
            value = torch.cat([parts["attn_k_b"].transpose(1, 2), parts["attn_v_b"]], dim=1).flatten(0, 1)
        else:
            (value,) = parts.values()
        if head := self._rows_per_head(name):
            value = value.view(-1, head // 2, 2, value.shape[-1]).transpose(1, 2)
        return value.reshape(self._shapes[name])

    def read_linears(self) -> Reading[dict[str, tuple[Tensor, Format]]]:
        """Module -> its packed matrix and format, for every linear that the file has quantized: the very same values where a
        packed format has them. Its jobs raise DaliError for values that are not finite."""
        sizes = {
            path: own_format(tensor.type).matrix_bytes(*tensor.shape) for path, tensor in self.linears.items()
        }
        memory = Arena(1, round_up(sum(sizes.values()), 4096))[0]
        pieces = torch.split(memory, [*sizes.values(), len(memory) - sum(sizes.values())])
        matrices: dict[str, tuple[Tensor, Format]] = {}
        jobs: list[Job] = []
        for (path, tensor), out in zip(self.linears.items(), pieces[:-1], strict=True):
            format, head = own_format(tensor.type), self._rows_per_head(f"{path}.weight")
            matrices[path] = out, format
            rows = tensor.shape[0]
            step = rows if head else PACKED_ROWS
            for row in range(0, rows, step):
                take = partial(_pack_rows, tensor, row, head, out, format)
                jobs.append(Job(tensor, row, min(step, rows - row), take))
        return Reading(jobs, lambda: matrices, [memory])


def _pieces(matrix: Tensor) -> list[tuple[int, Tensor]]:
    """A tensor's rows, some at a time: (first row, [rows, columns]), views."""
    rows = matrix.view(-1, matrix.shape[-1])
    step = max(AT_ONCE // rows.shape[1], 1)
    return [(begin, rows[begin : begin + step]) for begin in range(0, len(rows), step)]


def _pack_rows(tensor: GgufTensor, begin: int, head: int, out: Tensor, format: Format, raw: Bytes) -> None:
    """Rows of a matrix from row `begin` into their place in `out`, brought out of pairwise order in heads of `head` rows."""
    if head:
        raw = raw.reshape(-1, head // 2, 2, raw.shape[1]).swapaxes(1, 2).reshape(raw.shape)
    at = begin // TILE_ROWS * format.tile_bytes(tensor.shape[1])
    try:
        pack_blocks(raw, tensor.type, format, out[at : at + format.matrix_bytes(len(raw), tensor.shape[1])])
    except DaliError as error:
        raise DaliError(f"The tensor {tensor.name} in {tensor.path}: {error.problem}", error.fix) from error


def _dequantize(tensor: GgufTensor, out: Tensor, raw: Bytes) -> None:
    """Rows of a tensor into `out` [rows, columns]. DaliError for values that are not finite."""
    type = tensor.type
    if native.enabled() and type.name in native.DEQUANTIZED:
        values = out if out.dtype == torch.float32 and out.is_contiguous() else torch.empty(out.shape)
        native.dequantize_blocks(torch.from_numpy(raw), type.name, values.numel() // type.columns, values)
    else:
        values = torch.from_numpy(type.values(raw))
    least, most = torch.aminmax(values)
    if not max(most.item(), -least.item()) <= torch.finfo(out.dtype).max:  # nor for NaN
        raise DaliError(
            f"The tensor {tensor.name} in {tensor.path} has values that are NaN, infinite or too large for {out.dtype}.",
            f"Download the file again, or try {parameter('dtype')} float32.",
        )
    if values is not out:
        out.copy_(values)


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A row may be stored as a matrix of one row, and the other way round."""
    return tuple(size for size in shape if size != 1)
