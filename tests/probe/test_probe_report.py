"""What people are shown of a profile."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from dali.probe import report
from measured import ACCELERATED, MACHINE, measured


def test_figures_come_with_their_unit_and_spread():
    text = report.text(measured())
    assert "memory, read by all threads" in text
    assert "50 GB/s  ± 1 %" in text
    assert "predicted within 5 %" in text
    assert "no GPU here" in text


def test_every_figure_is_shown():
    profile = measured(MACHINE, **ACCELERATED, link_contended=1e10)
    text = report.text(profile)
    assert all(report.TITLES[name] in text for name in profile.figures)
    assert "no GPU here" not in text


def test_experts_have_a_line_a_table_and_bars_a_value():
    lines = report.text(measured()).splitlines()
    head = next(line for line in lines if line.startswith("us of an expert on the CPU"))
    assert head.split()[-2:] == ["1", "8"]
    row = next(line for line in lines if line.startswith("w4 2048 x 768"))
    assert row.split()[-2:] == ["60", "120"]
    short, long = (line.count("█") for line in lines if "█" in line and line.split()[0] in ("1", "8"))
    assert (short, long) == (12, 30)  # 20 and 50 GB/s


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (43.1e9, "B/s", "43.1 GB/s"),
        (5e6, "B/s", "5 MB/s"),
        (1.2e12, "FLOP/s", "1.2 TFLOP/s"),
        (2e-6, "s", "2 us"),
        (3.2e-3, "s", "3.2 ms"),
        (4.0, "reads", "4"),
        (2.0**33, "B", "8.0 GiB"),
    ],
)
def test_values_are_told_as_people_read_them(value, unit, shown):
    assert report.told(value, unit) == shown


def test_the_page_stands_alone_and_its_plots_are_svg():
    page = report.page(measured(), "Measured & told.")
    assert "Measured &amp; told." in page
    assert "<script" not in page
    assert "http" not in page
    figures = page.split("<svg")[1:]
    assert len(figures) >= 3
    for figure in figures:
        ElementTree.fromstring("<svg" + figure.partition("</svg>")[0] + "</svg>")
