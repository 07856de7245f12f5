"""How large chunks of prompts are in a budget of RAM: worked out by hand for steps of 64 MiB and a quarter of one a token."""

from __future__ import annotations

import pytest

from dali.loading.room import least_step, step_tokens

MIB = 2**20


def step(tokens: int) -> int:
    return 64 * MIB + tokens * MIB // 4


@pytest.mark.parametrize(
    ("ram", "free", "chunk"),
    [
        (4000, 4000, 1024),  # 12 steps of 1,024 tokens take 3,840 MiB
        (4000, 340, 512),  # which leave 5 experts of 4 MiB, where a token has 8 in a layer
        (1000, 704, 512),  # 512 tokens take 192 MiB: 128 experts of 4 MiB have room
        (1000, 703, 256),  # one has not
        (1000, 639, 512),  # nor in smaller chunks, which would read all experts twice
        (1000, 160, 256),  # 128 MiB leave 8 experts
        (1000, 159, 128),  # 96 MiB leave 15
        (1000, 100, 64),  # the budget is refused
        (2400, 300, 512),  # a twelfth of the budget is not too much
    ],
)
def test_chunks_are_smaller_for_a_token_s_experts_and_before_a_budget_is_refused(ram, free, chunk):
    def slots(tokens: int) -> int:
        return (free * MIB - step(tokens)) // (4 * MIB)

    assert step_tokens(512, ram * MIB, step, slots, (8, 128), shrinks=True) == chunk
    assert step_tokens(512, ram * MIB, step, slots, (8, 128), shrinks=False) == max(
        chunk, 512
    )  # over an accelerator
    assert least_step(True) <= chunk
