"""Reading GGUF headers: metadata and the table of tensors, nothing beyond.

Little-endian, versions 2 and 3 (the format's specification: ggml's docs/gguf.md). A header is untrusted: each
count, length and offset is held against the bytes that are there before it is used, and every tensor must lie
inside its file, apart from the others. Errors name the key or the tensor, and the file.
"""

from __future__ import annotations

import math
import mmap
import os
import re
import struct
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from dali.errors import DaliError, unreadable
from dali.store.gguf.blocks import BLOCK_TYPES, BlockType, unsupported
from dali.store.gguf.quantization import quantization_in

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST_DIMENSIONS = 4
MOST_FILES = 10_000  # of a split model
LONGEST_NAME = 2**16
LONGEST_ARRAY = 2**24
DEEPEST_ARRAY = 4  # arrays in arrays, which nothing that dali reads has
STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
READERS = {code: struct.Struct(f"<{code}") for code in SCALARS.values()}
SPLIT = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)

Metadata = dict[str, Any]


@dataclass(frozen=True)
class GgufTensor:
    """One tensor: where its blocks lie, as rows of `shape[-1]` values each. Sizes in elements, offset in bytes."""

    name: str
    path: Path
    type: BlockType
    shape: tuple[int, ...]  # slowest dimension first, as torch has it
    offset: int

    @property
    def row_bytes(self) -> int:
        return self.type.row_bytes(self.shape[-1])

    @property
    def nbytes(self) -> int:
        return prod(self.shape[:-1]) * self.row_bytes


@dataclass(frozen=True)
class Gguf:
    """The header of a model: of one file, or of all files of a split one."""

    path: Path
    metadata: Metadata  # of the first file
    tensors: dict[str, GgufTensor]
    ignored: dict[str, str] = field(default_factory=dict)
    """Metadata that says what cannot be meant, and that a model does without: key -> what it is."""
    refusal: DaliError | None = None  # where `tensors` lacks some, as their types are not known

    def check_types(self) -> None:
        """DaliError for tensors in a type that nobody here reads. Not while reading: which model it is, is the worse news."""
        if self.refusal is not None:
            raise self.refusal

    def get(self, key: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        """A metadata value of type `kind`, or `default` where there is none. DaliError for another type, NaN or infinity."""
        value = self.metadata.get(key)
        if value is None:
            return default
        if wrong := _not_of(kind, value):
            raise damaged(self.path, f"its key {key} {wrong}")
        return value

    def optional(self, key: str, kind: type, default: Any = None) -> Any:
        """As `get`, of what a model does without: in place of an error `default`, and the key is among the `ignored`."""
        value = self.metadata.get(key)
        if value is None:
            return default
        if wrong := _not_of(kind, value):
            self.ignored[key] = wrong
            return default
        return value

    def strings(self, key: str) -> list[str]:
        """A row of texts that must be there. DaliError when it is not, or holds something else."""
        values: list[str] = self.require(key, list)
        if not all(isinstance(value, str) for value in values):
            raise damaged(self.path, f"its key {key} holds something else than UTF-8 text")
        return values

    def require(self, key: str, kind: type | tuple[type, ...]) -> Any:
        """A metadata value that must be there. DaliError when it is not, or has another type."""
        if key not in self.metadata:
            raise damaged(self.path, f"it lacks the key {key}")
        return self.get(key, kind)


def _not_of(kind: type | tuple[type, ...], value: Any) -> str | None:
    """What `value` is, where that is not of type `kind`, or no finite number; None where it is."""
    wanted = kind if isinstance(kind, tuple) else (kind,)
    odd = (isinstance(value, bool) and bool not in wanted) or value != value or value in (math.inf, -math.inf)
    if isinstance(value, wanted) and not odd:
        return None
    return f"is {value!r:.60}, not {' or '.join(one.__name__ for one in wanted)}"


class Contents(NamedTuple):
    """What one file says."""

    metadata: Metadata
    tensors: list[GgufTensor]
    refusal: DaliError | None


def kind_of(path: Path) -> str:
    """What kind of file people call it: "the Q2_K_XL file", by its name; "the GGUF file" where that does not say."""
    return f"the {quantization_in(path.name) or 'GGUF'} file"


def damaged(path: Path, why: str) -> DaliError:
    return DaliError(f"Cannot use the GGUF file {path}: {why}.", "Download it again, or pick another.")


def read_gguf(path: Path) -> Gguf:
    """The header of `path`, and of its siblings if it is one of a split model's files (any of them).

    DaliError names what is wrong, and where.
    """
    metadata, tensors, refusal = _read_file(path)
    count = metadata.get("split.count", 0)
    if type(count) is not int or not 0 <= count <= MOST_FILES:
        raise damaged(path, f"its key split.count is {count!r}")
    if count > 1:
        return _read_splits(path, count)
    return Gguf(path, metadata, _unique(tensors), refusal=refusal)


def split_files(path: Path) -> list[Path]:
    """All files of the model that `path` belongs to, by its name."""
    match = SPLIT.fullmatch(path.name)
    if match is None or not 1 <= int(match["number"]) <= int(match["count"]):  # not one of its own model's
        return [path]
    stem, count = match["stem"], int(match["count"])
    return [path.with_name(f"{stem}-{i + 1:05}-of-{count:05}.gguf") for i in range(min(count, MOST_FILES))]


def _read_splits(path: Path, count: int) -> Gguf:
    files = split_files(path)
    if len(files) != count:
        raise damaged(
            path, f"it is one of {count} files, and its name does not end in -00001-of-{count:05}.gguf"
        )
    first: Metadata = {}
    everything: list[GgufTensor] = []
    refusals: list[DaliError] = []
    for number, file in enumerate(files):
        if not file.is_file():
            raise DaliError(
                f"{path} is one of {count} files, and {file.name} is missing beside it.",
                "Download all files of the model into one folder.",
            )
        metadata, tensors, refusal = _read_file(file)
        if metadata.get("split.no") != number or metadata.get("split.count") != count:
            said = f"{metadata.get('split.no')!r} of {metadata.get('split.count')!r}"
            raise damaged(file, f"its keys split.no and split.count say file {said}, not {number} of {count}")
        first = first or metadata
        everything += tensors
        refusals += [] if refusal is None else [refusal]
    total = first.get("split.tensors.count", len(everything))
    if total != len(everything) and not refusals:
        raise damaged(
            files[0],
            f"its key split.tensors.count is {total!r}, and all files have {len(everything)} tensors",
        )
    return Gguf(files[0], first, _unique(everything), refusal=next(iter(refusals), None))


def _unique(tensors: list[GgufTensor]) -> dict[str, GgufTensor]:
    by_name: dict[str, GgufTensor] = {}
    for tensor in tensors:
        if tensor.name in by_name:
            raise damaged(tensor.path, f"the tensor {tensor.name} is there twice")
        by_name[tensor.name] = tensor
    return by_name


def _read_file(path: Path) -> Contents:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < 24:
                raise damaged(path, "it is too short to be one")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Header(path, data).read()
    except OSError as error:
        raise unreadable(path, error) from error


class _Header:
    """A cursor over a file's bytes that never leaves them."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.position = 0
        self.at = "its header"  # what is being read, for errors
        self.refusal: DaliError | None = None

    def fail(self, why: str) -> DaliError:
        return damaged(self.path, why)

    def _take(self, size: int) -> int:
        """The position of the next `size` bytes, which are there."""
        begin = self.position
        if size > len(self.data) - begin:
            raise self.fail(f"the file ends inside {self.at}")
        self.position = begin + size
        return begin

    def scalar(self, code: str) -> Any:
        reader = READERS[code]
        return reader.unpack_from(self.data, self._take(reader.size))[0]

    def name(self) -> str:
        length = self.scalar("Q")
        if length > LONGEST_NAME:
            raise self.fail(f"{self.at} has a name of {length} bytes")
        begin = self._take(length)
        try:
            return self.data[begin : begin + length].decode()
        except UnicodeDecodeError:
            raise self.fail(f"{self.at} is not UTF-8") from None

    def text(self) -> str | bytes:
        """What is not UTF-8 stays bytes, which is an error for those alone who ask for the text."""
        length = self.scalar("Q")
        begin = self._take(length)
        raw = self.data[begin : begin + length]
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return raw

    def read(self) -> Contents:
        if self.data[self._take(4) : 4] != MAGIC:
            raise self.fail("it does not start with GGUF")
        version = self.scalar("I")
        if version not in VERSIONS:
            known = "it is big-endian" if version & 0xFFFF == 0 else f"it has version {version}"
            raise self.fail(f"{known}; dali reads little-endian files of version 2 and 3")
        tensors, keys = self.scalar("Q"), self.scalar("Q")
        # The shortest key takes 8 + 4 + 1 bytes, the shortest tensor 8 + 4 + 8 + 4 + 8.
        if keys * 13 + tensors * 32 > len(self.data):
            raise self.fail(f"it has {len(self.data)} bytes, and claims {keys} keys and {tensors} tensors")
        metadata: Metadata = {}
        for index in range(keys):
            self.at = f"key {index}"
            key = self.name()
            self.at = f"its key {key[:100]}"
            if key in metadata:
                raise self.fail(f"{self.at} is there twice")
            metadata[key] = self._value(self.scalar("I"))
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 8 or alignment & (alignment - 1):
            raise self.fail(f"its key general.alignment is {alignment!r}, not a power of two from 8")
        found = [self._tensor(index, alignment) for index in range(tensors)]
        table = [tensor for tensor in found if tensor is not None]
        return Contents(
            metadata, self._place(table, -(-self.position // alignment) * alignment), self.refusal
        )

    def _value(self, kind: int, depth: int = 0) -> Any:
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            if kind not in SCALARS:
                raise self.fail(f"{self.at} has the unknown type {kind}")
            return self.scalar(SCALARS[kind])
        if depth == DEEPEST_ARRAY:
            raise self.fail(f"{self.at} has arrays in arrays, more than {DEEPEST_ARRAY} deep")
        kind, count = self.scalar("I"), self.scalar("Q")
        if count > LONGEST_ARRAY:
            raise self.fail(f"{self.at} is an array of {count} values")
        if kind in (STRING, ARRAY):
            return [self._value(kind, depth + 1) for _ in range(count)]
        if kind not in SCALARS:
            raise self.fail(f"{self.at} is an array of the unknown type {kind}")
        begin = self._take(count * READERS[SCALARS[kind]].size)
        return list(struct.unpack_from(f"<{count}{SCALARS[kind]}", self.data, begin))

    def _tensor(self, index: int, alignment: int) -> GgufTensor | None:
        """One entry of the table; its offset still counts from the start of the data. None for one in a type that
        nobody reads."""
        self.at = f"tensor {index}"
        name = self.name()
        self.at = f"the tensor {name[:100]}"
        dimensions = self.scalar("I")
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise self.fail(f"{self.at} has {dimensions} dimensions")
        shape = tuple(self.scalar("Q") for _ in range(dimensions))[::-1]
        number, offset = self.scalar("I"), self.scalar("Q")
        if number not in BLOCK_TYPES:
            what, way_out = unsupported(number)
            self.refusal = self.refusal or DaliError(
                f"Cannot use {kind_of(self.path)} {self.path}: {self.at} is in {what}.", way_out
            )
            return None
        type = BLOCK_TYPES[number]
        if min(shape) < 1 or prod(shape) >= 2**63:
            raise self.fail(f"{self.at} has the impossible shape {list(shape)}")
        if shape[-1] % type.columns:
            raise self.fail(
                f"{self.at} has rows of {shape[-1]} values; {type.name} needs multiples of {type.columns}"
            )
        if offset % alignment:
            raise self.fail(f"{self.at} has the offset {offset}, which is no multiple of {alignment}")
        return GgufTensor(name, self.path, type, shape, offset)

    def _place(self, tensors: list[GgufTensor], start: int) -> list[GgufTensor]:
        """Tensors with offsets from the start of the file, inside it and apart from each other."""
        placed = [
            GgufTensor(tensor.name, tensor.path, tensor.type, tensor.shape, start + tensor.offset)
            for tensor in tensors
        ]
        in_order = sorted(placed, key=lambda tensor: tensor.offset)
        for tensor, after in pairwise(in_order):
            if tensor.offset + tensor.nbytes > after.offset:
                raise self.fail(f"the tensors {tensor.name[:100]} and {after.name[:100]} overlap")
        for tensor in in_order[-1:]:
            end = tensor.offset + tensor.nbytes
            if end > len(self.data):
                raise self.fail(
                    f"the tensor {tensor.name[:100]} ends at byte {end}, the file has {len(self.data)}"
                )
        return placed
