"""Residual-based prefetching: DALI, arXiv 2602.03495: the next gate's input is this one plus the mean step
between them over calibration tokens (one vector a layer)."""

from dali.policies.prefetch import PrefetchPolicy


class Policy(PrefetchPolicy):
    """`residual`, the paper's."""

    predictor = "residual"
