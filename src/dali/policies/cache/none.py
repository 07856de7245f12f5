"""No cache: nothing is resident, every expert passes through scratch slots or runs on the CPU."""

from dali.policies.cache import CachePolicy


class Policy(CachePolicy):
    """`none`."""

    def __init__(self, layers: int, experts: int, capacity: int = 0, seed: int = 0) -> None:
        super().__init__(layers, experts, 0, seed)
