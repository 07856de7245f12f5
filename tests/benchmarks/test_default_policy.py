"""What docs/EVALUATION.md says of the default is what its result file holds."""

import json
import sys
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_evaluations_table_is_the_results(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "policies"))
    script = import_module("default_policy")
    monkeypatch.setattr(sys, "argv", ["default_policy.py"])
    script.main()
    table = capsys.readouterr().out
    result = json.loads((ROOT / "benchmarks/results/default_policy.json").read_text("utf-8"))
    assert table.count("\n") == 3 + len({row["trace"] for row in result["rows"]})
    assert table in (ROOT / "docs/EVALUATION.md").read_text("utf-8")
