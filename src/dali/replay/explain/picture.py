"""A picture of the lanes of one step: of those that generate, the one of middle length."""

from __future__ import annotations

from collections.abc import Sequence

from dali.replay.explain.slices import LayerStep
from dali.replay.report import plots

SPACE = "http://www.w3.org/2000/svg"
DRAWN = 6  # layers: more of them are too narrow to tell experts apart


def typical(steps: Sequence[LayerStep]) -> list[LayerStep]:
    """The layers of that step; of a prompt's, where nothing was generated."""
    whole: dict[int, list[LayerStep]] = {}
    for step in steps:
        whole.setdefault(step.step, []).append(step)
    fewest = min((layers[0].tokens for layers in whole.values()), default=0)
    generating = [layers for layers in whole.values() if layers[0].tokens == fewest]
    generating.sort(key=lambda layers: sum(one.seconds for one in layers))
    return generating[len(generating) // 2] if generating else []


def picture(steps: Sequence[LayerStep], times: str) -> str:
    """An SVG file; `times`: "modelled" or "measured"."""
    drawn = typical(steps)[:DRAWN]
    zero = min((one.start for step in drawn for one in step.slices), default=0.0)
    spans = [
        (one.lane, one.what, max(one.start - zero, 0.0), one.end - zero)
        for step in drawn
        for one in step.slices
    ]
    layers = f"layers {drawn[0].layer} to {drawn[-1].layer}" if drawn else "no layer"
    number = drawn[0].step if drawn else 0
    return standalone(plots.lanes(spans, f"microseconds, {times}; step {number}, {layers}"))


def standalone(svg: str) -> str:
    """A plot as a file of its own, on white, with the font that a page would give it."""
    style = f'xmlns="{SPACE}" style="background:#fff;font:12px sans-serif" '
    return f"{svg.replace('<svg ', f'<svg {style}', 1)}\n"
