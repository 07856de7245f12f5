"""The header of an expert store.

A store is a valid safetensors file: one uint8 tensor `layer.L.expert.E` a record, all of a layer of one size, then
`checksums` (uint64, XXH3 of each record). The JSON header is padded so that records start at a multiple of
4096. Everything follows from the metadata, so a reader rebuilds the header from it and compares bytes:
whatever differs is not a store.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dali.kernels.activation import KINDS, Activation
from dali.kernels.expert import ExpertLayout, ExpertShape
from dali.kernels.formats import FORMATS
from dali.kernels.packed import RECORD_ALIGNMENT

STORE_VERSION = 1
MIXED_VERSION = 2  # of stores whose layers or matrices differ in their formats
CHECKSUM_BYTES = 8


class HeaderError(ValueError):
    """The bytes are not the header of a store this version reads; str() says why."""


@dataclass(frozen=True)
class StoreHeader:
    """What a store holds: `layers` x `experts` records, from the source with `fingerprint`. All are in `layout`, unless `mixed`
    names each layer's, of which `layout` then is the one with the largest records."""

    model: str
    fingerprint: str
    layers: int
    experts: int
    layout: ExpertLayout
    mixed: tuple[ExpertLayout, ...] = ()

    @classmethod
    def of(cls, model: str, fingerprint: str, layouts: Sequence[ExpertLayout], experts: int) -> StoreHeader:
        """The header of a store with `experts` records a layer, in that layer's of `layouts`."""
        largest = max(layouts, key=lambda layout: layout.record_bytes)
        plain = not largest.exceptions and all(layout == largest for layout in layouts)
        return cls(model, fingerprint, len(layouts), experts, largest, () if plain else tuple(layouts))

    @property
    def layouts(self) -> Sequence[ExpertLayout]:
        """Of each layer's records."""
        return self.mixed or (self.layout,) * self.layers

    @property
    def records(self) -> int:
        return self.layers * self.experts

    @property
    def record_bytes(self) -> int:
        """Bytes of the largest record."""
        return self.layout.record_bytes

    @property
    def nbytes(self) -> int:
        """Bytes of all records."""
        return self._begin(self.layers)

    def _begin(self, layer: int) -> int:
        """Bytes of all records of the layers before that one."""
        if not self.mixed:
            return layer * self.experts * self.record_bytes
        return self.experts * sum(layout.record_bytes for layout in self.mixed[:layer])

    @property
    def checksums_offset(self) -> int:
        """Byte offset of the checksums in the file."""
        return len(self.encode()) + self.nbytes

    @property
    def file_bytes(self) -> int:
        return self.checksums_offset + self.records * CHECKSUM_BYTES

    def record_offset(self, index: int) -> int:
        """Byte offset of record `index` = layer * experts + expert; a multiple of 4096."""
        layer, expert = divmod(index, self.experts)
        return len(self.encode()) + self._begin(layer) + expert * self.size_of(index)

    def size_of(self, index: int) -> int:
        """Bytes of record `index`."""
        return self.layouts[index // self.experts].record_bytes if self.mixed else self.record_bytes

    def encode(self) -> bytes:
        """The file's first bytes: length, JSON, padding."""
        cached: bytes | None = self.__dict__.get("_encoded")
        if cached is None:
            cached = self._encode()
            object.__setattr__(self, "_encoded", cached)
        return cached

    def _encode(self) -> bytes:
        assert self.mixed or not self.layout.exceptions, "formats that differ are named one by one"
        shape = asdict(self.layout.shape)
        formats = [{name: one.name for name, one in layout.formats.items()} for layout in self.mixed]
        metadata = {
            "dali_store": str(MIXED_VERSION if self.mixed else STORE_VERSION),
            "model": self.model,
            "source": self.fingerprint,
            "layers": str(self.layers),
            "experts": str(self.experts),
            "format": json.dumps(formats) if self.mixed else self.layout.format.name,
            "shape": json.dumps(shape),
        }
        tensors: dict[str, Any] = {"__metadata__": metadata}
        begin = 0
        for index in range(self.records):
            layer, expert = divmod(index, self.experts)
            size = self.size_of(index)
            tensors[f"layer.{layer}.expert.{expert}"] = {
                "dtype": "U8",
                "shape": [size],
                "data_offsets": [begin, begin + size],
            }
            begin += size
        end = begin
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
            if version not in (str(STORE_VERSION), str(MIXED_VERSION)):
                raise HeaderError(
                    f"it has store version {version}, this dali reads versions {STORE_VERSION} and {MIXED_VERSION}"
                )
            layers, experts = _size(int(metadata["layers"])), _size(int(metadata["experts"]))
            if len(tensors) != layers * experts + 2:  # before work that grows with either
                raise ValueError("not as many records as it says")
            shape = _shape(json.loads(metadata["shape"]))
            if version == str(STORE_VERSION):
                layouts = [ExpertLayout(shape, FORMATS[metadata["format"]])] * layers
            else:
                layouts = [_mixed(shape, formats) for formats in json.loads(metadata["format"])]
            header = cls.of(metadata["model"], metadata["source"], layouts, experts)
            # The count bounds the work of `encode` by what was parsed.
            if len(tensors) != header.records + 2 or header.encode()[8:] != text:
                raise ValueError("not what encode writes")
        except HeaderError:
            raise
        except (ValueError, OverflowError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise HeaderError("its header is damaged") from error
        return header


def _mixed(shape: ExpertShape, formats: dict[str, str]) -> ExpertLayout:
    """The layout of matrices in those formats, by name."""
    return ExpertLayout.mixed(shape, {name: FORMATS[formats[name]] for name in shape.matrices})


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
