from __future__ import annotations

from dali.hardware.cost import ExpertCosts
from dali.policies.once.prefill import CHUNKS, prefill_chunk


def costs(link: float) -> ExpertCosts:
    """The CPU is far too slow to help; the accelerator takes 1 us a token."""
    return ExpertCosts(
        cpu=[1e-3 * w for w in range(4097)],
        gpu=[1e-6 * w for w in range(4097)],
        link=link,
        link_contended=link,
        launch=0.0,
    )


def test_all_resident_needs_no_large_chunk():
    assert prefill_chunk(costs(link=1e-3), experts=8, top_k=2, resident=8, slots=0) == CHUNKS[0]


def test_a_slow_link_asks_for_the_largest():
    assert prefill_chunk(costs(link=1e-2), experts=8, top_k=2, resident=0, slots=4) == CHUNKS[-1]


def test_in_between_the_first_chunk_whose_compute_hides_the_copies():
    # 8 experts, top-2: a chunk of 1024 gives each 256 tokens, 256 us of compute against a copy of 200 us.
    assert prefill_chunk(costs(link=2e-4), experts=8, top_k=2, resident=0, slots=4) == 1024
