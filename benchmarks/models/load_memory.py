"""Peak memory while loading a model whose experts are four times its dense part.

A random bfloat16 Qwen3-MoE checkpoint in several shards is loaded in a fresh process each: by dali the first time (packing the
store), by dali again, and by plain transformers. Peak = the process's high-water mark of resident memory above what it had
after the imports. The promise: at most dense weights + packed experts + one source shard.

    python benchmarks/models/load_memory.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import report

MIB = 2**20
SHARD = "64MB"
MAKE = f"""
import sys, torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3MoeConfig
from tokenizers import Tokenizer, models
torch.manual_seed(0)
config = Qwen3MoeConfig(vocab_size=16384, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, num_key_value_heads=4,
    head_dim=64, intermediate_size=768, moe_intermediate_size=192, num_experts=40, num_experts_per_tok=4,
    max_position_embeddings=512, tie_word_embeddings=False)
model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
model.save_pretrained(sys.argv[1], max_shard_size="{SHARD}")
PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({{"a": 0}}, unk_token="a"))).save_pretrained(sys.argv[1])
experts = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
print(experts * 2, sum(p.numel() for p in model.parameters()) * 2 - experts * 2)
"""
MEASURE = """
import json, resource, sys
import dali, dali.llm, torch
from transformers import AutoModelForCausalLM
def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))
open("/proc/self/clear_refs", "w").write("5")  # the high-water mark starts again here
before = status("VmRSS")
if sys.argv[2] == "transformers":
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
    held = sum(p.nbytes for p in model.parameters())
else:
    llm = dali.load(sys.argv[1], quant=sys.argv[2])
    held = llm.dense_bytes + llm.expert_bytes
print(json.dumps({"peak": status("VmHWM") - before, "held": held}))
"""


def run(code: str, *arguments: str, cache: Path) -> str:
    environment = os.environ | {"DALI_CACHE_DIR": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, check=True, capture_output=True, text=True
    )
    return done.stdout


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model, cache = Path(folder, "model"), Path(folder, "cache")
        experts, dense = map(int, run(MAKE, str(model), cache=cache).split())
        shards = [path.stat().st_size for path in model.glob("*.safetensors")]
        for quant in ("bf16", "w8", "w4", "transformers"):
            for load in ("first", "second") if quant != "transformers" else ("first",):
                found = json.loads(run(MEASURE, str(model), quant, cache=cache))
                bound = found["held"] + max(shards)
                rows.append(
                    {
                        "experts": quant,
                        "load": load,
                        "held_mib": round(found["held"] / MIB, 1),
                        "peak_mib": round(found["peak"] / MIB, 1),
                        "bound_mib": round(bound / MIB, 1),
                        "peak_over_bound": round(found["peak"] / bound, 3),
                    }
                )
    sizes = f"{len(shards)} shards of up to {max(shards) / MIB:.0f} MiB"
    print(f"source: experts {experts / MIB:.0f} MiB, dense {dense / MIB:.0f} MiB, {sizes}")
    report.table(rows)
    report.write(
        "load_memory", rows, source={"expert_bytes": experts, "dense_bytes": dense, "shard_bytes": shards}
    )


if __name__ == "__main__":
    main()
