"""Computing experts by the fastest kernels there are for where their memory lies."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dali.kernels import native, reference
from dali.kernels.expert import ExpertLayout


def compute_experts(
    layout: ExpertLayout,
    records: Sequence[Tensor],
    offsets: Sequence[int],
    pairs: Tensor,
    hidden: Tensor,
    rows: Tensor,
) -> None:
    """As kernels.reference.compute_experts: compiled in the host's memory, torch's elsewhere or where nothing was compiled."""
    kernels = native if hidden.device.type == "cpu" and native.enabled() else reference
    kernels.compute_experts(layout, records, offsets, pairs, hidden, rows)
