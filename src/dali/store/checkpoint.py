"""A model directory's safetensors files, and the experts in them, one at a time.

Which tensor is which expert is not ours to know: transformers' own conversion mapping renames each key on
disk to the parameter it loads into, and its operations, run on one expert, give that parameter's layout. See
docs/ARCHITECTURE.md.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    WeightTransform,
    dot_natural_key,
    rename_source_key,
)
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from dali.errors import DaliError, unreadable
from dali.kernels.expert import ExpertWeights
from dali.store.experts_module import ExpertsModule
from dali.store.fp8 import SCALE, dequantize

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
OPEN_SHARDS = 2  # a layer may straddle two; closing older ones gives their pages back
MOST_MAPPED = 2**25  # bytes read of a shard before it is opened anew, for the same reason


@dataclass
class Checkpoint:
    """The safetensors shards of `directory`. DaliError names the file that is missing or damaged."""

    directory: Path
    _open: dict[str, Any] = field(default_factory=dict)
    _mapped: int = 0  # bytes that were read of those
    _float8: list[str] = field(default_factory=list)  # weights in float8, once the shards were looked at

    @cached_property
    def shards(self) -> list[str]:
        return sorted(set(self._index.values())) or [SINGLE]

    @cached_property
    def _index(self) -> dict[str, str]:
        """Tensor name -> shard; empty where there is a single file, which transformers prefers."""
        path = self.directory / INDEX
        if os.path.isfile(self.directory / SINGLE) or not os.path.isfile(path):
            return {}
        try:
            index = json.loads(path.read_bytes())
            weight_map = index.get("weight_map") if isinstance(index, dict) else None
            if not weight_map or not isinstance(weight_map, dict):
                raise ValueError("it has no weight_map")
            for shard in weight_map.values():
                if not isinstance(shard, str) or Path(shard).name != shard:
                    raise ValueError(f"{shard!r} does not name a file beside it")
        except OSError as error:
            raise unreadable(path, error) from error
        except (ValueError, RecursionError) as error:
            raise DaliError(f"The index {path} is damaged ({error}).", "Download it again.") from error
        return weight_map

    @cached_property
    def _shapes(self) -> dict[str, dict[str, list[int]]]:
        """Shard -> tensor -> shape, as the shards themselves say."""
        return {shard: self._read_shapes(shard) for shard in self.shards}

    def _read_shapes(self, shard: str) -> dict[str, list[int]]:
        path = self.directory / shard
        if not os.path.isfile(path):  # False, not an error, for what no file can be called
            if not self._index and (pieces := sorted(self.directory.glob("*-00001-of-*.safetensors"))):
                raise DaliError(
                    f"{self.directory} has {pieces[0].name}, and lacks {INDEX}, which lists all such files.",
                    "Download that, too.",
                )
            why = f"which {INDEX} lists" if self._index else "its weights"
            raise DaliError(f"{self.directory} lacks {shard}, {why}.", "Download the model, as safetensors.")
        try:
            path.open("rb").close()  # of what it may not read, safetensors says that it is not there
        except OSError as error:
            raise unreadable(path, error) from error
        try:
            with safe_open(path, framework="pt") as file:  # compares the header with the file's size
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                self._float8 += [name for name, piece in slices.items() if piece.get_dtype() == "F8_E4M3"]
                return {name: piece.get_shape() for name, piece in slices.items()}
        except (SafetensorError, OSError) as error:
            raise DaliError(f"The weight file {path} is damaged ({error}).", "Download it again.") from error

    @cached_property
    def location(self) -> dict[str, str]:
        """Tensor name -> shard; every name of the index must be there, and the scales of every weight in float8."""
        location = {name: shard for shard, shapes in self._shapes.items() for name in shapes}
        for name in self._float8:
            if name + SCALE not in location:
                raise DaliError(
                    f"{self.directory} has {name} in float8, and no {name}{SCALE}.",
                    "Download the model again, or take it in another precision.",
                )
        for name, shard in self._index.items():
            if name not in self._shapes[shard]:
                raise DaliError(
                    f"{self.directory / shard} lacks the tensor {name} that {INDEX} lists.",
                    "Download the model again.",
                )
        return location

    def check_shapes(self, expected: Mapping[str, Tensor]) -> None:
        """DaliError where a tensor called as one of `expected` has another shape."""
        for name, shard in self.location.items():
            found = self._shapes[shard][name]
            if name in expected and found != list(expected[name].shape):
                raise DaliError(
                    f"{name} in {self.directory} is {found}, its config says {list(expected[name].shape)}.",
                    "Download the model again.",
                )

    def shape(self, name: str) -> list[int]:
        return self._shapes[self.location[name]][name]

    @cached_property
    def fingerprint(self) -> str:
        """Changes when the configuration or any shard does (its tensors, size or time of change)."""
        digest = xxhash.xxh3_128((self.directory / "config.json").read_bytes())
        for shard in self.shards:
            stat = (self.directory / shard).stat()
            digest.update(f"{shard} {stat.st_size} {stat.st_mtime_ns}".encode())
            digest.update(json.dumps(self._shapes[shard], sort_keys=True).encode())
        return digest.hexdigest()

    @cached_property
    def _block(self) -> tuple[int, int] | None:
        """Rows and columns that share a scale, of weights in float8."""
        config = json.loads((self.directory / "config.json").read_bytes())
        block = (config.get("quantization_config") or {}).get("weight_block_size")
        return None if block is None else (block[0], block[1])

    def read(self, name: str, expert: int | None = None) -> Tensor:
        """Tensor `name`, or of a fused one only `expert`: [1, ...]; one in float8 as the float32 that it stands for."""
        tensor = self._read(name, expert)
        if tensor.dtype != torch.float8_e4m3fn:
            return tensor
        try:
            return dequantize(tensor, self._read(name + SCALE, expert), self._block)
        except (ValueError, RuntimeError) as error:
            raise DaliError(
                f"{name} in {self.directory} cannot be dequantized ({error}).", "Download the model again."
            ) from error

    def _read(self, name: str, expert: int | None) -> Tensor:
        shard = self.location[name]
        try:
            if shard not in self._open:
                while len(self._open) >= OPEN_SHARDS:
                    self._open.pop(next(iter(self._open)))
                self._open[shard] = safe_open(self.directory / shard, framework="pt")
            piece = self._open[shard].get_slice(name)
            mapped: Tensor = piece[...] if expert is None else piece[expert : expert + 1]
            tensor = mapped.clone()  # views would keep the file mapped, and its pages in memory
            self._mapped += tensor.nbytes
            if self._mapped > MOST_MAPPED:
                del self._open[shard], piece, mapped
                self._mapped = 0
                self._forget(shard)
        except (SafetensorError, OSError) as error:
            raise DaliError(
                f"Cannot read {name} from {self.directory / shard} ({error}).", "Download the model again."
            ) from error
        return tensor

    def close(self) -> None:
        """Unmap the shards."""
        self._open.clear()

    def forget(self) -> None:
        """Unmap the shards, and let the system have the memory with which it keeps them at hand."""
        self.close()
        for shard in self.shards:
            self._forget(shard)

    def _forget(self, shard: str) -> None:
        if not hasattr(os, "posix_fadvise"):
            return
        with suppress(OSError):
            file = os.open(self.directory / shard, os.O_RDONLY)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)


class _OneExpert:
    """A model on meta as transformers' operations look at it while they convert one expert: that is all its parameters hold."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def get_parameter(self, name: str) -> Tensor:
        parameter: Tensor = self._model.get_parameter(name)
        return parameter[:1]


class CheckpointExperts:
    """The experts of a checkpoint, each read by itself and made canonical."""

    def __init__(
        self, checkpoint: Checkpoint, modules: list[ExpertsModule], mapping: list[WeightTransform], model: Any
    ) -> None:
        """`mapping`: transformers' conversion mapping for `model` (on meta, its experts still in place).

        DaliError when a module's experts are missing or their number is not the config's.
        """
        self.checkpoint = checkpoint
        self.modules = modules
        self._model = model
        self._renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        self._converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        # parameter -> source pattern (None: the tensor is the parameter) -> tensor names
        self._sources: dict[str, dict[str | None, list[str]]] = defaultdict(lambda: defaultdict(list))
        state = model.state_dict()
        for key in sorted(checkpoint.location, key=dot_natural_key):
            if key.endswith(SCALE):  # read with the weight it belongs to
                continue
            parameter, pattern = rename_source_key(
                key, self._renamings, self._converters, model.base_model_prefix, state
            )
            for suffix in ("_blocks", "_scales"):  # MXFP4: two tensors a parameter, decoded below
                if parameter.endswith(suffix):
                    parameter, pattern = parameter.removesuffix(suffix), suffix
            self._sources[parameter][pattern].append(key)
        for module in modules:
            self._check(module)

    @property
    def dense(self) -> list[str]:
        """The names of all tensors that are part of the model, but the experts'."""
        experts = {name for module in self.modules for name in self._parameters(module)}
        parameters = self._model.state_dict().keys() - experts
        return [
            name
            for parameter in sorted(parameters & self._sources.keys())
            for names in self._sources[parameter].values()
            for name in names
        ]

    def _check(self, module: ExpertsModule) -> None:
        for name in self._parameters(module):
            sources = self._sources.get(name)
            if not sources:
                raise DaliError(
                    f"{self.checkpoint.directory} has no weights for {name}.",
                    "Download the model again, or pick another.",
                )
            for pattern, keys in sources.items():
                shape = self.checkpoint.shape(keys[0])
                lists = len(keys) // len(self._targets(sources))
                experts = lists if pattern and "*" in pattern else shape[0] if shape else 0
                if experts != module.experts:
                    raise DaliError(
                        f"{self.checkpoint.directory} has {experts} experts in {name}, "
                        f"its config says {module.experts}.",
                        "Download the model again.",
                    )

    def _converter(self, sources: Mapping[str | None, list[str]]) -> WeightConverter | None:
        """What makes a parameter of tensors of these patterns."""
        patterns = {str(pattern) for pattern in sources}
        return next((c for c in self._converters if patterns <= set(c.source_patterns)), None)

    def _targets(self, sources: Mapping[str | None, list[str]]) -> list[str]:
        """The parameters that lists of experts of these patterns are divided among, in order; at least one."""
        converter = self._converter(sources)
        return ["*"] if converter is None else list(converter.target_patterns)

    @staticmethod
    def _parameters(module: ExpertsModule) -> list[str]:
        return [f"{module.name}.{name}" for name in module.parameter_names]

    def read(self, layer: int, expert: int) -> ExpertWeights:
        """Expert `expert` of MoE layer `layer`, in the checkpoint's dtype. DaliError when it does not fit."""
        module = self.modules[layer]
        try:
            return module.canonical(*(self._parameter(name, expert) for name in self._parameters(module)))
        except (ValueError, LookupError, RuntimeError, AssertionError) as error:
            raise DaliError(
                f"Expert {expert} of {module.name} in {self.checkpoint.directory} "
                f"does not fit its config ({error}).",
                "Download the model again.",
            ) from error

    def _parameter(self, parameter: str, expert: int) -> Tensor:
        """One expert of a parameter, in the parameter's own layout without the expert dimension."""
        sources = self._sources[parameter]
        if {"_blocks", "_scales"} <= sources.keys():
            blocks, scales = (
                self.checkpoint.read(sources[part][0], expert) for part in ("_blocks", "_scales")
            )
            decoded: Tensor = convert_moe_packed_tensors(blocks, scales, dtype=torch.bfloat16)[0]
            return decoded
        if list(sources) == [None]:
            return self.checkpoint.read(sources[None][0], expert)[0]
        converter = self._converter(sources)
        if converter is None:
            raise ValueError(f"{parameter} cannot be made of {', '.join(sorted(map(str, sources)))}")
        # Several parameters' experts may follow one another in one list: text's, then images'. An operation that divides it gets
        # a list of so many of the one that is asked for.
        targets = self._targets(sources)
        part = next((i for i, target in enumerate(targets) if target in parameter), 0)
        tensors: dict[str, Any] = {
            str(pattern): [self.checkpoint.read(keys[part * (len(keys) // len(targets)) + expert])]
            * len(targets)
            if pattern and "*" in pattern
            else [self.checkpoint.read(keys[0], expert)]
            for pattern, keys in sources.items()
        }
        for operation in converter.operations:
            tensors = operation.convert(
                tensors,
                source_patterns=converter.source_patterns,
                target_patterns=converter.target_patterns,
                full_layer_name=parameter,
                model=_OneExpert(self._model),
                config=self._model.config,
            )
        value = next(value for target, value in tensors.items() if target in parameter)
        result: Tensor = (value[0] if isinstance(value, list) else value)[0]
        return result
