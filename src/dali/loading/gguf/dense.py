"""The dense tensors of a GGUF model under transformers' names: decoded one by one, or linears packed as they are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from functools import partial
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dali.errors import DaliError, parameter
from dali.fused.dense import PACKED_ROWS, linears_of
from dali.fused.embedding import embeddings_of
from dali.kernels import native
from dali.kernels.formats import Format, round_up
from dali.loading.gguf.families import Family
from dali.loading.gguf.packed_rows import MEASURED_ROWS, PackedRows
from dali.loading.gguf.parts import Made, Ordered, Part, blocks_in_order
from dali.store.arena import Arena
from dali.store.gguf.header import Gguf, GgufTensor, damaged
from dali.store.gguf.pack import Losses, own_format
from dali.store.gguf.parts import PARTS
from dali.store.gguf.reader import Job, Reading
from dali.store.gguf.values.fields import Bytes

AT_ONCE = 2**20  # values a read, and between the file and the parameter's type
TOP = {"token_embd": "embed_tokens", "output_norm": "norm"}
OUTPUT = "lm_head"
BLOCK = {  # of all families; what is a family's own stands in its file
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_sinks.weight": "self_attn.sinks",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
FURTHER_SCALES = {
    "scale",
    "input_scale",
}  # of a whole tensor, as llama.cpp's converter writes them beside NVFP4's
NUMBERED = re.compile(r"blk\.(\d+)\.(.+)")
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
        self.config = skeleton.config.get_text_config()
        self._decoder = next(n for n, m in skeleton.named_modules() if m is skeleton.get_decoder())
        self._layers = self.config.num_hidden_layers
        self._shapes = {
            name: tuple(value.shape)
            for name, value in skeleton.state_dict().items()
            if name.rpartition(".")[0] not in expert_modules
        }
        self._exact = _exact_parameters(skeleton, self._shapes)
        if self.config.tie_word_embeddings:
            self._shapes.pop(f"{OUTPUT}.weight", None)
        made = {t: name for name, part in family.made.items() if isinstance(part, Made) for t in part.tensors}
        self._blocks, self._top = BLOCK | dict(family.blocks) | made, TOP | dict(family.top) | made
        self._made = family.made
        self._sources: dict[str, list[GgufTensor]] = {}
        for tensor in gguf.tensors.values():
            if tensor.name not in experts | NOT_WEIGHTS and not self._predicts_ahead(tensor):
                self._sources.setdefault(self._parameter(tensor), []).append(tensor)
        self._check()
        linears = list(linears_of(skeleton))
        self.packable = {  # linear or embedding -> the parameter whose tensor it can be packed from, block by block
            path: source
            for path in (*embeddings_of(skeleton), *linears)
            if self._can_be_packed(source := self._source(f"{path}.weight"))
        }
        self._linears = {path: self._source(f"{path}.weight") for path in linears}
        counted = Counter(self.packable.values())
        self.storable = {  # embeddings whose rows can be read from the file alone, one by one -> their tensor
            path: self._sources[source][0]
            for path, source in self.packable.items()
            if path not in self._linears and counted[source] == 1 and self._part(source) is None
        }

    def _predicts_ahead(self, tensor: GgufTensor) -> bool:
        """Whether it is of the blocks behind the model's layers, which predict tokens beyond the next one."""
        numbered = NUMBERED.fullmatch(tensor.name)
        return numbered is not None and int(numbered[1]) >= self._layers

    def _parameter(self, tensor: GgufTensor) -> str:
        """The parameter that `tensor` is, or is a part of."""
        numbered = NUMBERED.fullmatch(tensor.name)
        known, leaf = (self._blocks, numbered[2]) if numbered else (self._top, tensor.name)
        stem, _, suffix = leaf.rpartition(".")
        if stem == "output" and not numbered and suffix not in FURTHER_SCALES:
            return f"{OUTPUT}.{suffix}"
        name = known.get(leaf) or (f"{known[stem]}.{suffix}" if stem in known else None)
        parameter = f"{self._decoder}.layers.{numbered[1]}.{name}" if numbered else f"{self._decoder}.{name}"
        if name is not None and parameter in self._shapes:
            return parameter
        if suffix in FURTHER_SCALES:
            raise DaliError(
                f"{tensor.path} has {tensor.name}: a scale beside those of its blocks, as NVFP4 checkpoints have them, "
                "which dali does not compute with.",
                "Take a file of the model in another type, such as Q4_K_M or MXFP4.",
            )
        raise damaged(
            tensor.path, f"its tensor {tensor.name[:100]} has no place in a {self.config.model_type} model"
        )

    def _part(self, parameter: str) -> Part | None:
        """What `parameter` is made of; None for one tensor as it lies."""
        local = parameter.removeprefix(f"{self._decoder}.")
        part = self._made.get(re.sub(r"^layers\.\d+\.", "", local))
        if isinstance(part, Made) and not any(
            _leaf(one) in part.tensors for one in self._sources.get(parameter, ())
        ):
            return None  # older files have it whole
        return part

    def _check(self) -> None:
        for name, shape in self._shapes.items():
            tensors = self._sources.get(name)
            if not tensors:
                raise damaged(self.gguf.path, f"it has no tensor for {name}")
            part = self._part(name)
            if isinstance(part, Made):
                self._check_made(name, part, shape)
                continue
            if len(tensors) > 1:
                raise damaged(
                    tensors[1].path,
                    f"its tensors {tensors[0].name} and {tensors[1].name} are both for {name}",
                )
            _check_shape(tensors[0], shape)
            if part is not None:
                self._order(name, part)
        for name in self._sources.keys() - self._shapes.keys():
            raise damaged(
                self.gguf.path, f"its tensor {self._sources[name][0].name} has no place in the model"
            )

    def _check_made(self, name: str, part: Made, shape: tuple[int, ...]) -> None:
        by_leaf = {_leaf(tensor): tensor for tensor in self._sources[name]}
        for leaf, wanted in zip(part.tensors, part.shapes(self.config, shape), strict=True):
            if leaf not in by_leaf:
                raise damaged(self.gguf.path, f"it has no tensor {leaf} for {name}")
            _check_shape(by_leaf.pop(leaf), wanted)
        for tensor in by_leaf.values():
            raise damaged(tensor.path, f"its tensor {tensor.name} has no place in {name}")

    def _order(self, name: str, part: Ordered) -> NDArray[np.int64]:
        """For each row or column of a parameter the one it is in the tensor."""
        shape = self._shapes[name]
        try:
            return part.order(self.config, shape[-1 if part.columns else 0])
        except (ValueError, ZeroDivisionError):
            raise damaged(
                self.gguf.path,
                f"the numbers of heads in its metadata do not divide {name}, which is {list(shape)}",
            ) from None

    def _can_be_packed(self, name: str) -> bool:
        """Whether a parameter is one tensor, whose blocks need not be taken apart."""
        tensors, part = self._sources[name], self._part(name)
        if len(tensors) > 1 or isinstance(part, Made) or name in self._exact:
            return False
        if _matrix(tensors[0]) != self._shapes[name]:
            return False
        if part is None or not part.columns:
            return True
        return blocks_in_order(self._order(name, part), tensors[0].type.columns) is not None

    @property
    def further_blocks(self) -> list[str]:
        """The blocks behind the model's layers."""
        numbers = {int(found[1]) for name in self.gguf.tensors if (found := NUMBERED.fullmatch(name))}
        return [f"blk.{number}" for number in sorted(numbers) if number >= self._layers]

    @property
    def nbytes(self) -> int:
        """Bytes of the dense tensors in the file."""
        return sum(tensor.nbytes for tensors in self._sources.values() for tensor in tensors)

    def memory_bytes(self, dtype: torch.dtype, packed: bool) -> int:
        """Bytes of everything but the experts in memory: what can be `packed` so, if it shall be, and all else in `dtype`."""
        wide = {name: 4 if name in self._exact else dtype.itemsize for name in self._read_plainly(packed)}
        plain = sum(prod(self._shapes[name]) * item for name, item in wide.items())
        return int(plain) + (sum(self._packed_bytes().values()) if packed else 0)

    def _read_plainly(self, packed: bool) -> set[str]:
        """The parameters that are decoded."""
        names = {f"{path}.weight" for path in self.packable} if packed else set()
        return self._sources.keys() - names

    def _packed_bytes(self, stored: bool = False) -> dict[str, int]:
        """Of each parameter that something is packed from, but what is `storable` where that is `stored`: modules that share it
        have one matrix."""
        sources = (
            source for path, source in self.packable.items() if not stored or path not in self.storable
        )
        tensors = {source: self._sources[source][0] for source in sources}
        return {
            source: own_format(tensor.type).matrix_bytes(*_matrix(tensor))
            for source, tensor in tensors.items()
        }

    def converted(self) -> dict[str, str]:
        """Linears that are not `packable` -> what they are in, for people."""
        decoded = {path: source for path, source in self._linears.items() if path not in self.packable}
        return {
            path: " and ".join(sorted({tensor.type.name for tensor in self._sources[source]}))
            for path, source in decoded.items()
        }

    @property
    def dtype(self) -> torch.dtype:
        """What holds the file's matrices best: float32 for files in F32 or F16, else bfloat16."""
        types = {t.type.name for tensors in self._sources.values() for t in tensors if len(t.shape) > 1}
        return torch.float32 if types <= {"F32", "F16"} else torch.bfloat16

    def _source(self, parameter: str) -> str:
        """The parameter whose tensors `parameter` is made from: embeddings, for an output tied to them."""
        return (
            parameter if parameter in self._sources else f"{self._decoder}.{self._top['token_embd']}.weight"
        )

    def read(
        self, dtype: torch.dtype, packed: bool = False, losses: Losses | None = None
    ) -> Reading[dict[str, Tensor]]:
        """Parameter -> its tensor in `dtype`, but the weights of what is `packable` where that is `packed`; `losses` are told
        what linears lose. Its jobs raise DaliError for values that are not finite."""
        names = self._read_plainly(packed)
        rounded = losses is not None and not packed and dtype != torch.float32
        told = set(self._linears.values()) if rounded else set()
        values = {
            tensor.name: torch.empty(
                tensor.shape, dtype=torch.float32 if self._made_of(name) or name in self._exact else dtype
            )
            for name in names
            for tensor in self._sources[name]
        }
        jobs = [
            Job(
                tensor,
                begin,
                len(rows),
                partial(_dequantize, tensor, rows, losses if name in told and not begin else None),
            )
            for name in names
            for tensor in self._sources[name]
            for begin, rows in _pieces(values[tensor.name])
        ]
        return Reading(jobs, lambda: {name: self._assemble(name, values, dtype) for name in names})

    def _made_of(self, name: str) -> bool:
        return isinstance(self._part(name), Made)

    def _assemble(self, name: str, values: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
        """A parameter from its tensors' `values`."""
        part, by_leaf = self._part(name), {_leaf(t): values[t.name] for t in self._sources[name]}
        if isinstance(part, Made):
            value = part.make(self.config, *(by_leaf[leaf] for leaf in part.tensors))
            if value.isnan().any():
                raise damaged(
                    self.gguf.path, f"of its {', '.join(part.tensors)}, {name} has values that are NaN"
                )
            return value.reshape(self._shapes[name]).to(torch.float32 if name in self._exact else dtype)
        (value,) = by_leaf.values()
        value = value.reshape(self._shapes[name])
        if part is None:
            return value
        return value.index_select(-1 if part.columns else 0, torch.from_numpy(self._order(name, part)))

    def stored_bytes(self) -> int:
        """Bytes that memory need not have of what is packed if what is `storable` stays in the file."""
        return sum(self._packed_bytes().values()) - sum(self._packed_bytes(stored=True).values())

    def read_packed(self, losses: Losses, stored: bool = False) -> Reading[dict[str, tuple[Tensor, Format]]]:
        """Module -> its packed matrix and format, of all that is `packable` and not `stored`: the same values where a format has
        them; `losses` are told of linears that have others. Its jobs raise DaliError for values that are not finite."""
        sizes = self._packed_bytes(stored)
        memory = Arena(1, round_up(max(sum(sizes.values()), 1), 4096))[0]
        pieces = torch.split(memory, [*sizes.values(), len(memory) - sum(sizes.values())])
        matrices: dict[str, tuple[Tensor, Format]] = {}
        jobs: list[Job] = []
        for name, out in zip(sizes, pieces[:-1], strict=True):
            (tensor,), part = self._sources[name], self._part(name)
            order = self._order(name, part) if isinstance(part, Ordered) else None
            columns = isinstance(part, Ordered) and part.columns
            matrices[name] = out, own_format(tensor.type)
            rows, width = _matrix(tensor)
            step = PACKED_ROWS if order is None or columns else rows
            told = losses if name in self._linears.values() else None
            for row in range(0, rows, step):
                place = PackedRows(tensor, width, order, columns, *matrices[name])
                jobs.append(
                    Job(tensor, row, min(step, rows - row), partial(place.take, row, None if row else told))
                )
        return Reading(
            jobs, lambda: {path: matrices[n] for path, n in self.packable.items() if n in matrices}, [memory]
        )


def _leaf(tensor: GgufTensor) -> str:
    """A tensor's name in its block."""
    numbered = NUMBERED.fullmatch(tensor.name)
    return numbered[2] if numbered else tensor.name


def _exact_parameters(skeleton: Any, names: Collection[str]) -> set[str]:
    """What transformers keeps in float32 in a model of any type, such as the corrections of routers."""
    kept = [getattr(skeleton, f"_keep_in_fp32_modules{kind}", None) or () for kind in ("", "_strict")]
    patterns = [re.compile(rf"(^|\.){re.escape(one)}($|\.)") for some in kept for one in some]
    return {name for name in names if any(pattern.search(name) for pattern in patterns)}


def _pieces(matrix: Tensor) -> list[tuple[int, Tensor]]:
    """A tensor's rows, some at a time: (first row, [rows, columns]), views."""
    rows = matrix.view(-1, matrix.shape[-1])
    step = max(AT_ONCE // rows.shape[1], 1)
    return [(begin, rows[begin : begin + step]) for begin in range(0, len(rows), step)]


def _matrix(tensor: GgufTensor) -> tuple[int, int]:
    """Rows and columns, whatever dimensions of one there are around them."""
    return prod(tensor.shape[:-1]), tensor.shape[-1]


def _dequantize(tensor: GgufTensor, out: Tensor, losses: Losses | None, raw: Bytes) -> None:
    """Rows of a tensor into `out` [rows, columns]; `losses` are told what rounding them loses. DaliError for values that are not
    finite."""
    type = tensor.type
    if native.enabled() and type.name in PARTS:
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
    if losses is not None:
        name = f"{type.name} to {str(out.dtype).removeprefix('torch.')}"
        losses.kept(name, out[:MEASURED_ROWS], values[:MEASURED_ROWS])


def _check_shape(tensor: GgufTensor, wanted: tuple[int, ...]) -> None:
    if _squeezed(tensor.shape) != _squeezed(wanted):
        raise damaged(
            tensor.path, f"the tensor {tensor.name} is {list(tensor.shape)}, its metadata says {list(wanted)}"
        )


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A row may be stored as a matrix of one row, and the other way round."""
    return tuple(size for size in shape if size != 1)
