"""Log probabilities of the tokens that were chosen."""

from __future__ import annotations

import math

import pytest
import torch

from dali.engine.logprobs import TokenLogprob, token_logprob


def test_the_chosen_token_and_the_likeliest_have_theirs():
    logits = torch.tensor([0.125, 0.5, 0.25, 0.125]).log() + 3
    found = token_logprob(logits, 3, 2)
    assert found.token == 3
    assert found.logprob == pytest.approx(math.log(0.125))
    assert [token for token, _ in found.top] == [1, 2]
    assert [value for _, value in found.top] == pytest.approx([math.log(0.5), math.log(0.25)])


def test_more_than_there_are_and_none_at_all():
    logits = torch.zeros(2, dtype=torch.bfloat16)
    assert len(token_logprob(logits, 0, 9).top) == 2
    assert token_logprob(logits, 0, 0) == TokenLogprob(0, pytest.approx(math.log(0.5)))
