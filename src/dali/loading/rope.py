"""How far a model's rotary positions reach: as its files say, and stretched as the user asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dali.errors import UsageError, parameter
from dali.options import LoadOptions

# Of transformers' kinds those whose factor says how much longer a sequence may be than in training. "dynamic" is not among them:
# beyond the trained length its frequencies follow the longest sequence of a call, so that answers would depend on neighbours.
STRETCHED = ("linear", "yarn")
ORIGINAL = "original_max_position_embeddings"


def scale_rope(
    rope: Mapping[str, Any], most: int, options: LoadOptions, name: str
) -> tuple[dict[str, Any], int]:
    """The rotary parameters, as transformers' `rope_parameters`, and the tokens that a sequence of the model called `name` may
    have, by its files `most`. Scaling multiplies the tokens of training. UsageError where it cannot be as `options` ask.
    """
    kind = rope.get("rope_type") or rope.get("type") or "default"
    own = rope if kind in STRETCHED else {}
    original = options.yarn_orig_ctx or _number(own.get(ORIGINAL)) or most
    if (options.rope_scaling, options.rope_scale, options.yarn_orig_ctx) == (None, None, None):
        return dict(rope), max(most, int(original * (_number(own.get("factor")) or 1)))
    if kind not in ("default", *STRETCHED) or any(isinstance(value, Mapping) for value in rope.values()):
        raise UsageError(
            f"{name} has rotary positions of its own kind, which {parameter('rope_scaling')} cannot change.",
            "Leave it out.",
        )
    wanted = options.rope_scaling or (kind if own else "linear")
    if options.yarn_orig_ctx is not None and wanted != "yarn":
        raise UsageError(
            f"{parameter('yarn_orig_ctx')} is about YaRN, and the scaling is {wanted}.",
            f"Give {parameter('rope_scaling')} yarn too, or leave it out.",
        )
    factor = options.rope_scale or (_number(own.get("factor")) if kind == wanted else None)
    if factor is None:
        raise UsageError(
            f"{parameter('rope_scaling')} {wanted} does not say how far {name} is stretched.",
            f"Give {parameter('rope_scale')} too, such as 4 for four times its {most} tokens.",
        )
    scaled = {
        key: value
        for key, value in rope.items()
        if key != "type" and (own or key not in ("factor", ORIGINAL))
    }
    scaled |= {"rope_type": wanted, "factor": float(factor)}
    if wanted == "yarn":
        scaled[ORIGINAL] = int(original)
    return scaled, int(original * factor)


def _number(value: object) -> int | float | None:
    """A number above 0, which is all that a factor or a length can be; None for anything else."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 2**63
    return value if number else None  # type: ignore[return-value]
