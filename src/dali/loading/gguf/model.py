"""Loading a GGUF model: its experts repacked straight into RAM, its dense weights decoded for transformers.

There is no store on disk: it would take the file's space once more to save the repacking, which is faster than any disk.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import xxhash
from torch import Tensor, nn

from dali.fused.dense import put_linears
from dali.hardware.memory import available_ram
from dali.hooks import seam
from dali.hooks.moe_layer import MoELayer
from dali.kernels.expert import ExpertLayout
from dali.kernels.formats import Format, get_format
from dali.loading import safetensors as load
from dali.loading.gguf.config import read_config
from dali.loading.gguf.dense import GgufDense
from dali.loading.gguf.tokenizer import end_ids, read_tokenizer
from dali.loading.safetensors import HEADROOM, LoadedModel
from dali.progress import Meter
from dali.store.gguf.experts import GgufExperts, Loaded
from dali.store.gguf.header import read_gguf
from dali.store.gguf.reader import Reading, read
from dali.store.pool import ExpertPool
from dali.telemetry import Telemetry


class Weights(NamedTuple):
    """A model's weights in RAM: experts; linears by module, packed; all others by parameter."""

    experts: Loaded
    linears: dict[str, tuple[Tensor, Format]]
    dense: dict[str, Tensor]


class GgufModel:
    """A GGUF file as far as its header tells: configuration, model on meta, where its weights lie.

    DaliError for what cannot be read or run; no weight has been read.
    """

    def __init__(self, path: Path) -> None:
        self.gguf = read_gguf(path)
        self.config = read_config(self.gguf, end_ids(self.gguf))
        self.skeleton: nn.Module = load.build_skeleton(self.config, path)
        self.modules = seam.describe_model(self.skeleton, str(path))
        load.check_attention(self.skeleton)
        names = seam.experts_modules(self.skeleton)
        blocks = [int(name.split(".")[2]) for name in names]
        self.experts = GgufExperts(self.gguf, self.modules, blocks)
        self.dense = GgufDense(self.gguf, self.skeleton, self.experts.names, set(names))
        self.config.dtype = self.dense.dtype

    @property
    def name(self) -> str:
        """The file's name without its number and suffix."""
        return re.sub(r"-\d{5}-of-\d{5}$", "", self.gguf.path.stem)

    @property
    def fingerprint(self) -> str:
        """Changes when the header or any file does."""
        digest = xxhash.xxh3_128(json.dumps(self.gguf.metadata, sort_keys=True).encode())
        for path in sorted({tensor.path for tensor in self.gguf.tensors.values()}):
            stat = path.stat()
            digest.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}".encode())
        digest.update(
            repr([(t.name, t.type.name, t.shape, t.offset) for t in self.gguf.tensors.values()]).encode()
        )
        return digest.hexdigest()

    def choose_layouts(self, quant: str, dtype: torch.dtype, ram: int | None) -> list[ExpertLayout]:
        """Each MoE layer's layout: `quant`, or for "auto" what keeps the file's values. DaliError when `ram` bytes (None: what is
        free now) cannot hold it."""
        free = available_ram()
        dense = load.count_dense_bytes(self.skeleton, dtype)

        def need(layouts: list[ExpertLayout]) -> int:
            return sum(self.modules[0].experts * layout.record_bytes for layout in layouts) + dense + HEADROOM

        layouts = self.experts.layouts(None if quant == "auto" else get_format(quant))
        if need(layouts) > (free if ram is None else ram):
            smallest = need(self.experts.layouts(get_format("w4")))
            formats = load.describe_layouts(layouts)
            raise load.out_of_memory(self.name, formats, need(layouts), smallest, ram, free)
        return layouts

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors in the file."""
        return self.experts.nbytes + self.dense.nbytes

    def read(
        self,
        layouts: list[ExpertLayout],
        dtype: torch.dtype,
        pack_linears: bool,
        progress: Callable[[int], None],
    ) -> Weights:
        """All weights in one pass: experts in `layouts`, dense weights in `dtype` but linears that can be packed if
        `pack_linears`. DaliError for what cannot be read or held so. `progress` is told the bytes read."""
        experts = self.experts.read(layouts)
        linears = self.dense.read_linears() if pack_linears else Reading([], dict)
        dense = self.dense.read(dtype, packed=self.dense.linears if pack_linears else ())
        read([experts, linears, dense], progress)
        return Weights(experts.finish(), linears.finish(), dense.finish())


def load_gguf(
    path: Path,
    quant: str,
    dtype: str,
    ctx_size: int | None,
    ram: int | None,
    meter: Meter,
    notify: Callable[[str], None],
    pack_linears: bool = False,
) -> LoadedModel:
    """As `load.load_model`, for a GGUF file or any file of a split one. pack_linears: leave linears that the file has quantized
    as they are, for the compiled kernels, if the experts are quantized, too."""
    load.check_choices(quant, dtype)
    model = GgufModel(path)
    ctx_size = load.choose_context(model.config, ctx_size, model.name)
    if (
        dtype == "auto" and pack_linears
    ):  # costs next to nothing, and is llama.cpp's: the tokens agree more often
        dtype = "float32"
    target = model.config.dtype if dtype == "auto" else getattr(torch, dtype)
    layouts = model.choose_layouts(quant, target, ram)
    tokenizer = read_tokenizer(model.gguf)
    pack_linears = pack_linears and layouts[0].format.quantized
    weights = model.read(layouts, target, pack_linears, meter("Loading weights", model.nbytes))
    loaded, linears = weights.experts, weights.linears
    for conversion, error in loaded.converted.items():
        notify(f"Experts are converted from {conversion}: relative error {error:.2%}.")
    dense = load.load_dense(path, model.config, target, weights.dense, without=linears)
    put_linears(dense, linears)
    telemetry = Telemetry()
    pool = ExpertPool(layouts, loaded.records)
    seam.install(dense, [MoELayer(index, pool, telemetry) for index in range(pool.layers)])
    return LoadedModel(
        model.name,
        model.fingerprint,
        dense,
        tokenizer,
        pool,
        telemetry,
        ctx_size,
        loaded.converted,
    )
