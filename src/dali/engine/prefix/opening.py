"""The prefix cache of a loaded model, as its options ask for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
import xxhash

import dali
from dali import compiled
from dali.engine.prefix.folder import Folder, prepare_folder
from dali.engine.prefix.prefixes import BLOCK_TOKENS, Prefixes
from dali.fused.dense import PackedLinear
from dali.hardware.free_memory import available_ram
from dali.hooks.attention import smallest_window
from dali.hooks.recurrent import recurrent_modules
from dali.loading.loaded import LoadedModel
from dali.loading.room import CACHE_SHARE, HEADROOM, MOST_CACHE
from dali.options import LoadOptions

# Raised whenever keys, values or states may get other bits from the same model, or files another meaning.
ARITHMETIC = 1


def open_prefixes(
    loaded: LoadedModel, options: LoadOptions, notify: Callable[[str], None], ram: int | None = None
) -> Prefixes:
    """What `options` ask for beside a model that is in memory. `ram`: bytes of it; None: as `default_ram` says."""
    folder, window = None, smallest_window(loaded.model)
    if options.cache_dir is not None:
        limit = options.cache_disk_bytes
        folder = Folder(prepare_folder(options.cache_dir, limit), limit, notify)
    return Prefixes(
        default_ram(loaded, options.ram_bytes) if ram is None else ram,
        folder,
        "" if folder is None else identity(loaded, options),
        bool(recurrent_modules(loaded.model)),
        window,
    )


def default_ram(loaded: LoadedModel, planned: int | None) -> int:
    """Bytes that a prefix cache may have unless told: a quarter of what is free beside the model, or of what was `planned`."""
    free = available_ram()
    if planned is not None:
        free = min(free, planned - loaded.expert_bytes - loaded.dense_bytes - HEADROOM)
    return min(max(free, 0) // CACHE_SHARE, MOST_CACHE)


def identity(loaded: LoadedModel, options: LoadOptions) -> str:
    """Changes with everything that may change a bit of what is kept."""
    config: dict[str, Any] = loaded.model.config.get_text_config().to_dict()
    parts = {
        "arithmetic": ARITHMETIC,
        "dali": dali.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "kernels": _kernels(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "device": options.device_kind,
        "files": loaded.fingerprint,
        "experts": [layout.format_name for layout in loaded.layouts],
        "asked": (options.quant, options.dtype),
        "packed": sorted({f"{path} {module.format.name}" for path, module in _packed(loaded.model)}),
        "dense": [str(dtype) for dtype in sorted({p.dtype for p in loaded.model.parameters()}, key=str)],
        "config": config,  # positions' scaling is part of it
        "block": BLOCK_TOKENS,
        "kept": options.in_q8,
    }
    text = json.dumps(parts, sort_keys=True, default=repr)
    return hashlib.blake2b(text.encode(), digest_size=20).hexdigest()


def _packed(model: torch.nn.Module) -> list[tuple[str, Any]]:
    """Modules whose weights are packed, with their paths."""
    return [(path, module) for path, module in model.named_modules() if isinstance(module, PackedLinear)]


def _kernels() -> str:
    """Of the compiled kernels: which instructions, and which build."""
    if not compiled.enabled():
        return "torch"
    build = xxhash.xxh3_64_hexdigest(Path(compiled.library.__file__).read_bytes())
    return f"{compiled.variant()} {build}"
