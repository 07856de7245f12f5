"""An entry of the prefix cache as a file: what it is in a head, then its tensors, and a checksum of both.

magic, 8 bytes | XXH3 of what follows, 8 bytes | bytes of the head, 8 bytes | the head, JSON, padded | tensors, each padded
"""

from __future__ import annotations

import json
import math
import os
import struct
from itertools import groupby
from typing import Any

import torch
import xxhash
from torch import Tensor

from dali.step.kept import ALIGNMENT, Kept, KeptState, KeptTokens, aligned
from dali.step.recurrent import RecurrentState

VERSION = 1
MAGIC = b"DALIPFX%c" % VERSION
FIXED = struct.Struct("<8sQQ")
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float32,
        torch.bfloat16,
        torch.float16,
        torch.uint8,
    )  # bytes: keys and values in 8 bits
}


def pieces(name: str, tokens: list[int], kept: Kept) -> list[bytes | memoryview]:
    """What a file of that name holds, to be written in order."""
    head = {
        "name": name,
        "tokens": tokens,
        "kept": [[each.layer, each.window, _kind(each.keys), _kind(each.values)] for each in kept.tokens],
        "states": [[each.layer, each.kind.__name__, _kind(each.tensor)] for each in kept.states],
    }
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (aligned(FIXED.size + len(text)) - FIXED.size - len(text))
    body: list[bytes | memoryview] = [text]
    for tensor in kept.tensors:
        body.append(_bytes(tensor))
        body.append(bytes(aligned(tensor.nbytes) - tensor.nbytes))
    length = struct.pack("<Q", len(text))
    digest = xxhash.xxh3_64(length)
    for piece in body:
        digest.update(piece)
    return [MAGIC, struct.pack("<Q", digest.intdigest()), length, *body]


def read(path: str, name: str, tokens: list[int]) -> Kept | None:
    """What the file holds; None where it is damaged, or not of that name and these tokens. OSError: it cannot be read."""
    with open(path, "rb", buffering=0) as file:
        nbytes = os.fstat(file.fileno()).st_size
        if nbytes < FIXED.size:
            return None
        buffer = torch.empty(nbytes, dtype=torch.uint8)
        view = _bytes(buffer)
        done = 0
        while done < nbytes:
            count = file.readinto(view[done:])
            if not count:
                return None
            done += count
    magic, checksum, length = FIXED.unpack(view[: FIXED.size])
    if magic != MAGIC or checksum != xxhash.xxh3_64_intdigest(view[16:]):
        return None
    try:
        head = json.loads(bytes(view[FIXED.size : FIXED.size + length]))
        if head["name"] != name or head["tokens"] != tokens:
            return None
        return _kept(head, buffer, FIXED.size + length)
    except (ValueError, KeyError, TypeError, RuntimeError):  # written by something else, checksum and all
        return None


def _kept(head: dict[str, Any], buffer: Tensor, begin: int) -> Kept:
    kinds = {kind.__name__: kind for kind in RecurrentState.__subclasses__()}
    wanted = [kind for *_, keys, values in head["kept"] for kind in (keys, values)]
    wanted += [tensor for *_, tensor in head["states"]]
    found: list[Tensor] = []
    for (name, shape), alike in groupby(wanted):  # all of a run at once: thousands of views take a while
        count, dtype, numbers = len(list(alike)), DTYPES[name], math.prod(shape)
        each = aligned(numbers * dtype.itemsize)
        rows = buffer[begin : begin + count * each].view(dtype).view(count, each // dtype.itemsize)
        found += rows[:, :numbers].view(count, *shape).unbind()
        begin += count * each
    if begin != len(buffer):
        raise ValueError("bytes that nobody asked for")
    tensors = iter(found)
    tokens = [KeptTokens(layer, window, next(tensors), next(tensors)) for layer, window, *_ in head["kept"]]
    states = [KeptState(layer, kinds[kind], next(tensors)) for layer, kind, _ in head["states"]]
    return Kept(tuple(tokens), tuple(states))


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy())  # type: ignore[arg-type]


def _kind(tensor: Tensor) -> tuple[str, list[int]]:
    return str(tensor.dtype).removeprefix("torch."), list(tensor.shape)


assert FIXED.size < ALIGNMENT  # so that a head is never empty
