"""Next-gate prefetching: the later router on this layer's own gate input, as in mixtral-offloading (arXiv
2312.17238) and HybriMoE (arXiv 2504.05897)."""

from dali.policies.prefetch import PrefetchPolicy


class Policy(PrefetchPolicy):
    """`next_gate`."""

    predictor = "next_gate"
