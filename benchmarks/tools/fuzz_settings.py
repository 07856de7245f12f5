"""Loads models whose settings were changed at random; each must load and answer, or be refused with a clear error.

    python benchmarks/tools/fuzz_settings.py [--inputs N] [--seed S]

Of a directory its JSON files are changed (config.json, generation_config.json, tokenizer_config.json, tokenizer.json), of a GGUF
file its metadata: other types, null, huge and negative numbers, NaN, lists in lists, what is missing or named otherwise. Anything
but a DaliError or an answer counts as a failure, as does taking more than a few seconds or a few gigabytes of memory; the
script then names the input and shows what was changed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import shutil
import signal
import struct
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import dali
from dali.errors import DaliError
from dali.loading.locate import BUNDLED

SECONDS = 30
MEMORY = 8 * 2**30  # above what is in use when the inputs begin
FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json")
U8, I32, U32, F32, BOOL, STRING, ARRAY, U64 = 0, 5, 4, 6, 7, 8, 9, 10
SCALARS = {U8: "<B", I32: "<i", U32: "<I", F32: "<f", BOOL: "<?", U64: "<Q", 11: "<q", 12: "<d"}


class TooSlow(BaseException):
    """Not an Exception, so that no reader can take it for damage."""


def odd_value(random: Random, old: Any) -> Any:
    """What a field may come to hold."""
    choices: list[Any] = [
        None, True, False, 0, 1, -1, 2, 3, 7, 0.5, -0.5, 1e-30, 1e30, 2**31, 2**32 - 1, 2**63, 10**30, float("nan"), float("inf"),
        "", "x", "0", "0.6", "null", "é\ud800", [], {}, [[]], [None], [0], [[0, 3], "x"], {"x": 1}, [1] * 50, "a" * 5000,
        [[[[[[0]]]]]], {"type": "yarn", "factor": 4.0}, {"rope_type": "default"},
    ]  # fmt: skip
    if isinstance(old, int | float) and not isinstance(old, bool):
        choices += [old + 1, old - 1, old * 2, -old, float(old), str(old), [old]]
    if isinstance(old, str):
        choices += [old.upper(), old + "x", [old], old[:-1]]
    if isinstance(old, list):
        choices += [old[:-1], old * 2, old[::-1], [old], {str(i): one for i, one in enumerate(old[:20])}]
    return random.choice(choices)


def change(document: Any, random: Random) -> str:
    """Change one place of a JSON document; what was done, for people."""
    at, path = document, "$"
    while isinstance(at, dict | list) and at:
        key: Any = random.choice(sorted(at)) if isinstance(at, dict) else random.randrange(len(at))
        inner = at[key]
        path = f"{path}.{key}"
        if isinstance(inner, dict | list) and inner and random.random() < 0.8:
            at = inner
            continue
        kind = random.randrange(8)
        if kind == 0:
            del at[key]
            return f"{path} is gone"
        if kind == 1 and isinstance(at, dict):
            at[random.choice((f"{key}s", key.upper(), "rope_scaling", "quantization_config", "auto_map"))] = (
                at.pop(key)
            )
            return f"{path} has another name"
        at[key] = odd_value(random, inner)
        return f"{path} = {at[key]!r:.80}"
    return "nothing"


def changed_directory(model: Path, folder: Path, random: Random) -> tuple[Path, str]:
    """A copy of `model` with one to three changes of its settings."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    for weights in model.glob("*.safetensors"):
        (folder / weights.name).symlink_to(weights)
    done = []
    for _ in range(random.randint(1, 3)):
        file = folder / random.choice([name for name in FILES if (folder / name).is_file()])
        document = json.loads(file.read_text())
        done.append(f"{file.name}: {change(document, random)}")
        file.write_text(json.dumps(document))
    return folder, "; ".join(done)


def changed_gguf(content: bytes, path: Path, random: Random) -> tuple[Path, str]:
    """`content` with one to three keys of its metadata holding something else, or named otherwise."""
    head, keys, rest = split(content)
    done = []
    for _ in range(random.randint(1, 3)):
        index = random.randrange(len(keys))
        name, _ = keys[index]
        if random.random() < 0.15:
            keys[index] = (name + b"x", keys[index][1])
            done.append(f"{name.decode()} has another name")
            continue
        shown, value = odd_metadata(random)
        keys[index] = (name, value)
        done.append(f"{name.decode()} = {shown}")
    entries = b"".join(struct.pack("<Q", len(name)) + name + value for name, value in keys)
    table, data = rest
    header = head + entries + table
    path.write_bytes(header + b"\0" * (-len(header) % 32) + data)
    return path, "; ".join(done)


def odd_metadata(random: Random) -> tuple[str, bytes]:
    """(for people, type and bytes) of a metadata value."""
    kind = random.choice([*SCALARS, STRING, STRING, ARRAY, ARRAY])
    if kind == STRING:
        text = random.choice([b"", b"x", b"\xff\xfe", b"a" * 5000, b"none", b"yarn", b"llama", b"{{ x", b"0"])
        return f"{text!r:.60}", struct.pack("<IQ", kind, len(text)) + text
    if kind == ARRAY:
        inner, count = random.choice([U8, U32, F32]), random.choice([0, 1, 3, 40])
        size = struct.calcsize(SCALARS[inner])
        raw = random.choice([b"\0", b"\xff"]) * (size * count)
        return f"{count} of type {inner}", struct.pack("<IIQ", kind, inner, count) + raw
    size = struct.calcsize(SCALARS[kind])
    raw = random.choice(
        [
            b"\0" * size,
            b"\xff" * size,
            b"\1" + b"\0" * (size - 1),
            b"\0" * (size - 1) + b"\x7f",
            random.randbytes(size),
        ]
    )
    return f"{raw.hex()} of type {kind}", struct.pack("<I", kind) + raw


def split(content: bytes) -> tuple[bytes, list[tuple[bytes, bytes]], tuple[bytes, bytes]]:
    """A GGUF file: its first 24 bytes; (name, type and value) of each key; the table of tensors, and their data."""
    at = 24

    def take(code: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from(code, content, at)
        at += struct.calcsize(code)
        return int(value)

    def skip(kind: int) -> None:
        nonlocal at
        if kind == STRING:
            size = take("<Q")
            at += size
        elif kind == ARRAY:
            inner, count = take("<I"), take("<Q")
            for _ in range(count):
                skip(inner)
        else:
            at += struct.calcsize(SCALARS.get(kind, "<I"))

    tensors, count = struct.unpack_from("<QQ", content, 8)
    keys = []
    for _ in range(count):
        size = take("<Q")
        name, begin = content[at : at + size], at + size
        at = begin
        skip(take("<I"))
        keys.append((name, content[begin:at]))
    table = at
    for _ in range(tensors):
        name_bytes = take("<Q")
        at += name_bytes
        dimensions = take("<I")
        at += 8 * dimensions + 12
    data = -(-at // 32) * 32
    return content[:24], keys, (content[table:at], content[data:])


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """Time for one input."""

    def too_slow(*_: object) -> None:
        raise TooSlow

    signal.signal(signal.SIGALRM, too_slow)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def outcome(path: Path) -> str:
    """What becomes of a model: "answers", "refused", or else the failure, with its traceback."""
    try:
        with limits():
            llm = dali.load(path)
            for use in (
                lambda: llm.generate("Once upon", max_tokens=2),
                lambda: llm.chat([{"role": "user", "content": "Hi"}], max_tokens=2),
            ):
                with contextlib.suppress(DaliError):
                    use()
            return "answers"
    except DaliError as error:
        sentences = (error.problem, error.fix)
        clear = all(text.strip() and "\n" not in text and len(text) < 1500 for text in sentences)
        return "refused" if clear else f"unclear: {error}"
    except BaseException:
        return traceback.format_exc()


def run(make: Callable[[Random], tuple[Path, str]], name: str, inputs: int, seed: int) -> dict[str, Any]:
    """What becomes of `inputs` models that `make` gives; prints failures as they come."""
    counts = {"answers": 0, "refused": 0, "failed": 0}
    for number in range(inputs):
        path, done = make(Random(f"{seed} {name} {number}"))
        found = outcome(path)
        if found in counts:
            counts[found] += 1
        else:
            counts["failed"] += 1
            print(f"{name}, input {number} of seed {seed}: {done}\n{found}", flush=True)
    return {"changed": name, "inputs": inputs} | counts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=1000, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    from gguf import GGMLQuantizationType
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import report
    from export_gguf import encode_as, write_gguf

    model = BUNDLED / "dali-tiny"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        loaded = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
        content = write_gguf(
            *loaded, folder / "sample.gguf", encode_as(GGMLQuantizationType.Q8_0)
        ).read_bytes()
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
        makers: dict[str, Callable[[Random], tuple[Path, str]]] = {
            "JSON files of a directory": lambda random: changed_directory(model, folder / "tiny", random),
            "metadata of a GGUF file": lambda random: changed_gguf(content, folder / "m.gguf", random),
        }
        rows = [run(make, name, options.inputs, options.seed) for name, make in makers.items()]
    report.table(rows)
    report.write("fuzz_settings", rows, seed=options.seed, seconds_allowed=SECONDS, memory_allowed=MEMORY)
    raise SystemExit(any(row["failed"] for row in rows))


if __name__ == "__main__":
    main()
