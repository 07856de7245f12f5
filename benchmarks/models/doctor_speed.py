"""How long `dali doctor` takes to tell of a large model, here and on a hub that answers each request after 50 ms.

The model has the shape of Qwen3-235B-A22B in 60 safetensors files, and a GGUF file of that shape with a vocabulary of 151,936
tokens and as many merges: headers alone, in sparse files. With an accelerator every policy is told, of as many `ways`. The hub is
a server of this machine that sends parts of files (tests/hub.py). Each row is a process of its own, from its start to its end;
`cpu_seconds` is what it computed. `imported_mib` is what Python takes with all that a model is loaded by, before one is opened:
dali.doctor.plan.IMPORTED.

    python benchmarks/models/doctor_speed.py
"""

from __future__ import annotations

import json
import os
import resource
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import report
from dali.store.cache import store_path
from hub import Hub, serving

SHARDS, LAYERS, EXPERTS, HIDDEN, INNER, VOCABULARY = 60, 94, 128, 4096, 1536, 151936
HEADS, GROUPS, WIDTH = 64, 4, 128
DELAY, RUNS = 0.05, 5
ACCELERATED = ("--ram", "200GiB", "-c", "8192", "--device", "sim:rtx4090-desktop")
CONFIG = {
    "model_type": "qwen3_moe",
    "dtype": "bfloat16",
    "num_hidden_layers": LAYERS,
    "num_experts": EXPERTS,
    "num_experts_per_tok": 8,
    "hidden_size": HIDDEN,
    "intermediate_size": 12288,
    "moe_intermediate_size": INNER,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "head_dim": WIDTH,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": False,
}


def tensors() -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        for name, rows in (("q", HEADS * WIDTH), ("k", GROUPS * WIDTH), ("v", GROUPS * WIDTH)):
            found[f"{at}.self_attn.{name}_proj.weight"] = (rows, HIDDEN)
        found[f"{at}.self_attn.o_proj.weight"] = (HIDDEN, HEADS * WIDTH)
        found[f"{at}.mlp.gate.weight"] = (EXPERTS, HIDDEN)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"{at}.{norm}.weight"] = (HIDDEN,)
        for expert in range(EXPERTS):
            for name in ("gate", "up"):
                found[f"{at}.mlp.experts.{expert}.{name}_proj.weight"] = (INNER, HIDDEN)
            found[f"{at}.mlp.experts.{expert}.down_proj.weight"] = (HIDDEN, INNER)
    return found | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}


def write_safetensors(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    every = list(tensors().items())
    each, index = -(-len(every) // SHARDS), {}
    for number in range(SHARDS):
        name, header, end = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors", {}, 0
        for tensor, shape in every[number * each : (number + 1) * each]:
            size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
            header[tensor] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
            end += size
            index[tensor] = name
        raw = json.dumps(header).encode()
        with (folder / name).open("wb") as file:
            file.write(struct.pack("<Q", len(raw)) + raw)
            file.truncate(8 + len(raw) + end)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def write_gguf(path: Path) -> None:
    """In Q4_K, keys and tensors alone."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    def key(name: str, kind: int, value: bytes) -> bytes:
        return text(name) + struct.pack("<I", kind) + value

    def whole(name: str, value: int) -> bytes:
        return key(f"qwen3moe.{name}", 4, struct.pack("<I", value))

    def texts(name: str, values: list[str]) -> bytes:
        return key(
            f"tokenizer.ggml.{name}", 9, struct.pack("<IQ", 8, len(values)) + b"".join(map(text, values))
        )

    numbers = {
        "block_count": LAYERS,
        "context_length": 40960,
        "embedding_length": HIDDEN,
        "feed_forward_length": 12288,
        "attention.head_count": HEADS,
        "attention.head_count_kv": GROUPS,
        "attention.key_length": WIDTH,
        "expert_count": EXPERTS,
        "expert_used_count": 8,
    }
    keys = [key("general.architecture", 8, text("qwen3moe")), *(whole(*item) for item in numbers.items())]
    keys.append(key("qwen3moe.attention.layer_norm_rms_epsilon", 6, struct.pack("<f", 1e-6)))
    keys += [
        texts("tokens", [f"token{i}" for i in range(VOCABULARY)]),
        texts("merges", [f"a{i} b{i}" for i in range(VOCABULARY)]),
    ]
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (VOCABULARY, HIDDEN),
        "output_norm.weight": (256,),
    }
    for layer in range(LAYERS):
        for name, shape in {
            "attn_q": (HEADS * WIDTH, HIDDEN),
            "attn_k": (GROUPS * WIDTH, HIDDEN),
            "attn_v": (GROUPS * WIDTH, HIDDEN),
            "attn_output": (HIDDEN, HEADS * WIDTH),
            "ffn_gate_inp": (EXPERTS, HIDDEN),
            "ffn_gate_exps": (EXPERTS, INNER, HIDDEN),
            "ffn_up_exps": (EXPERTS, INNER, HIDDEN),
            "ffn_down_exps": (EXPERTS, HIDDEN, INNER),
        }.items():
            shapes[f"blk.{layer}.{name}.weight"] = shape
    shapes["output.weight"] = (VOCABULARY, HIDDEN)
    table, offset = b"", 0
    for name, shape in shapes.items():
        table += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape[::-1])
        table += struct.pack("<IQ", 12, offset)  # Q4_K
        elements = 1
        for size in shape:
            elements *= size
        offset += -(-elements // 256 * 144 // 32) * 32
    header = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(keys)) + b"".join(keys) + table
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(-(-len(header) // 32) * 32 + offset)


def run(arguments: list[str], environment: dict[str, str]) -> tuple[float, float, str]:
    """Seconds of a process by the clock and of the CPU, and what it printed."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 1) or not done.stdout:
        raise SystemExit(done.stderr)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def pack(model: Path, cache: Path) -> None:
    """Let its experts have been packed before, for which this disk needs no room."""
    os.environ["DALI_CACHE_DIR"] = str(cache)
    folder = store_path(model, "any").parent
    folder.mkdir(parents=True)
    (folder / "w4.safetensors").touch()


def imported() -> float:
    program = (
        "import dali.entry, dali.loading.safetensors; from dali.hardware.free_memory import own_memory;"
        "print(own_memory() / 2**20)"
    )
    return round(float(run(["-c", program], {})[2]))


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_safetensors(root / "org" / "large")
        write_gguf(root / "org" / "gguf" / "large-Q4_K.gguf")
        with serving(Hub(root, delay=DELAY)) as hub:
            environment = {
                "HF_ENDPOINT": hub.url,
                "HF_HOME": str(root / "home"),
                "DALI_CACHE_DIR": str(root / "cache"),
            }
            here, gguf = str(root / "org" / "large"), str(root / "org" / "gguf" / "large-Q4_K.gguf")
            pack(Path(here), root / "cache")
            for what, model in (
                ("60 files, here", [here]),
                ("60 files, hub", ["org/large"]),
                ("60 files, here, with an accelerator", [here, *ACCELERATED]),
                ("GGUF, here", [gguf]),
                ("GGUF, hub", ["org/gguf:Q4_K"]),
                ("GGUF, here, with an accelerator", [gguf, *ACCELERATED]),
            ):
                sent, asked = hub.sent, hub.asked
                found = [run(["-m", "dali", "doctor", "--json", *model], environment) for _ in range(RUNS)]
                seconds, cpu = (sorted(each[i] for each in found) for i in (0, 1))
                rows.append(
                    {
                        "model": what,
                        "seconds": round(seconds[RUNS // 2], 2),
                        "least": round(seconds[0], 2),
                        "cpu_seconds": round(cpu[RUNS // 2], 2),
                        "requests": (hub.asked - asked) // RUNS,
                        "read_mib": round((hub.sent - sent) / RUNS / 2**20, 1),
                        "verdict": json.loads(found[0][2])["verdict"],
                        "ways": len(json.loads(found[0][2])["ways"]),
                    }
                )
    report.table(rows)
    report.write("doctor_speed", rows, imported_mib=imported(), delay_seconds=DELAY)


if __name__ == "__main__":
    main()
