"""Writes docs/MODELS.md: which families run, and how. `make models-page`, in three minutes."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import transformers

from dali.loading.skeleton import text_model
from families_sweep.outcome import Outcome, outcome
from families_sweep.tiny import Variant, folders, variants

PAGE = Path(__file__).parents[2] / "docs" / "MODELS.md"
HEAD = """# Model families

Made by `make models-page` (`tests/families_sweep/page.py`) with transformers {version}; `make sweep` holds dali to it.

transformers {version} has {folders} families whose experts go through its experts interface, where dali takes part. A tiny
random model of each was tried: {counts}.
What is refused is refused in the words of the last column. What loads gives transformers' own logits: a prompt at once, in
chunks, decoded with a cache, and two unequal sequences side by side, in float32, with the same bits over a simulated
accelerator; and with `w8` experts those of the same model with its experts quantized and dequantized.

- **loads**: `dali run` and `dali.load` take it. The last column says how it decodes on the CPU beside quantized experts: in *one
  native call* a step, with *native attention* between transformers' other modules, or by *transformers' forward*, where only the
  experts and the linears are native.
- **attaches**: `dali.attach` gives transformers' model dali's experts; `model.generate` goes on as before.
- **refused**: neither does.

Which of these a published model needs depends on its configuration: in brackets stands what a row's differs in from the family's
defaults. "windows" have some or all layers attend to a window of tokens. Which families' GGUF files are read says
[GGUF files](GGUF.md).

## Models people run

What their families' tiny models show; **none of these was tried on a published file yet**. Safetensors weights of all of them
load. Memory is what so many parameters take at least, in GB: 8.5 bits each as `w8`, 4.5 as `w4`, where linears stay at 8.5. A
GGUF file takes its own size. Prefetching, over an accelerator, needs routers that can be called on their own; where they
cannot, `dali run` says so.

| model | billions of parameters | read as GGUF | decodes by | prefetching | GB as w8 / w4 |
|---|---|---|---|---|---|
| Qwen3.6-35B-A3B, Qwen3.5-35B-A3B | 35 | `qwen35moe` | one native call | yes | 37 / 20 |
| Qwen3-Next-80B-A3B | 80 | `qwen3next` | one native call | yes | 85 / 45 |
| Gemma 4 26B-A4B | 26 | `gemma4` | one native call | yes | 28 / 15 |
| gpt-oss-20b | 21 | `gpt-oss` | one native call | yes | 22 / 12 |
| gpt-oss-120b | 117 | `gpt-oss` | one native call | yes | 124 / 66 |
| GLM-4.7-Flash | 30 | `deepseek2` | one native call | yes | 32 / 17 |
| GLM-4.5-Air | 106 | `glm4moe` | one native call | yes | 113 / 60 |
| LFM2-8B-A1B | 8 | `lfm2moe` | one native call | no | 8 / 4 |
| LFM2-24B-A2B | 24 | `lfm2moe` | one native call | no | 26 / 14 |
| Nemotron 3 Nano | 30 | `nemotron_h_moe` | one native call | yes | 32 / 17 |
| Granite 4 H Tiny | 7 | `granitehybrid` | one native call | yes | 7 / 4 |
| Granite 4 H Small | 32 | `granitehybrid` | one native call | yes | 34 / 18 |
| DeepSeek-V3, R1 | 671 | `deepseek2` | one native call | yes | 713 / 377 |
| Kimi-Linear-48B-A3B | 48 | none | transformers' forward | yes | 51 / 27 |

Models of the kind `qwen4_exp` can be attached to only. Blocks that predict further tokens (MTP) are left out. Over a GPU dali's
own kernels compute all of gpt-oss and GLM-4.5-Air; of the others torch computes all but the experts ([GPU](GPU.md)).

## Families

| model type | class in transformers | result | how it decodes, or why it does not load |
|---|---|---|---|
"""


def row(variant: Variant, found: Outcome | Exception) -> str:
    """The variant's line of the table."""
    if isinstance(found, Exception):
        status, detail = "crashes", f"{type(found).__name__}: {found}"
    else:
        status = "loads" if found.loads else "attaches" if found.attaches else "refused"
        detail = found.decodes if found.loads else found.reason
    cls = text_model(variant.config)
    assert cls is not None
    kind = f"`{variant.model_type}`" + (f" ({variant.name})" if variant.name else "")
    return f"| {kind} | {cls[0].__name__} | {status} | {detail} |"


def missing(folder: str) -> str:
    """The line of a family that generates no text."""
    return f"| `{folder}` | | refused | transformers generates no text with it, token by token. |"


def tried(variant: Variant) -> Outcome | Exception:
    """The outcome, or the error that is none of dali's, which the page then shows."""
    try:
        return outcome(variant)
    except Exception as error:
        return error


def main() -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")
    lines: list[str] = []
    best = Counter[str]()
    for folder in folders():
        results = [(variant, tried(variant)) for variant in variants(folder)]
        lines += [row(*result) for result in results] or [missing(folder)]
        print(*lines[-max(len(results), 1) :], sep="\n", flush=True)
        plain = [found for variant, found in results if isinstance(found, Outcome) and not variant.name]
        loads, attaches = any(found.loads for found in plain), any(found.attaches for found in plain)
        crashes = any(isinstance(found, Exception) for _, found in results)
        best["crash" if crashes else "load" if loads else "attach" if attaches else "refuse"] += 1
    counts = f"{best['load']} load, {best['attach']} can be attached to only, {best['refuse']} are refused"
    counts += f", {best['crash']} crash" if best["crash"] else ""
    head = HEAD.format(version=transformers.__version__, folders=best.total(), counts=counts)
    PAGE.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
