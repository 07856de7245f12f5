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


def test_a_bound_is_drawn_where_no_bar_ends_beyond_it():
    svg = plots.rows({"a": 5.0, "b": 2.5}, bound=10.0)
    left = float(re.search(r'<rect x="([\d.]+)"', svg)[1])
    width = float(re.search(r'width="([\d.]+)"', svg)[1])
    assert float(re.search(r'<line x1="([\d.]+)"', svg)[1]) == left + 2 * width
    assert ">bound 10</text>" in svg


def test_a_heat_map_has_a_scale():
    svg = plots.heat_map({"one": [0.0, 0.3]}, "layer", 0.3)
    assert re.findall(r">([^<]+)</text>", svg) == ["one", "layer, 0 to 1", "0", "0.3"]
    shades = re.findall(r'class="heat" fill="(#\w+)"/>', svg)
    assert (shades[0], shades[-1]) == ("#ffffff", "#08306b")
