"""GGUF headers: what is read, and that whatever is wrong is named before anything is touched beyond the file."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dali.errors import DaliError
from dali.store.gguf.blocks import BLOCK_TYPES
from dali.store.gguf.header import read_gguf, split_files
from gguf_bytes import ARRAY, BOOL, F32, STRING, U8, U32, U64, gguf, key, tensor, text, write

BIG = 2**63
TWO = (tensor("a", (2, 4)), tensor("b", (8,), 0, 32))


def test_metadata_and_tensors(tmp_path):
    keys = (
        key("s", STRING, "héllo"),
        key("n", U32, 7),
        key("f", F32, 0.5),
        key("yes", BOOL, True),
        key("words", ARRAY, (STRING, 2, text("a") + text(""))),
        key("numbers", ARRAY, (U8, 3, b"\1\2\3")),
        key("rows", ARRAY, (ARRAY, 2, struct.pack("<IQB", U8, 1, 7) + struct.pack("<IQ", U8, 0))),
        key("latin", STRING, b"\xe9"),
    )
    data = np.arange(16, dtype="<f4").tobytes()
    path = write(tmp_path / "m.gguf", gguf(keys, TWO, data))
    model = read_gguf(path)
    assert model.metadata == {
        "s": "héllo",
        "n": 7,
        "f": 0.5,
        "yes": True,
        "words": ["a", ""],
        "numbers": [1, 2, 3],
        "rows": [[7], []],
        "latin": b"\xe9",
    }
    a, b = model.tensors.values()
    assert (a.name, a.shape, a.type.name, a.nbytes, b.shape) == ("a", (2, 4), "F32", 32, (8,))
    assert b.offset == a.offset + 32
    assert path.read_bytes()[a.offset :] == data


def test_other_alignments_and_version_2(tmp_path):
    keys = (key("general.alignment", U32, 64),)
    content = gguf(keys, (tensor("a", (1,)), tensor("b", (1,), 0, 64)), b"\0" * 68, version=2, alignment=64)
    tensors = read_gguf(write(tmp_path / "m.gguf", content)).tensors
    assert [t.offset % 64 for t in tensors.values()] == [0, 0]


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    def refuse(path, *arguments):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DaliError, match=r"^Cannot read .*m\.gguf \(Permission denied\)\.\nMake it readable"):
        read_gguf(tmp_path / "m.gguf")


def test_values_of_the_wrong_type(tmp_path):
    model = read_gguf(write(tmp_path / "m.gguf", gguf((key("n", STRING, "7"), key("b", BOOL, True)))))
    assert model.get("absent", int, 3) == 3
    with pytest.raises(DaliError, match=r"m\.gguf: its key n is '7', not int"):
        model.get("n", int)
    assert model.optional("n", int, 3) == model.optional("absent", int, 3) == 3
    assert (model.optional("n", str), model.optional("b", bool)) == ("7", True)
    assert model.ignored == {"n": "is '7', not int"}
    with pytest.raises(DaliError, match="its key b is True, not int"):
        model.require("b", int)
    with pytest.raises(DaliError, match=r"it lacks the key absent"):
        model.require("absent", int)


HOSTILE = {
    "empty": (b"", "too short"),
    "magic": (b"GGML" + b"\0" * 40, "does not start with GGUF"),
    "version 1": (gguf(version=1), "has version 1"),
    "big-endian": (gguf(version=3 << 24), "big-endian"),
    "tensor count": (gguf(counts=(2**61, 0)), "claims 0 keys and 2305843009213693952 tensors"),
    "key count": (gguf(counts=(0, 2**64 - 1)), "claims 18446744073709551615 keys"),
    "a key too many": (gguf((key("n", U32, 1), key("m", U32, 1)), counts=(0, 3)), "inside key 2|ends inside"),
    "key length": (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, BIG) + b"\0" * 32, "key 0 has a name of 922"),
    "string length": (
        gguf((text("s") + struct.pack("<IQ", STRING, BIG),)) + b"\0" * 99,
        "ends inside its key s",
    ),
    "key not UTF-8": (gguf((key(b"\xff\xfe", U32, 1),)), "key 0 is not UTF-8"),
    "key type": (gguf((text("x") + struct.pack("<I", 13) + b"\0" * 8,)), "its key x has the unknown type 13"),
    "array type": (
        gguf((key("x", ARRAY, (99, 1, b"\0" * 8)),)),
        "its key x is an array of the unknown type 99",
    ),
    "arrays in arrays": (
        gguf((key("x", ARRAY, (ARRAY, 1, struct.pack("<IQ", ARRAY, 1) * 9)),)),
        "its key x has arrays in arrays, more than 4 deep",
    ),
    "array count": (
        gguf((key("x", ARRAY, (U8, 2**40, b"\0" * 8)),)),
        "its key x is an array of 1099511627776",
    ),
    "array past the end": (gguf((key("x", ARRAY, (U64, 2**20, b"\0" * 8)),)), "ends inside its key x"),
    "strings past the end": (gguf((key("x", ARRAY, (STRING, 9, text("a"))),)), "ends inside its key x"),
    "key twice": (gguf((key("n", U32, 1), key("n", U32, 2))), "its key n is there twice"),
    "alignment": (gguf((key("general.alignment", U32, 48),)), "general.alignment is 48"),
    "alignment type": (gguf((key("general.alignment", STRING, "x"),)), "general.alignment is 'x'"),
    "no dimensions": (gguf((), (tensor("t", ()),)) + b"\0" * 64, "the tensor t has 0 dimensions"),
    "dimensions": (gguf((), (tensor("t", (1,) * 5),)), "the tensor t has 5 dimensions"),
    "zero rows": (gguf((), (tensor("t", (0, 4)),)), r"the tensor t has the impossible shape \[0, 4\]"),
    "overflow": (gguf((), (tensor("t", (2**33, 2**33)),)), "the tensor t has the impossible shape"),
    "rows of a block": (gguf((), (tensor("t", (2, 40), 8),), b"\0" * 99), "rows of 40 values; Q8_0 needs"),
    "newer type": (
        gguf((), (tensor("t", (2, 32), 43),)),
        r"the tensor t is in a type newer than this dali knows, 43\.\nUpdate dali, or pick a file in Q4_K_M",
    ),
    "unsupported type": (
        gguf((), (tensor("t", (2, 256), 15),)),
        r"the tensor t is in Q8_K\.\nPick a file in one of the common quantizations",
    ),
    "removed type": (
        gguf((), (tensor("t", (2, 256), 31),)),
        r"the tensor t is in Q4_0_4_4, which llama\.cpp has given up\.\nPick a newer file",
    ),
    "offset": (gguf((), (tensor("t", (4,), 0, 4),), b"\0" * 64), "the tensor t has the offset 4"),
    "past the end": (
        gguf((), (tensor("t", (9,)),), b"\0" * 32),
        "the tensor t ends at byte 100, the file has 96",
    ),
    "far past the end": (
        gguf((), (tensor("t", (4,), 0, 2**63),), b"\0" * 32),
        "the tensor t ends at byte 922",
    ),
    "overlap": (
        gguf((), (tensor("t", (9,)), tensor("u", (4,), 0, 32)), b"\0" * 64),
        "tensors t and u overlap",
    ),
    "same place": (gguf((), (tensor("t", (4,)), tensor("u", (4,))), b"\0" * 64), "tensors t and u overlap"),
    "tensor twice": (
        gguf((), (tensor("t", (4,)), tensor("t", (4,), 0, 32)), b"\0" * 64),
        "the tensor t is there twice",
    ),
    "split count": (gguf((key("split.count", U32, 10**6),)), "its key split.count is 1000000"),
    "split without a name": (gguf((key("split.count", U32, 2),)), "one of 2 files, and its name"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers(tmp_path, name):
    content, problem = HOSTILE[name]
    path = write(tmp_path / "m.gguf", content)
    with pytest.raises(DaliError, match=problem) as error:
        read_gguf(path).check_types()
    assert str(path) in error.value.problem


def test_cut_anywhere(tmp_path):
    keys = (key("general.alignment", U32, 32), key("words", ARRAY, (STRING, 2, text("a") + text("b"))))
    content = gguf(keys, TWO, b"\0" * 64)
    path = write(tmp_path / "m.gguf", content)
    read_gguf(path)
    for length in range(len(content)):
        write(path, content[:length])
        with pytest.raises(DaliError):
            read_gguf(path)


@pytest.mark.parametrize("number", BLOCK_TYPES)
def test_rows_are_whole_blocks_and_all_there(tmp_path, number):
    type = BLOCK_TYPES[number]
    rows, columns = 3, 2 * type.columns
    size = 2 * rows * type.fields.itemsize
    path = write(tmp_path / "m.gguf", gguf((), (tensor("t", (rows, columns), number),), b"\0" * size))
    (read,) = read_gguf(path).tensors.values()
    assert (read.type, read.shape, read.nbytes) == (type, (rows, columns), size)
    write(path, path.read_bytes()[:-1])
    with pytest.raises(DaliError, match=rf"the tensor t ends at byte {read.offset + size}, the file has"):
        read_gguf(path)
    for odd in {columns - 1, columns + 1, columns + type.columns // 2} if type.columns > 1 else ():
        write(path, gguf((), (tensor("t", (rows, odd), number),), b"\0" * 2 * size))
        with pytest.raises(
            DaliError, match=f"rows of {odd} values; {type.name} needs multiples of {type.columns}"
        ):
            read_gguf(path)


@given(
    numbers=st.lists(st.integers(0, 50), min_size=1, max_size=4),
    columns=st.sampled_from([1, 32, 64, 256, 288, 2**40]),
    missing=st.integers(0, 300),
)
@settings(max_examples=100, deadline=None)
def test_any_type_over_any_row_is_refused_or_inside_the_file(tmp_path_factory, numbers, columns, missing):
    entries, end = [], 0
    for place, number in enumerate(numbers):
        entries.append(tensor(f"t{place}", (2, columns), number, end))
        known = BLOCK_TYPES.get(number)
        end += -(-2 * known.row_bytes(columns) // 32) * 32 if known else 32
    content = gguf((), tuple(entries), b"\0" * max(min(end, 2**14) - missing, 0))
    path = write(tmp_path_factory.mktemp("types") / "m.gguf", content)
    try:
        model = read_gguf(path)
    except DaliError:
        return
    assert all(t.offset + t.nbytes <= len(content) for t in model.tensors.values())
    assert all(t.shape[-1] % t.type.columns == 0 for t in model.tensors.values())


@given(
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=4),
    cut=st.integers(0, 40),
)
@settings(max_examples=300, deadline=None)
def test_flipped_bits_are_refused_or_harmless(tmp_path_factory, flips, cut):
    keys = (key("split.count", U32, 0), key("words", ARRAY, (STRING, 2, text("a") + text("b"))))
    content = bytearray(gguf(keys, TWO, b"\0" * 64))
    for where, bits in flips:
        content[where % len(content)] ^= bits
    path = write(tmp_path_factory.mktemp("flipped") / "m.gguf", bytes(content[: len(content) - cut]))
    try:
        model = read_gguf(path)
    except DaliError:
        return
    size = path.stat().st_size
    assert all(t.offset + t.nbytes <= size for t in model.tensors.values())


def split(tmp_path, numbers=(0, 1), count=2, total=2):
    for place, number in enumerate(numbers):
        keys = [key("split.no", U32, number), key("split.count", U32, count)]
        if place == 0:
            keys += [key("split.tensors.count", U32, total), key("general.name", STRING, "whole")]
        content = gguf(tuple(keys), (tensor(f"t{place}", (4,)),), b"\0" * 16)
        write(tmp_path / f"m-{place + 1:05}-of-{len(numbers):05}.gguf", content)
    return tmp_path / f"m-00001-of-{len(numbers):05}.gguf"


def test_split_files_are_one_model(tmp_path):
    first = split(tmp_path)
    assert split_files(first) == sorted(tmp_path.iterdir())
    for path in split_files(first):  # whichever is named
        model = read_gguf(path)
        assert (model.path, model.metadata["general.name"]) == (first, "whole")
        assert {t.name: t.path.name for t in model.tensors.values()} == {
            "t0": "m-00001-of-00002.gguf",
            "t1": "m-00002-of-00002.gguf",
        }


def test_split_files_that_do_not_belong_together(tmp_path):
    with pytest.raises(DaliError, match=r"m-00002-of-00002.gguf.*say file 0 of 2, not 1 of 2"):
        read_gguf(split(tmp_path, numbers=(0, 0)))  # a circle
    with pytest.raises(DaliError, match=r"split.tensors.count is 3, and all files have 2"):
        read_gguf(split(tmp_path, total=3))
    with pytest.raises(DaliError, match="it is one of 3 files, and its name"):
        read_gguf(split(tmp_path, count=3))
    first = split(tmp_path)
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(DaliError, match=r"m-00002-of-00002.gguf is missing beside it"):
        read_gguf(first)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DaliError, match="No such file"):
        read_gguf(tmp_path / "absent.gguf")
    with pytest.raises(DaliError, match=r"directory|too short"):
        read_gguf(tmp_path)
