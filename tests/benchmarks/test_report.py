import json
import sys
from importlib import import_module
from pathlib import Path

import pytest


@pytest.fixture
def report(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks" / "tools"))
    module = import_module("report")
    monkeypatch.setattr(module, "BENCHMARKS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["/home/somebody/dali/benchmarks/kernels/speed.py", "--rounds", "3"])
    return module


def test_a_result_says_where_when_and_how_it_came_about(report, tmp_path):
    rows = [{"policy": "greedy", "us": 40.5}, {"policy": "two_lane", "us": 120.0}]
    path = report.write("speed", rows, experts=128)
    assert path == tmp_path / "results" / "speed.json"
    result = json.loads(path.read_text())
    assert list(result) == ["machine", "commit", "command", "experts", "rows"]
    assert result["rows"] == rows
    assert result["experts"] == 128
    assert result["command"] == "python benchmarks/kernels/speed.py --rounds 3"
    assert result["commit"] == "none"  # tmp_path is no repository
    assert result["machine"]["cores"] >= 1


def test_a_result_names_no_host_and_no_folder(report):
    text = report.write("speed", [{"x": 1}]).read_text()
    assert "/home" not in text
    assert str(report.BENCHMARKS) not in text
    assert list(report.machine()) == ["cpu", "instructions", "cores", "memory_gib", "system", "python"]


def test_no_rows_are_a_result_too(report):
    assert json.loads(report.write("nothing", []).read_text())["rows"] == []


def test_a_table_aligns_names_left_and_numbers_right(report, capsys):
    report.table([{"policy": "cpu", "us": 5.0, "n": 12}, {"policy": "two_lane", "us": 123.456, "n": 3}])
    assert capsys.readouterr().out.splitlines() == [
        "policy       us   n",
        "cpu           5  12",
        "two_lane  123.5   3",
    ]
    report.table([])
    assert capsys.readouterr().out == "(no rows)\n"
