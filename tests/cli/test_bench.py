"""`dali bench`: its table, its machine-readable outputs, and what it refuses."""

from __future__ import annotations

import csv
import io
import json

import pytest

from dali.kernels import native
from on_disk import load_on_disk

SIM = ("--device", "sim:paper", "--vram", "3MiB")
QUICK = ("-p", "16", "-n", "4", "-r", "2")


def test_the_table_has_a_row_a_test(run):
    code, out, _ = run("bench", *QUICK)
    assert code == 0
    head, rule, *rows = out.splitlines()
    assert "t/s" in head
    assert set(rule) <= set("|-: ")
    assert [row.split("|")[4].strip() for row in rows] == ["pp16", "tg4"]
    assert all("±" in row for row in rows)


def test_json_rows_have_llama_benchs_keys_and_consistent_numbers(run):
    code, out, _ = run("bench", *QUICK, "-o", "json", "-t", "2")
    assert code == 0
    prompt, generation = json.loads(out)
    assert (prompt["test"], prompt["n_prompt"], prompt["n_gen"]) == ("pp16", 16, 0)
    assert (generation["test"], generation["n_prompt"], generation["n_gen"]) == ("tg4", 0, 4)
    for row, tokens in ((prompt, 16), (generation, 4)):
        assert row["n_threads"] == (2 if native.AVAILABLE else row["n_threads"])
        assert row["model_filename"] == "dali-tiny"
        assert len(row["samples_ts"]) == len(row["samples_ns"]) == 2
        assert row["avg_ts"] == pytest.approx(sum(row["samples_ts"]) / 2)
        assert row["samples_ts"][0] == pytest.approx(tokens / row["samples_ns"][0] * 1e9, rel=1e-6)
        shares = [row[f"{part}_percent"] for part in ("experts", "dense", "attention", "rest")]
        if native.AVAILABLE:
            assert sum(shares) == pytest.approx(100)
            assert all(share > 0 for share in shares)
    if native.AVAILABLE:
        speed, bandwidth = generation["avg_ts"], generation["read_bandwidth"]
        by_hand = 100 * speed * generation["token_bytes"] / bandwidth
        assert generation["roofline_percent"] == pytest.approx(by_hand, rel=0.9)  # a median of ratios
        assert 0 < generation["token_bytes"] < generation["model_size"]


@pytest.mark.skipif(not native.AVAILABLE, reason="experts on disk are for compiled kernels")
def test_a_model_is_as_large_wherever_its_experts_are(run, monkeypatch, dali_tiny):
    rows = ("bench", "-p", "4", "-n", "0", "-r", "1", "-o", "json")
    (in_ram,) = json.loads(run(*rows)[1])
    llm = load_on_disk(monkeypatch, dali_tiny, 8)
    monkeypatch.setattr("dali.cli.bench.load_model", lambda *given: llm)
    (on_disk,) = json.loads(run(*rows)[1])
    assert on_disk["model_size"] == in_ram["model_size"]


def test_jsonl_and_csv_hold_the_same_rows(run):
    _, out, _ = run("bench", *QUICK, "-o", "jsonl")
    assert [json.loads(line)["test"] for line in out.splitlines()] == ["pp16", "tg4"]
    _, out, _ = run("bench", *QUICK, "-o", "csv")
    assert [row["test"] for row in csv.DictReader(io.StringIO(out))] == ["pp16", "tg4"]


def test_zero_leaves_a_kind_out_and_lists_make_several_tests(run):
    _, out, _ = run("bench", "-p", "0", "-n", "2,3", "-r", "1", "-o", "jsonl")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["test"] for row in rows] == ["tg2", "tg3"]
    assert [row["stddev_ts"] for row in rows] == [0, 0]


def test_a_prompt_may_fill_the_context(run):
    code, out, _ = run("bench", "-p", "512", "-n", "0", "-r", "1", "-o", "json")
    assert code == 0
    assert json.loads(out)[0]["test"] == "pp512"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-p", "0", "-n", "0"), "nothing to measure"),
        (("-p", "513"), "pp513 does not fit a context of 512 tokens"),
        (("-n", "4,900"), "tg900 does not fit"),
        (("-p", "-1"), "--n-prompt cannot be '-1'"),
        (("-r", "0"), "--repetitions cannot be '0'"),
        (("-o", "xml"), "--output cannot be 'xml'"),
        (("-t", "100000"), "--threads 100000 is out of range: with more than 4 a core"),
        (("one", "two"), "takes one MODEL, not 2 words"),
        (("--batch", "0"), "--batch cannot be '0'"),
        (("--batch", "100000000"), "pp512 x 100000000 keeps"),
        (("--compare", "default,lru"), "the device is cpu"),
        ((*SIM, "--compare", "default,nobody"), "no system 'nobody'"),
        ((*SIM, "--compare", "lru,lru"), "names a system twice"),
        ((*SIM, "--compare", "lru", "--assign", "cpu"), "so no --assign"),
        ((*SIM, "--compare", "lru", "--explain"), "so no --explain"),
        (("no-such-model",), "No model called 'no-such-model'"),
    ],
)
def test_what_cannot_be_meant_is_refused(refused, arguments, said):
    code, problem, _ = refused("bench", *arguments)
    assert code == 2
    assert said in problem


def test_a_batch_counts_the_tokens_of_all_sequences(run):
    code, out, _ = run("bench", *QUICK, "--batch", "3", "-o", "json")
    assert code == 0
    for row, name, tokens in zip(json.loads(out), ("pp16 x 3", "tg4 x 3"), (48, 12), strict=True):
        assert (row["test"], row["n_sequences"]) == (name, 3)
        assert row["samples_ts"][0] == pytest.approx(tokens / row["samples_ns"][0] * 1e9, rel=1e-6)


def test_systems_take_turns_on_one_model_and_each_is_as_fast_as_alone(run):
    tests = ("-p", "0", "-n", "6", "-r", "2", "-o", "json", *SIM)
    code, out, _ = run("bench", *tests, "--compare", "fiddler,all-cpu")
    assert code == 0
    rows = json.loads(out)
    assert [(row["system"], row["modelled"], row["device"]) for row in rows] == [
        ("fiddler", True, "sim:paper"),
        ("all-cpu", True, "sim:paper"),
    ]
    for row in (
        rows
    ):  # modelled times repeat: fiddler and all-cpu keep their residents, so that nothing is left of a turn
        _, out, _ = run("bench", *tests, "--system", row["system"])
        (alone,) = json.loads(out)
        assert row["samples_ns"] == pytest.approx(alone["samples_ns"], rel=1e-3)
    _, out, err = run("bench", *tests[:-6], *SIM, "--explain")
    assert "t/s, modelled" in out
    assert "times are modelled, and lanes run side by side" in err
    assert "roofline" not in out


def test_torchs_kernels_are_measured_without_a_roofline(run, monkeypatch):
    monkeypatch.setenv(native.VARIABLE, "torch")
    _, out, _ = run("bench", "-p", "0", "-n", "2", "-r", "1", "-o", "json")
    (row,) = json.loads(out)
    assert row["kernels"] == "torch"
    assert row["roofline_percent"] is None
    assert row["experts_percent"] is None
