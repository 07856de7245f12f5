"""The header of an expert store.

A store is a valid safetensors file: one uint8 tensor `layer.L.expert.E` a record, all of one size, then
`checksums` (uint64, XXH3 of each record). The JSON header is padded so that records start at a multiple of
4096. Everything follows from the metadata, so a reader rebuilds the header from it and compares bytes:
whatever differs is not a store.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from dali.kernels.activation import KINDS, Activation
from dali.kernels.expert import RECORD_ALIGNMENT, ExpertLayout, ExpertShape
from dali.kernels.formats import FORMATS

STORE_VERSION = 1
CHECKSUM_BYTES = 8


class HeaderError(ValueError):
    """The bytes are not the header of a store this version reads; str() says why."""


@dataclass(frozen=True)
class StoreHeader:
    """What a store holds: `layers` x `experts` records of one layout, from the source with `fingerprint`."""

    model: str
    fingerprint: str
    layers: int
    experts: int
    layout: ExpertLayout

    @property
    def layouts(self) -> list[ExpertLayout]:
        """Of each layer's records."""
        return [self.layout] * self.layers

    @property
    def records(self) -> int:
        return self.layers * self.experts

    @property
    def record_bytes(self) -> int:
        return self.layout.record_bytes

    @property
    def checksums_offset(self) -> int:
        """Byte offset of the checksums in the file."""
        return len(self.encode()) + self.records * self.record_bytes

    @property
    def file_bytes(self) -> int:
        return self.checksums_offset + self.records * CHECKSUM_BYTES

    def record_offset(self, index: int) -> int:
        """Byte offset of record `index` = layer * experts + expert; a multiple of 4096."""
        return len(self.encode()) + index * self.record_bytes

    def encode(self) -> bytes:
        """The file's first bytes: length, JSON, padding."""
        cached: bytes | None = self.__dict__.get("_encoded")
        if cached is None:
            cached = self._encode()
            object.__setattr__(self, "_encoded", cached)
        return cached

    def _encode(self) -> bytes:
        assert not self.layout.exceptions, "a store has one format for all matrices"
        shape = asdict(self.layout.shape)
        metadata = {
            "dali_store": str(STORE_VERSION),
            "model": self.model,
            "source": self.fingerprint,
            "layers": str(self.layers),
            "experts": str(self.experts),
            "format": self.layout.format.name,
            "shape": json.dumps(shape),
        }
        tensors: dict[str, Any] = {"__metadata__": metadata}
        size = self.record_bytes
        for index in range(self.records):
            layer, expert = divmod(index, self.experts)
            tensors[f"layer.{layer}.expert.{expert}"] = {
                "dtype": "U8",
                "shape": [size],
                "data_offsets": [index * size, (index + 1) * size],
            }
        end = self.records * size
        tensors["checksums"] = {
            "dtype": "U64",
            "shape": [self.records],
            "data_offsets": [end, end + self.records * CHECKSUM_BYTES],
        }
        text = json.dumps(tensors).encode()
        text += b" " * (-(len(text) + 8) % RECORD_ALIGNMENT)
        return len(text).to_bytes(8, "little") + text

    @classmethod
    def parse(cls, text: bytes) -> StoreHeader:
        """Parse the JSON part; HeaderError when it is not, byte for byte, what `encode` writes."""
        try:
            tensors = json.loads(text)
            metadata = tensors["__metadata__"]
            version = metadata.get("dali_store")
            if version is None:
                raise HeaderError("it is not an expert store")
            if version != str(STORE_VERSION):
                raise HeaderError(f"it has store version {version}, this dali reads version {STORE_VERSION}")
            header = cls(
                metadata["model"],
                metadata["source"],
                _size(int(metadata["layers"])),
                _size(int(metadata["experts"])),
                ExpertLayout(_shape(json.loads(metadata["shape"])), FORMATS[metadata["format"]]),
            )
            # The count bounds the work of `encode` by what was parsed.
            if len(tensors) != header.records + 2 or header.encode()[8:] != text:
                raise ValueError("not what encode writes")
        except HeaderError:
            raise
        except (ValueError, OverflowError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise HeaderError("its header is damaged") from error
        return header


def _size(value: object) -> int:
    """`value` if it is a size that can be meant; ValueError otherwise."""
    if type(value) is not int or not 0 < value < 2**31:
        raise ValueError(f"{value!r} is not a size")
    return value


def _shape(fields: dict[str, Any]) -> ExpertShape:
    """Inverse of `asdict`; ValueError for values no ExpertShape has."""
    activation = Activation(**fields.pop("activation"))
    shape = ExpertShape(activation=activation, **fields)
    numbers = isinstance(activation.alpha, int | float) and isinstance(activation.limit, int | float)
    flags = isinstance(shape.gated, bool) and isinstance(shape.biased, bool)
    if activation.kind not in KINDS or not numbers or not flags:
        raise ValueError(f"{shape} is not a shape")
    _size(shape.hidden), _size(shape.intermediate)
    return shape
