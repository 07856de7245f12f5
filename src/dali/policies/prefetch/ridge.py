"""Ridge look-ahead (ours): a linear map from this layer's gate input to the later router's logits, fitted in
closed form over calibration tokens; it degrades little with distance."""

from dali.policies.prefetch import PrefetchPolicy


class Policy(PrefetchPolicy):
    """`ridge`."""

    predictor = "ridge"
