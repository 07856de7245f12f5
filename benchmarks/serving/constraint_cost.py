"""What holding an answer to a schema costs: a tokenizer of 150,000 made-up words, and answers chosen by chance of what may come.

`vocabulary`: once a model; `compiled`: once a schema; `mask`: what may come next, a token; `push`: that it came. Times are the
thread's own, so others on the machine do not count.

    python benchmarks/serving/constraint_cost.py
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import report
from dali.engine.constraint.grammars import Grammars
from dali.engine.constraint.shape import Shape
from dali.engine.text.answer import answer_grammar
from dali.engine.text.structure import Plain

WORDS = 150_000
SCHEMAS: dict[str, dict[str, Any]] = {
    "any object": {"type": "object"},
    "a record": {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "kind": {"enum": ["small", "large"]},
            "tags": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["name", "age", "kind", "tags"],
        "additionalProperties": False,
    },
    "a string of a pattern": {"type": "string", "pattern": "^[a-z]+(-[a-z0-9]+)*$"},
}


def tokenizer() -> Any:
    chance, split = Random(0), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocabulary = {letter: at for at, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    while len(vocabulary) < WORDS:
        word = chance.choice(["", " ", " ", '"', "\n"]) + "".join(
            chance.choice("aeiou" if at % 2 else "bcdfghjklmnprstvwz") for at in range(chance.randint(2, 9))
        )
        vocabulary.setdefault("".join(piece for piece, _ in split.pre_tokenize_str(word)), len(vocabulary))
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer, backend.decoder = split, decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<|end|>", special=True, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")


def row(name: str, schema: dict[str, Any], grammars: Grammars, eos: int) -> dict[str, Any]:
    source = answer_grammar(grammars.vocabulary, Shape(schema), Plain())
    begun = time.thread_time()
    grammars.constraint(source)
    compiled = time.thread_time() - begun
    masks, pushes, chance = [], [], Random(1)
    for _ in range(20):
        held, answer = grammars.constraint(source), []
        while len(answer) < 50 and not held.over(answer):
            begun = time.thread_time()
            allowed = held.allowed(answer, WORDS)
            masks.append(time.thread_time() - begun)
            answer.append(int(allowed[chance.randrange(len(allowed))]))
            if answer[-1] == eos:
                break
            begun = time.thread_time()
            held.over(answer)
            pushes.append(time.thread_time() - begun)
    return {
        "schema": name,
        "compiled ms": 1e3 * compiled,
        "tokens": len(pushes),
        "mask us": 1e6 * statistics.median(masks),
        "mask us, mean": 1e6 * statistics.fmean(masks),
        "push us": 1e6 * statistics.median(pushes),
    }


def main() -> None:
    known = tokenizer()
    grammars = Grammars(known, frozenset([known.eos_token_id]))
    begun = time.thread_time()
    assert grammars.vocabulary
    vocabulary = time.thread_time() - begun
    rows = [row(name, schema, grammars, known.eos_token_id) for name, schema in SCHEMAS.items()]
    print(f"vocabulary: {vocabulary:.2f} s")
    report.table(rows)
    report.write("constraint_cost", rows, vocabulary_s=round(vocabulary, 3), tokens=WORDS)


if __name__ == "__main__":
    main()
