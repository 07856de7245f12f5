"""Where the parts of a quantized model are dali's kernels, its logits do not depend on how a prompt is cut, on what was kept
of an earlier one, or on who shares the steps: not in any bit. And they are transformers' own, but for rounding."""

from __future__ import annotations

import pytest
import torch

import dali
from dali.kernels import native
from dali.llm import LLM
from decoding_families import DECODING, decoding_model
from families import FAMILIES, random_model, save_model
from logits import DECODE, alike, dali_logits, random_prompts, scored, whole_logits

pytestmark = pytest.mark.skipif(not native.enabled(), reason="there are no compiled kernels")
PROMPT, *NEIGHBOURS = random_prompts((29, 9, 17, 3, 12, 6, 21, 5, 14, 8, 11))


def check(llm: LLM) -> None:
    whole = scored(llm, PROMPT, 512)
    for chunk in (1, 2, 7, 13):
        assert torch.equal(scored(llm, PROMPT, chunk), whole)
    alone = whole[-DECODE - 1 : -1]
    for step_tokens in (512, 5):
        assert torch.equal(dali_logits(llm, [*NEIGHBOURS, PROMPT], step_tokens)[-1], alone)
    assert torch.equal(dali_logits(llm, [PROMPT], 512)[0], alone)
    kept = llm.generate(PROMPT[:20], max_tokens=1, ignore_eos=True)
    assert kept.prompt_tokens == 20
    sequence = llm.sequence(PROMPT[:-DECODE], max_tokens=1, ignore_eos=True, temperature=0, logprobs=3)
    llm.loop.complete([sequence])
    assert sequence.cached_tokens >= 19
    expected = alone[0].float().log_softmax(-1)
    assert sequence.logprobs[0].logprob == float(expected[sequence.logprobs[0].token])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", [*FAMILIES, *DECODING])
def test_however_a_prompt_is_cut(family, dtype, tmp_path, monkeypatch):
    monkeypatch.setenv("DALI_CACHE_DIR", str(tmp_path / "cache"))
    make = decoding_model if family in DECODING else random_model
    model = make(family, dtype=dtype)
    # Which is refused where steps of a decoding sequence with several tokens would give others.
    llm = dali.load(save_model(model, tmp_path / "model"), quant="w8", draft="ngram")
    check(llm)
    assert alike(scored(llm, PROMPT, 512), whole_logits(model, PROMPT)) > 0.9
