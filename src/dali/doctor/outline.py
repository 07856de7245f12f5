"""A model's outline: its configuration, and the name, type and shape of every tensor, from the headers of its files."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from dali.errors import DaliError, unreadable
from dali.loading.locate import display_name
from dali.store.gguf.header import Gguf, read_gguf, split_files

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
LONGEST_HEADER = 100 * 2**20  # of a safetensors file, as its own library has it
BITS = {
    "F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I8": 8, "U8": 8, "BOOL": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of a file, in one of safetensors' types."""

    type: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class SafetensorsOutline:
    """Of a directory: config.json, and tensors by name. `nbytes`: of all files with weights."""

    name: str
    path: Path
    config: dict[str, Any]
    tensors: dict[str, Stored]
    nbytes: int

    @cached_property
    def text(self) -> dict[str, Any]:
        """The part of the configuration that is about text."""
        text = self.config.get("text_config")
        return text if isinstance(text, dict) else self.config


@dataclass(frozen=True)
class GgufOutline:
    """Of a GGUF file, or of all files of a split one."""

    name: str
    path: Path
    gguf: Gguf
    nbytes: int


Outline = SafetensorsOutline | GgufOutline


def read_outline(path: Path) -> Outline:
    """The outline of a directory or a GGUF file. DaliError, naming the file, for what is missing or damaged."""
    if path.is_file():
        files = [file for file in split_files(path) if file.is_file()]
        return GgufOutline(
            display_name(path), path, read_gguf(path), sum(file.stat().st_size for file in files)
        )
    config = _object(path / "config.json")
    tensors: dict[str, Stored] = {}
    nbytes = 0
    for shard in _shards(path):
        file = path / shard
        if not file.is_file():
            raise DaliError(f"{path} lacks {shard}, its weights.", "Download the model, as safetensors.")
        nbytes += file.stat().st_size
        tensors.update(read_shard(file))
    return SafetensorsOutline(display_name(path), path, config, tensors, nbytes)


def _shards(directory: Path) -> list[str]:
    """As loading has them: a single file comes first."""
    if os.path.isfile(directory / SINGLE) or not os.path.isfile(directory / INDEX):
        return [SINGLE]
    shards = _object(directory / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise DaliError(
            f"The index {directory / INDEX} is damaged (it has no weight_map).", "Download it again."
        )
    for shard in shards.values():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise DaliError(
                f"The index {directory / INDEX} is damaged ({shard!r:.60} does not name a file beside it).",
                "Download it again.",
            )
    return sorted(set(shards.values()))


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, RecursionError) as error:
        raise DaliError(f"Cannot read {path} ({error}).", "Download it again.") from error
    if not isinstance(found, dict):
        raise DaliError(f"Cannot read {path} (it holds {found!r:.60}, and no object).", "Download it again.")
    return found


def windows(config: Mapping[str, Any], layers: int) -> list[int | None]:
    """How far back each layer attends, as a configuration says it: tokens that a query sees, itself included; None for all."""
    window = config.get("sliding_window")
    if type(window) is not int or window < 1 or config.get("use_sliding_window") is False:
        return [None] * layers
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and len(kinds) >= layers:
        return [window if kind == "sliding_attention" else None for kind in kinds[:layers]]
    if type(first := config.get("max_window_layers")) is int and "use_sliding_window" in config:
        return [window if layer >= first else None for layer in range(layers)]
    return [window] * layers


def header_length(start: bytes) -> int | None:
    """Bytes of a safetensors file's header, the length before it included, by its first 8; None where that cannot be one."""
    if len(start) < 8:
        return None
    (length,) = struct.unpack("<Q", start[:8])
    return 8 + length if 2 <= length <= LONGEST_HEADER else None


def read_shard(path: Path) -> Iterator[tuple[str, Stored]]:
    """Each tensor of a safetensors file. DaliError where its header cannot be, or does not agree with the file's size."""
    try:
        with path.open("rb") as file:
            length = header_length(file.read(8))
            raw = b"" if length is None else file.read(length - 8)
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        header = json.loads(raw)
        if length is None or not isinstance(header, dict):
            raise ValueError("no header")
        end, found = length, []
        for name, entry in header.items():
            if name != "__metadata__":
                begin, after = entry["data_offsets"]
                found.append((name, _stored(entry, after - begin)))
                end = max(end, length + after)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(path, f"its header cannot be read: {error!s:.80}") from None
    if end != path.stat().st_size:
        raise _damaged(path, f"its header speaks of {end} bytes, and it has {path.stat().st_size}")
    yield from found


def _stored(entry: dict[str, Any], nbytes: int) -> Stored:
    stored = Stored(str(entry["dtype"]), tuple(entry["shape"]))
    if not all(type(size) is int and size >= 0 for size in stored.shape):
        raise ValueError(f"a shape of {stored.shape!r:.60}")
    bits = BITS.get(stored.type)
    if bits is not None and stored.elements * bits != 8 * nbytes:
        raise ValueError(f"a tensor {list(stored.shape)} of {stored.type} in {nbytes} bytes")
    return stored


def _damaged(path: Path, why: str) -> DaliError:
    return DaliError(f"The weight file {path} is damaged ({why}).", "Download it again.")
