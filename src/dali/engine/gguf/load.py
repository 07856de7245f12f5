"""Loading a GGUF model: its experts repacked straight into RAM, its dense weights decoded for transformers.

There is no store on disk: it would take the file's space once more to save the repacking, which is faster than any disk.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import torch
import xxhash
from torch import nn

from dali.engine import load, seam
from dali.engine.dense import put_linears
from dali.engine.gguf.config import read_config
from dali.engine.gguf.dense import GgufDense
from dali.engine.gguf.tokenizer import end_ids, read_tokenizer
from dali.engine.layer import MoELayer
from dali.engine.load import HEADROOM, LoadedModel
from dali.engine.progress import Meter
from dali.errors import DaliError
from dali.hardware.memory import available_ram
from dali.kernels.expert import ExpertLayout
from dali.kernels.formats import get_format
from dali.runtime.telemetry import Telemetry
from dali.store.gguf import read_gguf
from dali.store.gguf_experts import GgufExperts


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

    def choose_layouts(self, quant: str, dtype: torch.dtype, ram: int) -> list[ExpertLayout]:
        """Each MoE layer's layout: `quant`, or for "auto" what keeps the file's values. DaliError when `ram` cannot hold it."""
        layouts = self.experts.layouts(None if quant == "auto" else get_format(quant))
        count = self.modules[0].experts
        need = sum(count * layout.record_bytes for layout in layouts)
        need += load.count_dense_bytes(self.skeleton, dtype) + HEADROOM
        if need > ram:
            raise DaliError(
                f"{self.name} needs {need / 2**30:.1f} GiB of memory, and {ram / 2**30:.1f} GiB are there.",
                "Close other programs, or choose a smaller file or format (--quant w4).",
            )
        return layouts


def load_gguf(
    path: Path,
    quant: str,
    dtype: str,
    ram: int | None,
    meter: Meter,
    notify: Callable[[str], None],
    pack_linears: bool = False,
) -> LoadedModel:
    """As `load.load_model`, for a GGUF file or any file of a split one. pack_linears: leave linears that the file has quantized
    as they are, for the compiled kernels, if the experts are quantized, too."""
    load.check_choices(quant, dtype)
    model = GgufModel(path)
    if (
        dtype == "auto" and pack_linears
    ):  # costs next to nothing, and is llama.cpp's: the tokens agree more often
        dtype = "float32"
    target = model.config.dtype if dtype == "auto" else getattr(torch, dtype)
    layouts = model.choose_layouts(quant, target, available_ram() if ram is None else ram)
    tokenizer = read_tokenizer(model.gguf)
    loaded = model.experts.read_all(layouts, meter("Loading experts", model.experts.nbytes))
    for conversion, error in loaded.converted.items():
        notify(f"Experts are converted from {conversion}: relative error {error:.2%}.")
    progress = meter("Loading dense weights", model.dense.nbytes)
    linears = model.dense.read_linears(progress) if pack_linears and layouts[0].format.quantized else {}
    state = model.dense.read_all(target, progress, packed=linears)
    dense = load.load_dense(path, model.config, target, state, without=linears)
    put_linears(dense, linears)
    telemetry = Telemetry()
    packed = enumerate(zip(layouts, loaded.records, strict=True))
    seam.install(dense, [MoELayer(index, layout, layer, telemetry) for index, (layout, layer) in packed])
    return LoadedModel(
        model.name, model.fingerprint, dense, tokenizer, layouts, loaded.records, telemetry, loaded.converted
    )
