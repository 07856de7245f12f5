"""Store headers: exact both ways, readable by the safetensors library, and hostile ones."""

from __future__ import annotations

import json
import struct
from dataclasses import replace

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from dali.kernels.activation import KINDS, Activation
from dali.kernels.expert import ExpertLayout, ExpertShape
from dali.kernels.formats import FORMATS
from dali.store.packed.header import HeaderError, StoreHeader
from tiny_stores import SHAPE, header

headers = st.builds(
    StoreHeader,
    model=st.text(max_size=20),
    fingerprint=st.text(max_size=20),
    layers=st.integers(1, 6),
    experts=st.integers(1, 40),
    layout=st.builds(
        ExpertLayout,
        st.builds(
            ExpertShape,
            hidden=st.integers(1, 9000),
            intermediate=st.integers(1, 9000),
            activation=st.builds(Activation, st.sampled_from(KINDS), st.floats(0, 9), st.floats(0, 9)),
            gated=st.booleans(),
            biased=st.booleans(),
        ),
        st.sampled_from(list(FORMATS.values())),
    ),
)


@given(header=headers)
@settings(deadline=None, max_examples=60)
def test_parse_is_the_inverse_of_encode(header):
    encoded = header.encode()
    again = StoreHeader.parse(encoded[8:])
    assert again == header
    assert again.encode() == encoded
    assert len(encoded) % 4096 == 0
    assert struct.unpack("<Q", encoded[:8]) == (len(encoded) - 8,)


def test_offsets_follow_from_the_json():
    """As the safetensors format defines it: data_offsets count from the end of the JSON."""
    h = header()
    encoded = h.encode()
    tensors = json.loads(encoded[8:])
    for index in range(6):
        entry = tensors[f"layer.{index // 3}.expert.{index % 3}"]
        assert entry["dtype"] == "U8"
        assert entry["shape"] == [h.record_bytes]
        assert len(encoded) + entry["data_offsets"][0] == h.record_offset(index)
        assert h.record_offset(index) % 4096 == 0
    assert len(encoded) + tensors["checksums"]["data_offsets"][0] == h.checksums_offset
    assert len(encoded) + tensors["checksums"]["data_offsets"][1] == h.file_bytes


def mutated(**metadata: object) -> bytes:
    """The JSON of a header with other metadata, the rest as it should be for the right one."""
    tensors = json.loads(header().encode()[8:])
    tensors["__metadata__"] |= metadata
    return json.dumps(tensors).encode()


def shape_text(**changes: object) -> str:
    return json.dumps(json.loads(json.loads(header().encode()[8:])["__metadata__"]["shape"]) | changes)


def with_shape(**changes: object) -> bytes:
    """Consistent in every byte: what `encode` itself writes for a shape that no expert has."""
    return header(layout=ExpertLayout(replace(SHAPE, **changes), FORMATS["w8"])).encode()[8:]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"3",
        b'{"__metadata__": 3}',
        b'{"__metadata__": []}',
        b'{"__metadata__": {"dali_store": "1"}}',
        b"\xff\xfe\x00",
        b"[" * 200_000,
        b'{"__metadata__": ' + b'{"a": ' * 100_000,
        mutated(layers="1e9"),
        mutated(layers="-2", experts="-3"),
        mutated(layers="0"),
        mutated(layers="9" * 5000),
        mutated(layers="1000000000", experts="1000000000"),
        mutated(layers="2147483647", experts="1"),
        mutated(layers=None),
        mutated(layers=2),
        mutated(layers=[2]),
        mutated(experts="4"),
        mutated(experts=" 3"),
        mutated(format="w5"),
        mutated(format=["w8"]),
        mutated(format="w4"),
        mutated(model=None),
        mutated(shape=None),
        mutated(shape="{}"),
        mutated(shape="[]"),
        mutated(shape="[" * 200_000),
        mutated(shape=shape_text(hidden="64")),
        mutated(shape=shape_text(hidden=1e400)),
        mutated(shape=shape_text(hidden=10**4000)),
        mutated(shape=shape_text(activation=None)),
        mutated(shape=shape_text(activation={"kind": "silu", "shell": "sh"})),
        mutated(shape=shape_text(depth=3)),
        mutated(extra="x"),
        header(layers=-2, experts=-3).encode()[8:],
        mutated(layers="2.0"),
        with_shape(hidden=0),
        with_shape(hidden=-64),
        with_shape(hidden=True),
        with_shape(intermediate=0),
        with_shape(intermediate=2**40),
        with_shape(gated=1),
        with_shape(biased=0),
        with_shape(activation=Activation("mish")),
        with_shape(activation=Activation("silu", alpha="x")),
        header().encode()[8:] + b" ",
        header().encode()[8:-1],
        header().encode()[8:].replace(b'"U8"', b'"I8"', 1),
        header().encode()[8:].replace(b'": ', b'":', 1) + b" ",
    ],
)
def test_hostile_headers_are_refused(text):
    with pytest.raises(HeaderError):
        StoreHeader.parse(text)


def test_the_reason_names_what_it_is():
    with pytest.raises(HeaderError, match="not an expert store"):
        StoreHeader.parse(b'{"__metadata__": {"format": "pt"}}')
    with pytest.raises(HeaderError, match="store version 7, this dali reads versions 1 and 2"):
        StoreHeader.parse(mutated(dali_store="7"))


@given(text=st.binary(max_size=200))
@settings(deadline=None, max_examples=100)
def test_garbage_is_refused(text):
    with pytest.raises(HeaderError):
        StoreHeader.parse(text)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=5,
    ),
    st.sampled_from(["dali_store", "model", "source", "layers", "experts", "format", "shape"]),
)
@example(float("inf"), "layers")  # which JSON, as Python reads it, can spell
@settings(deadline=None, max_examples=150)
def test_any_json_value_in_any_field_is_refused(value, field):
    if field in ("model", "source"):
        value = {"in": value}
    assume(mutated(**{field: value}) != mutated())
    with pytest.raises(HeaderError):
        StoreHeader.parse(mutated(**{field: value}))
