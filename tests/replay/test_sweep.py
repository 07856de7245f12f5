"""Sweeps: which cells, what their rows say, and the same again."""

import json
import re

import pytest
from tiny_traces import random_trace, trace_of

from dali import systems
from dali.errors import DaliError, UsageError
from dali.hardware import profile
from dali.replay import cells, sweep
from dali.replay.eviction import POLICIES
from dali.replay.report.page import page
from dali.replay.report.table import as_json, table
from dali.replay.shapes import SHAPES, shape_of
from dali.replay.traces.trace import write


@pytest.fixture(autouse=True)
def forget():
    """Traces are remembered by path, and tests reuse paths' names."""
    for remembered in (cells.read_trace, cells.steps_of):
        remembered.cache_clear()


@pytest.fixture
def path(tmp_path):
    write(tmp_path / "tiny.npz", random_trace(answer=20))
    return str(tmp_path / "tiny.npz")


def planned(path, policies=("default", "lru", "all-cpu"), **other):
    choice = {"profile_names": ["paper"], "shapes": ["own"], "batches": [1, 2], "cache_slots": ["25%", "4"]}
    return cells.plan([path], policies, **(choice | {"tokens": None, "seed": 0} | other))


def test_every_cell_has_a_row(path):
    rows = [outcome.row for outcome in sweep.sweep(planned(path))]
    assert len(rows) == 2 * 2 * 3
    keys = {"policy", "trace", "profile", "shape", "batch", "cache_slots", "hit_rate", "tokens_per_second"}
    assert all(keys <= row.keys() for row in rows)
    assert {(row["cache_slots"], row["slots"]) for row in rows} == {("25%", 2), ("4", 4)}
    for row in rows:
        assert row["modelled"] is True
        assert row["tokens_per_second"] <= row["bound_tokens_per_second"]
        assert (row["cold_hit_rate"] is None) == (row["batch"] > 1)


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "belady-bypass"])
@pytest.mark.parametrize("slots", ["1", "2", "4"])
def test_no_cache_is_above_the_optimum(path, policy, slots):
    """Of those that fill on demand: a window policy may swap an expert in ahead of its use, and beat it."""
    rows = [
        one.row
        for one in sweep.sweep(planned(path, [policy], batches=[1, 2], cache_slots=[slots], cache_only=True))
    ]
    assert all(row["hit_rate"] <= row["belady_bypass_hit_rate"] for row in rows)


def test_regret_is_against_the_best_of_the_cell(path):
    rows = [outcome.row for outcome in sweep.sweep(planned(path, batches=[2], cache_slots=["4"]))]
    best = max(row["tokens_per_second"] for row in rows)
    for row in rows:
        assert row["regret"] == pytest.approx(best / row["tokens_per_second"] - 1, abs=1e-5)
    assert min(row["regret"] for row in rows) == 0


def test_missing_signals_are_named(path, tmp_path):
    outcomes = sweep.sweep(found := planned(path, policies=["default"]))
    assert outcomes[0].row["signals"] == "signal missing: gate_inputs"
    assert all(
        "`dali trace --hidden` records gate_inputs" in text
        for text in (table(outcomes), page(outcomes, found))
    )
    full = random_trace(answer=20)
    known = random_trace(answer=20, predicted={("ridge", 1): full.ids})
    write(tmp_path / "known.npz", known)
    outcomes = sweep.sweep(found := planned(str(tmp_path / "known.npz"), policies=["default"]))
    assert outcomes[0].row["signals"] == "complete"
    assert not any("--hidden" in text for text in (table(outcomes), page(outcomes, found)))


def test_bypass_is_told_from_belady_without(path):
    outcomes = sweep.sweep(
        found := planned(path, policies=["lru", "belady-bypass"], batches=[2], cache_only=True)
    )
    for outcome in outcomes:
        if outcome.row["policy"] == "belady-bypass":
            assert outcome.row["hit_rate"] == outcome.row["belady_bypass_hit_rate"]
    assert [line.split()[0] for line in table(outcomes).splitlines()[2:5]] == [
        "belady-bypass",
        "lru",
        "(random)",
    ]
    drawn = page(outcomes, found)
    assert ">belady</text>" in drawn  # the curve of the policy that has that name
    assert re.findall("<th>belady.*?</th>", drawn) == ["<th>belady-bypass</th>"]


def test_the_bound_lets_each_step_choose_its_residents(path):
    """So with as many slots as a step's experts need, more do not raise it; fewer lower it."""
    rows = [
        one.row
        for one in sweep.sweep(planned(path, policies=["lru"], batches=[1], cache_slots=["1", "4", "8"]))
    ]
    few, enough, all_of_them = (row["bound_tokens_per_second"] for row in rows)
    assert few < enough == all_of_them


def test_the_cpu_alone_computes_all_of_it(path):
    (cell,) = planned(path, policies=["lru"], batches=[1], cache_slots=["4"])
    row, trace, figures = sweep.sweep([cell])[0].row, cells.read_trace(path), profile.load("paper")
    shape = shape_of(trace, "own")
    bandwidth, pace = figures["cpu_bandwidth"], figures["cpu_rate"]
    expert = max(
        shape.expert_bytes / bandwidth, 2 * shape.matrices * shape.hidden * shape.intermediate / pace
    )
    dense = max(shape.dense_bytes / bandwidth, 2 * shape.dense_parameters / pace)
    token = trace.layers * (trace.top_k * expert + dense)
    assert row["cpu_alone_tokens_per_second"] == pytest.approx(1 / token, rel=1e-5)


def test_where_launches_take_longer_than_experts_dali_chooses_the_cpu_alone(path):
    """Those of the trace have 3 KiB, of Qwen3-30B-A3B 2.5 MiB."""
    small, large = sweep.sweep(
        planned(path, policies=["lru"], batches=[1], cache_slots=["4"], shapes=["own", "qwen3-30b-a3b"])
    )
    assert small.row["cpu_alone_chosen"]
    assert not large.row["cpu_alone_chosen"]
    assert "(cpu alone, dali's choice)" in table([small])
    assert "(cpu alone)" in table([large])


def test_a_cold_start_forgets_what_other_sequences_taught(path):
    lru = sweep.sweep(planned(path, policies=["lru"], batches=[1], cache_only=True))
    assert all(one.row["cold_hit_rate"] < one.row["hit_rate"] for one in lru)
    assert all(one.row["tokens_per_second"] is None for one in lru)


def test_processes_change_nothing(path, monkeypatch):
    mine = as_json(sweep.sweep(planned(path)))
    monkeypatch.setattr(sweep, "PARALLEL_EVENTS", 0)
    assert as_json(sweep.sweep(planned(path))) == mine


def test_a_policy_from_a_file_goes_along_to_processes_and_its_errors_come_back(path, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "PARALLEL_EVENTS", 0)
    policy = tmp_path / "mine.py"
    policy.write_text("from dali.policies.cache.lru import Policy\n")
    rows = [
        one.row
        for one in sweep.sweep(planned(path, [str(policy)], batches=[2], cache_slots=["4"]), processes=2)
    ]
    assert [row["policy"] for row in rows] == [str(policy)]
    policy.write_text("class Policy:\n    def assign(self, *told):\n        return 1 / 0\n")
    with pytest.raises(DaliError, match=r"mine.py, line 3, raises ZeroDivisionError .* \(layer 0, step 1\)"):
        sweep.sweep(planned(path, [str(policy)], batches=[2], cache_slots=["4"]), processes=2)


def test_the_report_is_the_same_byte_for_byte(path):
    def reports():
        found = planned(path, policies=["default", "lru"], batches=[2])
        outcomes = sweep.sweep(found)
        return as_json(outcomes), table(outcomes), page(outcomes, found)

    first = reports()
    assert reports() == first
    assert json.loads(first[0]).keys() == {"rows"}
    assert len(json.loads(first[0])["rows"]) == 4


def test_the_table_is_ranked_and_says_what_the_columns_mean_on_request(path):
    outcomes = sweep.sweep(planned(path, batches=[1], cache_slots=["25%", "50%"]))
    text = table(outcomes)
    blocks = text.split("\n\n")[:2]
    common = "tiny: profile paper, the model's own sizes, batch 1, "
    assert [block.splitlines()[0].removeprefix(common) for block in blocks] == [
        "2 slots a layer (25%)",
        "4 slots a layer (50%)",
    ]
    for block in blocks:
        lines = [line.split() for line in block.splitlines()[2:]]
        speeds = [float(line[3]) for line in lines[:3]]
        assert speeds == sorted(speeds, reverse=True)
        assert (lines[0][4:6], lines[3][0]) == (["0.0", "%"], "(bound)")
        assert float(lines[3][1]) >= speeds[0]
    assert "regret: time lost" not in text
    assert "regret: time lost" in table(outcomes, explain=True)


def test_the_page_ranks_bounds_and_names(path):
    found = planned(path, batches=[1], cache_slots=["25%"])
    text = page(sweep.sweep(found), found, "Made on a day by a <command>")
    rows = [re.findall("<td>(.*?)</td>", row) for row in re.findall("<tr>(.*?)</tr>", text)[1:]]
    speeds = [float(row[8]) for row in rows]
    assert speeds == sorted(speeds, reverse=True)
    bars = text[text.index("Modelled tokens/s by policy") :]
    bound = re.search("bound [0-9,]+", bars)[0]
    names = re.findall(r'text-anchor="end"[^>]*>([^<]+)<', bars)[:4]
    assert names == [*(row[5] for row in rows), bound]
    assert "<h1>dali simulate: tiny</h1><p>Made on a day by a &lt;command&gt;</p>" in text
    assert "prefers-color-scheme: dark" in text


def test_the_page_needs_nothing_else(path):
    found = planned(path)
    text = page(sweep.sweep(found), found)
    assert text.count("<svg") == text.count("</svg>") >= 5
    assert not re.search(r"<script|<link|<img|src=|@import", text)
    assert all(
        name in text for name in ("belady", "random", "modelled", systems.get("default").title.split("'")[0])
    )


def test_the_page_shows_each_speed_and_explains_its_abbreviations(path):
    found = planned(path)
    text = page(outcomes := sweep.sweep(found), found)
    for row in (outcome.row for outcome in outcomes):
        assert f">{row['tokens_per_second']:,.0f}</text>" in text
    assert all(
        name in text
        for name in ("SRP (segment routing best performance)", "SCH (segment cache best hit rate)")
    )


def test_every_system_replays(path):
    rows = [
        one.row
        for one in sweep.sweep(planned(path, policies=systems.names(), batches=[2], cache_slots=["50%"]))
    ]
    assert [row["policy"] for row in rows] == systems.names()
    assert all(row["tokens_per_second"] > 0 for row in rows)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"cache_slots": ["9"]}, "more than the 8 experts"),
        ({"cache_slots": ["101%"]}, "more than the 8 experts"),
        ({"cache_slots": ["-1"]}, "cannot be '-1'"),
        ({"cache_slots": ["half"]}, "cannot be 'half'"),
        ({"cache_slots": ["nan%"]}, "cannot be 'nan%'"),
        ({"batches": [5]}, "the trace tiny has 4"),
        ({"policies": ["best"]}, "no system 'best'"),
        ({"policies": ["default"], "cache_only": True}, "no policy 'default' for a cache alone"),
        ({"profile_names": ["cray"]}, "no hardware profile 'cray'"),
        ({"shapes": ["gpt-9"]}, "no shape 'gpt-9'"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_runs(path, other, said):
    with pytest.raises(UsageError) as error:
        planned(path, **other)
    assert said in error.value.problem


def test_shapes():
    assert shape_of(random_trace(), "own").hidden == 64
    assert shape_of(random_trace(), "mixtral-8x7b") is SHAPES["mixtral-8x7b"]
    unsaid = trace_of([[0]], 2)
    with pytest.raises(UsageError, match="does not say the sizes"):
        shape_of(unsaid, "own")
    unsaid.meta["model"] = "openai/gpt-oss-20b"
    assert shape_of(unsaid, "own") is SHAPES["gpt-oss-20b"]
    unsaid.meta["shape"] = {"hidden": 4}
    with pytest.raises(DaliError, match="malformed"):
        shape_of(unsaid, "own")


def test_published_sizes():
    """Packed w4 experts of the paper's three models, in MB."""
    sizes = {
        name: SHAPES[name].expert_bytes / 1e6
        for name in ("qwen3-30b-a3b", "deepseek-v2-lite", "mixtral-8x7b")
    }
    assert sizes == pytest.approx(
        {"qwen3-30b-a3b": 2.65, "deepseek-v2-lite": 4.87, "mixtral-8x7b": 99.1}, rel=0.01
    )
