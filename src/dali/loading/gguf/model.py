"""A GGUF model: its experts repacked straight into RAM, its dense weights decoded for transformers.

There is no store on disk where RAM holds all experts: it would take the file's space once more to save the repacking, which is
faster than any disk. Where RAM does not, the store is what experts are read from while the model runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import torch
import xxhash
from torch import Tensor

from dali.fused.dense import LINEARS, put_packed
from dali.fused.embedding import StoredEmbedding
from dali.hooks import seam
from dali.hooks.attention import set_windows
from dali.hooks.moe_layer import MoELayer
from dali.kernels.expert import ExpertLayout
from dali.kernels.formats import Format, get_format
from dali.kernels.packing import pack, unpack
from dali.loading.budget import choose_context, choose_layouts
from dali.loading.dense import load_dense
from dali.loading.further_tokens import left_out
from dali.loading.gguf.config import read_config
from dali.loading.gguf.dense import GgufDense
from dali.loading.gguf.families import family_of
from dali.loading.gguf.packed_rows import MEASURED_ROWS
from dali.loading.gguf.stored_table import StoredTable
from dali.loading.gguf.tokenizer import end_ids, read_tokenizer
from dali.loading.loaded import LoadedModel, conversion_note, describe_layouts, largest
from dali.loading.locate import display_name
from dali.loading.on_disk import fit, open_pool, told
from dali.loading.source import ModelSource
from dali.options import LoadOptions
from dali.progress import Meter
from dali.store.cache import store_path
from dali.store.disk_pool import DiskPlan, DiskPool
from dali.store.expert_pool import ExpertPool
from dali.store.gguf.experts import GgufExperts, Loaded, OneByOne
from dali.store.gguf.header import Gguf, read_gguf
from dali.store.gguf.pack import Losses
from dali.store.gguf.reader import GgufReader, Reading, read
from dali.store.packed.builder import ensure_store
from dali.store.packed.header import StoreHeader
from dali.telemetry import Telemetry


class Weights(NamedTuple):
    """A model's weights in RAM: experts, unless they are on disk; linears and embeddings by module, packed; all others by
    parameter. Embeddings that stay in the file. And what linears lost: "Q6_K to w8" -> relative L2 error."""

    experts: Loaded | None
    packed: dict[str, tuple[Tensor, Format]]
    stored: dict[str, StoredTable]
    dense: dict[str, Tensor]
    losses: Losses


class GgufModel(ModelSource):
    """A GGUF file, or any file of a split one."""

    @cached_property
    def gguf(self) -> Gguf:
        """The header, parsed once."""
        return read_gguf(self.path)

    @property
    def name(self) -> str:
        return display_name(self.path)

    @cached_property
    def config(self) -> Any:
        return read_config(self.gguf, end_ids(self.gguf))

    @cached_property
    def experts(self) -> GgufExperts:
        """Where the experts lie in the file."""
        blocks = [int(module.name.partition(".layers.")[2].split(".")[0]) for module in self.modules]
        return GgufExperts(self.gguf, self.modules, blocks)

    @cached_property
    def dense(self) -> GgufDense:
        """Where everything else lies, and what it is to transformers."""
        modules = {module.name for module in self.modules}
        return GgufDense(self.gguf, family_of(self.gguf), self.skeleton, self.experts.names, modules)

    @cached_property
    def tokenizer(self) -> Any:
        return read_tokenizer(self.gguf)

    @property
    def has_chat_template(self) -> bool:
        return bool(self.gguf.optional("tokenizer.chat_template", str))

    @property
    def fingerprint(self) -> str:
        """Changes when the header or any file does."""
        digest = xxhash.xxh3_128(json.dumps(self.gguf.metadata, sort_keys=True, default=repr).encode())
        for path in sorted({tensor.path for tensor in self.gguf.tensors.values()}):
            stat = path.stat()
            digest.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}".encode())
        digest.update(
            repr([(t.name, t.type.name, t.shape, t.offset) for t in self.gguf.tensors.values()]).encode()
        )
        return digest.hexdigest()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors in the file."""
        return self.experts.nbytes + self.dense.nbytes

    def dtype(self, asked: str, compiled: bool) -> torch.dtype:
        if asked != "auto":
            return getattr(torch, asked)  # type: ignore[no-any-return]
        # float32 costs the compiled kernels next to nothing, and is llama.cpp's: the tokens agree more often.
        return torch.float32 if compiled else self.dense.dtype

    def layouts(
        self, quant: str, dtype: torch.dtype, ram: int | None, compiled: bool = False
    ) -> list[ExpertLayout]:
        """As ModelSource's; "auto" and "keep" are what keeps the file's values."""
        wanted = self.experts.layouts(None if quant in ("auto", "keep") else get_format(quant))
        smallest = self.experts.layouts(get_format("w4"))
        dense_bytes = self.dense.memory_bytes(dtype, _packs(wanted, compiled))
        return choose_layouts([wanted], smallest, self.modules[0].experts, dense_bytes, ram, self.name)

    def read(
        self,
        layouts: list[ExpertLayout] | None,
        dtype: torch.dtype,
        packed: bool,
        progress: Callable[[int], None],
        stored: bool = False,
    ) -> Weights:
        """All weights in one pass: experts in `layouts`, or none of them for None; dense weights in `dtype`, but those that can
        be packed if they shall be `packed`, without embeddings that can stay in the file if they shall be `stored`. DaliError for
        what cannot be read or held so. `progress` is told the bytes read."""
        losses = Losses()
        experts = Reading([], lambda: None) if layouts is None else self.experts.read(layouts)
        tables = {path: StoredTable(one) for path, one in self.dense.storable.items()} if stored else {}
        matrices = self.dense.read_packed(losses, stored) if packed else Reading([], dict)
        dense = self.dense.read(dtype, packed, losses)
        read([experts, matrices, dense, *(table.check() for table in tables.values())], progress)
        return Weights(experts.finish(), matrices.finish(), tables, dense.finish(), losses)

    def load(
        self, options: LoadOptions, compiled: bool, meter: Meter, notify: Callable[[str], None]
    ) -> LoadedModel:
        """As ModelSource's. Beside quantized experts the compiled kernels take linears and embeddings as the file has them."""
        # Asking for the dense weights' type goes over the whole header: what can be refused by it is, before weights are read.
        self.config.dtype = self.dense.dtype
        ctx_size = choose_context(self.config, options, self.name)
        dtype = self.dtype(options.dtype, compiled)
        layouts, disk = self._fit(dtype, options, compiled)
        tokenizer = self.tokenizer
        for key, wrong in self.gguf.ignored.items():
            notify(f"{self.path} is read without its key {key}, which {wrong}.")
        for note in left_out(self.dense.further_blocks):
            notify(note)
        packed = _packs(layouts, compiled)
        pool: ExpertPool | None = None
        if disk is not None:  # first: while they are packed, no dense weights are in memory yet
            pool, converted = self._open_pool(layouts, disk, meter, notify)
        nbytes = self.nbytes if pool is None else self.dense.nbytes
        weights = self.read(
            layouts if pool is None else None,
            dtype,
            packed,
            meter("Loading weights", nbytes),
            pool is not None and _stores(layouts, compiled, options),
        )
        model = load_dense(
            self.path, self.config, dtype, weights.dense, without=[*weights.packed, *weights.stored]
        )
        put_packed(model, weights.packed, dtype)
        for name, table in weights.stored.items():
            plain: Any = model.get_submodule(name)
            model.set_submodule(name, StoredEmbedding(table.rows, plain, table.format, dtype))
        if weights.experts is not None:
            converted = weights.experts.converted
        linears = self._linears_lost(model, weights.losses, packed)
        for what, lost in (("Experts", converted), ("Linears", linears)):
            for conversion, error in lost.items():
                notify(conversion_note(what, conversion, error))
        set_windows(model, self.calls.windows)
        telemetry = Telemetry()
        if isinstance(pool, DiskPool):
            telemetry.follow_disk(pool.counters)
        elif weights.experts is not None:
            pool = ExpertPool(layouts, weights.experts.records)
        assert pool is not None
        seam.install(model, [MoELayer(index, pool, telemetry) for index in range(pool.layers)])
        return LoadedModel(
            self.name,
            self.fingerprint,
            model,
            tokenizer,
            pool,
            telemetry,
            ctx_size,
            self.calls.top_k,
            converted=converted,
            converted_linears=linears,
            disk=disk,
        )

    def _fit(
        self, dtype: torch.dtype, options: LoadOptions, compiled: bool
    ) -> tuple[list[ExpertLayout], DiskPlan | None]:
        return fit(
            lambda ram: self.layouts(options.quant, dtype, ram, compiled),
            self.name,
            options,
            compiled,
            self.calls,
            self.skeleton,
            dtype,
            lambda layouts: self.dense.stored_bytes() if _stores(layouts, compiled, options) else 0,
        )

    def _open_pool(
        self, layouts: list[ExpertLayout], plan: DiskPlan, meter: Meter, notify: Callable[[str], None]
    ) -> tuple[DiskPool, dict[str, float]]:
        """The pool of the model's store, which is packed unless it is there; and what conversions lose."""
        header = StoreHeader.of(self.name, self.fingerprint, layouts, self.modules[0].experts)
        path = store_path(self.path, "gguf" if header.mixed else header.layout.format.name)
        what = f"Packing experts to {describe_layouts(layouts)}"
        with GgufReader(sorted({self.gguf.tensors[name].path for name in self.experts.names})) as reader:
            source = OneByOne(self.experts, layouts, reader)
            start = told(path, header, lambda: meter(what, header.nbytes), notify)
            ensure_store(path, header, source, start, notify)
            return open_pool(path, plan, notify), source.losses()

    def _linears_lost(self, model: Any, losses: Losses, packed: bool) -> dict[str, float]:
        """What linears lose in all, those too that are decoded here and packed later, beside the others."""
        format = get_format(LINEARS)
        for path, types in self.dense.converted().items() if packed else ():
            weight = model.get_submodule(path).weight[:MEASURED_ROWS].float()
            kept = unpack(pack(weight, format), len(weight), weight.shape[1], format)
            losses.kept(f"{types} to {LINEARS}", kept, weight)
        return losses.relative()


def _packs(layouts: list[ExpertLayout], compiled: bool) -> bool:
    """Whether linears and embeddings are packed, too: the compiled kernels take them so, and beside experts in floats they are
    computed in floats."""
    return compiled and largest(layouts).format.quantized


def _stores(layouts: list[ExpertLayout], compiled: bool, options: LoadOptions) -> bool:
    """Whether embeddings stay in the file beside experts on disk: an accelerator takes tables."""
    return _packs(layouts, compiled) and options.device == "cpu"
