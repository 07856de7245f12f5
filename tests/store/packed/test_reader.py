"""Reading a store: what the safetensors library sees too, and every kind of damage."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from dali.errors import DaliError
from dali.kernels.expert import ExpertLayout, ExpertShape, ExpertWeights
from dali.kernels.formats import FORMATS
from dali.kernels.packing import QUANTIZERS
from dali.store.arena import Arena
from dali.store.packed.builder import build
from dali.store.packed.reader import MAX_HEADER_BYTES, StoreReader
from tiny_stores import RandomExperts, expected_record, header, silent


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("store") / "w8.safetensors"
    build(path, header(), RandomExperts(), silent())
    return path.read_bytes()


@pytest.fixture
def store(content, tmp_path):
    path = tmp_path / "w8.safetensors"
    path.write_bytes(content)
    return path


def open_error(path) -> str:
    with pytest.raises(DaliError) as error, StoreReader(path):
        pass
    assert str(path) in error.value.problem
    return error.value.problem


@pytest.mark.parametrize("format", ["f32", "f16", "bf16", *QUANTIZERS])
def test_every_record_is_what_was_packed_and_what_safetensors_reads(tmp_path, format):
    path, described = (
        tmp_path / "store.safetensors",
        header(layout=ExpertLayout(header().layout.shape, FORMATS[format])),
    )
    build(path, described, RandomExperts(), silent())
    told = []
    with StoreReader(path) as reader, safe_open(path, framework="pt") as plain:
        assert reader.header == described
        arena = reader.read_all(told.append)
        assert set(plain.keys()) == {f"layer.{i}.expert.{j}" for i in range(2) for j in range(3)} | {
            "checksums"
        }
        for index in range(6):
            layer, expert = divmod(index, 3)
            expected = expected_record(layer, expert, described.layout)
            assert torch.equal(arena[index], expected)
            assert torch.equal(plain.get_tensor(f"layer.{layer}.expert.{expert}"), expected)
        metadata = plain.metadata()
    assert metadata["format"] == format
    assert metadata["source"] == "f1"
    assert told == [described.record_bytes] * 6


def test_truncated_anywhere(store, content):
    lengths = {0, 1, 7, 8, 9, 100, 4095, 4096, 4097, len(content) - 1, len(content) - 8, len(content) - 9}
    for length in sorted(lengths | set(range(0, len(content), 1997))):
        os.truncate(store, 0)
        store.write_bytes(content[:length])
        open_error(store)


def test_bytes_after_the_end(store):
    with store.open("ab") as file:
        file.write(b"\0")
    assert "instead of" in open_error(store)


def test_each_flipped_bit_of_the_header_is_noticed(store, content):
    """Refused, or (in the model's name, say) read as another store's header, which ensure_store replaces."""
    refused, end = 0, header().record_offset(0)
    with store.open("r+b") as file:
        for at in range(end):
            file.seek(at)
            file.write(bytes([content[at] ^ 1 << at % 8]))
            file.flush()
            try:
                with StoreReader(store) as reader:
                    assert reader.header != header()
            except DaliError:
                refused += 1
            file.seek(at)
            file.write(content[at : at + 1])
    assert end - 30 < refused < end


@pytest.mark.parametrize("index", range(6))
@pytest.mark.parametrize("where", [0, 700, -1])
def test_a_flipped_bit_in_a_record_names_its_expert(store, content, index, where):
    damaged = bytearray(content)
    damaged[header().record_offset(index) + where % header().record_bytes] ^= 16
    store.write_bytes(damaged)
    with StoreReader(store) as reader:
        with pytest.raises(
            DaliError, match=rf"expert {index % 3} of MoE layer {index // 3} fails its checksum"
        ):
            reader.read_all()
        arena = Arena(6, header().record_bytes)
        for other in set(range(6)) - {index}:
            reader.read(other, arena[other])


def test_a_flipped_bit_in_the_checksums(store, content):
    damaged = bytearray(content)
    damaged[-8] ^= 1
    store.write_bytes(damaged)
    with StoreReader(store) as reader, pytest.raises(DaliError, match="expert 2 of MoE layer 1"):
        reader.read_all()


def test_a_store_that_shrinks_while_it_is_open(store):
    with StoreReader(store) as reader:
        os.truncate(store, header().record_offset(4) + 4096)
        with pytest.raises(DaliError, match="ends inside record 4"):
            reader.read(4, Arena(1, header().record_bytes)[0])


def test_a_disk_that_fails_to_read(store, monkeypatch):
    def fail(*args: object) -> int:
        raise OSError(5, "Input/output error")

    with StoreReader(store) as reader:
        monkeypatch.setattr(os, "preadv", fail)
        with pytest.raises(DaliError, match=r"record 0 cannot be read \(Input/output error"):
            reader.read(0, Arena(1, header().record_bytes)[0])


def test_a_file_system_without_direct_reads(store, monkeypatch):
    plain_open = os.open

    def refuse(path, flags, *rest):
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return plain_open(path, flags, *rest)

    monkeypatch.setattr(os, "open", refuse)
    with StoreReader(store) as reader:
        assert torch.equal(reader.read_all()[5], expected_record(1, 2, header().layout))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 8,
        b"\0" * 100_000,
        b"\xff" * 100_000,
        (2**63).to_bytes(8, "little") + b"{}",
        (MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{}",
        (100_000).to_bytes(8, "little") + b"[" * 100_000,
        (2000).to_bytes(8, "little") + b'{"__metadata__": {"dali_store": "1", "layers": "',
    ],
    ids=["empty", "zeros", "more zeros", "ones", "2^63", "over the limit", "{}", "deep", "cut"],
)
def test_files_that_are_no_store(tmp_path, content):
    path = tmp_path / "w8.safetensors"
    path.write_bytes(content)
    open_error(path)


@given(content=st.binary(max_size=300))
@settings(deadline=None, max_examples=50)
def test_garbage(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "garbage"
    path.write_bytes(content)
    open_error(path)


def test_a_store_of_another_version(store, content):
    store.write_bytes(content.replace(b'"dali_store": "1"', b'"dali_store": "7"'))
    assert "store version 7, this dali reads versions 1 and 2" in open_error(store)


def test_a_missing_file_and_a_directory(tmp_path):
    assert "No such file" in open_error(tmp_path / "none")
    assert "directory" in open_error(tmp_path)


def test_nothing_stays_open(store, content):
    before = len(os.listdir("/proc/self/fd"))
    with StoreReader(store) as reader:
        reader.read_all()
    store.write_bytes(content[:-1])
    open_error(store)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_shape_of_odd_sizes(tmp_path):
    """Records whose last page is partly padding, biases included."""
    shape = ExpertShape(33, 17, header().layout.shape.activation, gated=False, biased=True)
    described = header(layout=ExpertLayout(shape, FORMATS["w4"]))

    class Biased:
        def read(self, layer: int, expert: int) -> ExpertWeights:
            torch.manual_seed(layer * 10 + expert)
            up, down = torch.randn(17, 33), torch.randn(33, 17)
            return ExpertWeights(None, up, down, None, torch.randn(17), torch.randn(33))

    build(tmp_path / "s", described, Biased(), silent())
    with StoreReader(tmp_path / "s") as reader:
        arena = reader.read_all()
    torch.testing.assert_close(
        described.layout.unpack(arena[4]).down_bias, Biased().read(1, 1).down_bias, rtol=0, atol=0
    )
