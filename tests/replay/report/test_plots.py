"""Plots: what is drawn says its value."""

from __future__ import annotations

import re

from dali.replay.report import plots


def test_a_row_has_its_name_its_value_and_a_bar_as_long():
    svg = plots.rows({"<lru>": 1234.5, "fast": 2469.0, "none": 0.0, "small": 0.5})
    assert re.findall(r">([^<]+)</text>", svg) == [
        "&lt;lru&gt;",
        "1,234",
        "fast",
        "2,469",
        "none",
        "0",
        "small",
        "0.5",
    ]
    widths = [float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"', svg)]
    assert widths[1] == 2 * widths[0] > widths[3] > widths[2] == 0


def test_nothing_to_draw_is_an_empty_plot():
    assert "<rect" not in plots.rows({})
