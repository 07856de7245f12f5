"""Which tokens share a step."""

import pytest
from tiny_traces import random_trace, trace_of

from dali.errors import UsageError
from dali.replay.steps import forwards


def shown(steps):
    return [(step.rows.tolist(), step.sequences.tolist(), step.prefill) for step in steps]


def test_one_token_a_step_through_all_sequences():
    steps = forwards(trace_of([[0], [1], [2]], 4, sequences=[2, 1]), 1)
    assert shown(steps) == [([0], [0], False), ([1], [0], False), ([2], [1], False)]


def test_sequences_side_by_side_and_the_next_joins_where_one_ends():
    # lengths 1, 3, 2: the third sequence takes the first one's place; the second is then left alone, and left out
    steps = forwards(trace_of([[0]] * 6, 4, sequences=[1, 3, 2]), 2)
    assert shown(steps) == [([0, 1], [0, 1], False), ([2, 4], [1, 2], False), ([3, 5], [1, 2], False)]


def test_a_prompt_is_computed_before_its_sequence_joins():
    steps = forwards(random_trace(sequences=2, prompt=3, answer=2), 2)
    assert shown(steps) == [
        ([0, 1, 2], [0, 0, 0], True),
        ([5, 6, 7], [1, 1, 1], True),
        ([3, 8], [0, 1], False),
        ([4, 9], [0, 1], False),
    ]


def test_long_prompts_come_in_chunks():
    steps = forwards(random_trace(sequences=1, prompt=1200, answer=1), 1)
    assert [len(step.rows) for step in steps] == [512, 512, 176, 1]


def test_a_limit_counts_generated_tokens():
    steps = forwards(random_trace(sequences=4, answer=12), 4, tokens=10)
    assert sum(len(step.rows) for step in steps if not step.prefill) == 12  # whole steps


def test_a_batch_needs_as_many_sequences():
    with pytest.raises(UsageError) as error:
        forwards(random_trace(sequences=4), 5)
    assert "4 with generated tokens" in error.value.problem
    assert "batch 4" in error.value.fix
    with pytest.raises(UsageError):
        forwards(random_trace(answer=0), 1)
