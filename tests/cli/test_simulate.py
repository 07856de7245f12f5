"""`dali simulate`: traces in, a comparison out."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dali.replay.traces.trace import write
from replay.tiny_traces import fields, random_trace


@pytest.fixture
def trace(tmp_path):
    write(tmp_path / "tiny.npz", random_trace(answer=20))
    return str(tmp_path / "tiny.npz")


def test_a_comparison(run, trace, tmp_path):
    files = {"--json": str(tmp_path / "r.json"), "--html": str(tmp_path / "r.html")}
    flags = [part for pair in files.items() for part in pair]
    code, out, err = run(
        "simulate", trace, "--policy", "default,lru", "--cache-slots", "25%,50%", "--batch", "1,2", "--profile",
        "paper,egpu-x4", "--shape", "mixtral-8x7b", "--tokens", "30", *flags,
    )  # fmt: skip
    assert (code, err) == (0, "")
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert len(rows) == 16
    assert len(out.splitlines()) > 16
    assert "modelled" in out
    assert {row["shape"] for row in rows} == {"mixtral-8x7b"}
    assert (tmp_path / "r.html").read_text().startswith("<!DOCTYPE html>")


def test_all_systems_are_compared_their_lossy_parts_off(run, trace):
    _, everything, _ = run("simulate", trace, "--cache-slots", "50%")
    assert "all-cpu" in everything
    assert "\ndaop " in everything
    assert "off, as they change the output: daop (predicted routing, " in everything
    for name in ("all", "lossless"):
        assert run("simulate", trace, "--cache-slots", "50%", "--policy", name)[1] == everything
    assert "off, as they" not in run("simulate", trace, "--cache-slots", "50%", "--policy", "lru")[1]


def test_caches_alone(run, trace):
    code, out, _ = run("simulate", trace, "--cache-only", "--cache-slots", "4")
    assert code == 0
    assert "tok/s " not in out.splitlines()[0]
    assert [line.split()[0] for line in out.splitlines()[1:8]] == [
        "lru", "lfu", "lfu-age", "mrs", "random", "belady", "belady-bypass",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "needs a trace"),
        (["none.npz"], "no trace 'none.npz'"),
        (["TRACE", "--policy", "best"], "no system 'best'"),
        (["TRACE", "--cache-slots", "99"], "more than the 8 experts"),
        (["TRACE", "--batch", "64"], "A batch of 64"),
        (["TRACE", "--batch", "1,x"], "--batch cannot be '1,x'"),
        (["TRACE", "--profile", "cray"], "no hardware profile"),
        (["TRACE", "--shape", "gpt-9"], "no shape"),
        (["TRACE", "--tokens", "0"], "--tokens cannot be '0'"),
        (["TRACE", "--cache-only", "--profile", "paper"], "no times"),
        (["TRACE", "--json", "/nowhere/r.json"], "no file that can be written"),
    ],
)
def test_bad_requests(refused, trace, arguments, said):
    code, problem, _ = refused("simulate", *[trace if word == "TRACE" else word for word in arguments])
    assert code == 2
    assert said in problem


def test_policies_are_named_with_their_variants(refused, run, trace):
    fix = refused("simulate", trace, "--policy", "best")[2]
    names = fix.removeprefix("Use one of ").removesuffix(".").split(", ")
    assert {"hobbit", "hobbit:cpu"} < set(names)
    assert names == [line.split()[0] for line in run("run", "--list-policies")[1].splitlines()]


def test_the_report_is_written_before_a_reader_of_the_table_may_leave(run, trace, tmp_path, monkeypatch):
    def leave(outcomes: object) -> str:
        raise BrokenPipeError

    monkeypatch.setattr("dali.replay.report.table.table", leave)
    monkeypatch.setattr("dali.cli.main._drop_output", lambda: None)
    file = tmp_path / "r.html"
    assert run("simulate", trace, "--policy", "lru", "--html", str(file))[0] == 141
    assert file.read_text().endswith("</html>\n")


def test_a_report_that_cannot_be_written_does_not_take_the_table_too(run, trace, tmp_path, monkeypatch):
    monkeypatch.setattr("dali.replay.report.table.table", lambda outcomes: "the table")
    monkeypatch.setattr(
        "pathlib.Path.replace", lambda *given: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    code, out, err = run("simulate", trace, "--policy", "lru", "--json", str(tmp_path / "r.json"))
    assert (code, out) == (1, "the table\n")
    assert "No space left" in err
    assert not list(tmp_path.glob("*r.json*"))


def test_a_bad_trace(refused, tmp_path):
    arrays = fields(random_trace())
    np.savez(tmp_path / "bad.npz", **(arrays | {"seq_ptr": np.array([0])}))
    code, problem, fix = refused("simulate", str(tmp_path / "bad.npz"))
    assert code == 1
    assert "zero sequences" in problem
    assert "dali trace" in fix
