"""`dali simulate`: traces in, a comparison out."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dali.hardware import own, profile
from dali.replay.traces.trace import write
from measured import ACCELERATED, MACHINE, measured
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
    assert (code, err) == (0, f"{tmp_path}/r.html: tables and plots, for a browser\n")
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert len(rows) == 16
    assert len(out.splitlines()) > 16
    assert "modelled" in out
    assert {row["shape"] for row in rows} == {"mixtral-8x7b"}
    assert (tmp_path / "r.html").read_text().startswith("<!DOCTYPE html>")


def test_a_page_of_experts_on_disk(run, trace, tmp_path):
    code, _, _ = run(
        "simulate", trace, "--ram", "25%,50%,75%", "--profile", "laptop-8gb", "--shape", "qwen3-30b-a3b",
        "--policy", "default,fading,lru", "--json", str(tmp_path / "r.json"), "--html", str(tmp_path / "r.html"),
    )  # fmt: skip
    assert code == 0
    page, rows = (tmp_path / "r.html").read_text(), json.loads((tmp_path / "r.json").read_text())["rows"]
    for row in rows:
        drawn = f"<title>{row['policy']}: {row['hit_rate']:.4g} at {row['ram_places'] / 24 * 100:.3g}</title>"
        assert drawn in page
        assert f"<title>Belady: {row['belady_disk_hit_rate']:.4g} at" in page
        assert f"<title>bound: {row['bound_tokens_per_second']:.4g} at" in page
        waits = 1e3 * row["stall_share"] / row["tokens_per_second"]
        assert f"<title>waiting for reads, {row['policy']}: {waits:.4g}</title>" in page
    assert page.count("<figure>") == 7  # two curves, bars for each RAM, by layer, how often experts are used
    assert "<b>lru</b>: Least recently used: the expert whose last use" in page

    code, _, _ = run(
        "simulate", trace, "--ram", "50%", "--profile", "laptop-8gb", "--cache-slots", "2", "--policy",
        "fading,lru", "--json", str(tmp_path / "r.json"), "--html", str(tmp_path / "r.html"),
    )  # fmt: skip
    page, rows = (tmp_path / "r.html").read_text(), json.loads((tmp_path / "r.json").read_text())["rows"]
    assert code == 0
    assert page.count("<figure>") == 5
    for row in rows:  # one size alone: bars, and the bounds beside them
        assert f">{row['hit_rate']:.4g}</text>" in page
        assert f"bound {row['belady_disk_hit_rate']:.4g}</text>" in page


def test_all_systems_are_compared_their_lossy_parts_off(run, trace):
    _, everything, _ = run("simulate", trace, "--cache-slots", "50%")
    assert "all-cpu" in everything
    assert "\n  daop " in everything
    assert "off, as they change the output: daop (predicted routing, " in everything
    for name in ("all", "lossless"):
        assert run("simulate", trace, "--cache-slots", "50%", "--policy", name)[1] == everything
    assert "off, as they" not in run("simulate", trace, "--cache-slots", "50%", "--policy", "lru")[1]


def test_caches_alone(run, trace):
    code, out, _ = run("simulate", trace, "--cache-only", "--cache-slots", "4")
    assert code == 0
    assert "tok/s " not in out.splitlines()[1]
    ranked = [line.split()[:2] for line in out.splitlines()[2:9]]
    assert {name for name, _ in ranked} == {
        "lru",
        "lfu",
        "lfu-age",
        "mrs",
        "random",
        "belady",
        "belady-bypass",
    }
    assert ranked[0][0] == "belady-bypass"
    assert [float(hits) for _, hits in ranked] == sorted([float(hits) for _, hits in ranked], reverse=True)


def test_the_columns_are_explained_on_request(run, trace):
    flags = ("simulate", trace, "--cache-only", "--cache-slots", "4")
    assert "--explain` says" in run(*flags)[1]
    assert "share of active experts found resident" in run(*flags, "--explain")[1]


def test_a_policy_from_a_file(run, refused, trace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    policy = tmp_path / "mine.py"
    policy.write_text("from dali.policies.cache.lru import Policy\n")
    code, out, _ = run(
        "simulate", trace, "--policy", "./mine.py,default", "--cache-slots", "50%", "--html", "r.html"
    )
    assert code == 0
    assert "\n  ./mine.py " in out
    page = (tmp_path / "r.html").read_text()
    assert f"dali simulate {trace} --policy ./mine.py,default --cache-slots 50%</p>" in page
    policy.write_text(
        "from dali.policies.cache import CachePolicy, Swap\nclass Policy(CachePolicy):\n"
        "    def observe(self, layer, workload, resident, *rest):\n        return [Swap(min(resident), 99)]\n"
    )
    code, problem, fix = refused("simulate", trace, "--policy", "mine.py", "--cache-slots", "50%")
    assert (code, problem) == (
        1,
        "The cache policy at mine.py, line 3, swaps 99, which is no expert: they are 0 to 7 (layer 0, step 1).",
    )
    assert "docs/POLICIES.md" in fix
    policy.write_text("1/0")
    code, problem, _ = refused("simulate", trace, "--policy", "mine.py")
    assert (code, problem) == (
        2,
        "The policy file mine.py, line 1, raises ZeroDivisionError (division by zero).",
    )


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
        (["TRACE", "--cache-only", "--ram", "50%"], "no disk beneath"),
        (["TRACE", "--ram", "much"], "--ram cannot be 'much'"),
        (["TRACE", "--ram", "4KiB"], "--ram 4KiB holds 1 of the experts"),
        (["TRACE", "--ram", "50%", "--policy", "hybrimoe"], "no policy 'hybrimoe' for a pool in RAM"),
        (["TRACE", "--json", "/nowhere/r.json"], "no file that can be written"),
    ],
)
def test_bad_requests(refused, trace, arguments, said):
    code, problem, _ = refused("simulate", *[trace if word == "TRACE" else word for word in arguments])
    assert code == 2
    assert said in problem


def test_policies_are_named_with_their_variants(refused, run, trace):
    fix = refused("simulate", trace, "--policy", "best")[2]
    names = fix.removeprefix("Use one of ").removesuffix(", or a file that ends in .py.").split(", ")
    assert {"hobbit", "hobbit:cpu"} < set(names)
    assert names == [line.split()[0] for line in run("run", "--list-policies")[1].splitlines()]


def test_the_report_is_written_before_a_reader_of_the_table_may_leave(run, trace, tmp_path, monkeypatch):
    def leave(*given: object) -> str:
        raise BrokenPipeError

    monkeypatch.setattr("dali.replay.report.table.table", leave)
    monkeypatch.setattr("dali.cli.main._drop_output", lambda: None)
    file = tmp_path / "r.html"
    assert run("simulate", trace, "--policy", "lru", "--html", str(file))[0] == 141
    assert file.read_text().endswith("</html>\n")


def test_a_report_that_cannot_be_written_does_not_take_the_table_too(run, trace, tmp_path, monkeypatch):
    monkeypatch.setattr("dali.replay.report.table.table", lambda *given: "the table")
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


def test_experts_on_disk(run, trace, tmp_path):
    file = str(tmp_path / "r.json")
    code, out, err = run("simulate", trace, "--ram", "16KiB,50%", "--json", file)
    assert (code, err) == (0, "")
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert [(row["ram"], row["ram_places"], row["policy"]) for row in rows] == [
        (ram, places, policy)
        for ram, places in (("16KiB", 4), ("50%", 12))
        for policy in ("default", "balanced", "fading", "lfu", "lru")
    ]
    for row in rows:
        assert row["hit_rate"] <= row["belady_disk_hit_rate"]
        assert row["tokens_per_second"] <= row["bound_tokens_per_second"]
        assert row["accelerator_hit_rate"] is None
    assert "RAM for 4 experts (16KiB), no accelerator" in out
    for word in ("(belady)", "(bound)", "stall", "amplif", "signal missing: predictions"):
        assert word in out
    assert " accel " not in out
    assert "waited for reads" in run("simulate", trace, "--ram", "50%", "--explain")[1]


def test_experts_that_a_profile_has_read_through_the_page_cache_are_replayed_so(run, trace, tmp_path):
    file = tmp_path / "plain.json"
    file.write_text(measured(plain_bandwidth=4.5e9, plain_queue_depth=3.0).to_json())
    code, out, _ = run("simulate", trace, "--ram", "50%", "--policy", "lru", "--profile", str(file))
    assert code == 0
    assert "RAM for 12 experts (50%), others read through the page cache, no accelerator" in out


def test_three_tiers(run, trace):
    code, out, _ = run("simulate", trace, "--ram", "50%", "--cache-slots", "2", "--policy", "fading,lru")
    assert code == 0
    assert "RAM for 12 experts (50%), 2 slots a layer on the accelerator" in out
    assert " accel " in out


def test_a_profile_without_a_disk_is_refused(refused, trace, tmp_path):
    data = json.loads(profile.load("paper").to_json())
    for name in profile.DISK:
        del data["figures"][name]
    (tmp_path / "old.json").write_text(json.dumps(data))
    flags = ("simulate", trace, "--ram", "50%", "--profile", str(tmp_path / "old.json"))
    code, problem, fix = refused(*flags)
    assert code == 2
    assert problem == "The hardware profile paper does not say how fast its disk is."
    assert "disk_bandwidth, disk_latency, disk_queue_depth" in fix


@pytest.fixture
def own_profile(monkeypatch):
    """Writes what was measured of this machine."""

    def write(**values):
        monkeypatch.setattr("dali.hardware.own.this_machine", lambda folder: MACHINE)
        own.write(measured(MACHINE, **values))

    return write


def test_this_machine_is_what_is_replayed_on_once_it_was_measured(run, trace, own_profile):
    own_profile(**ACCELERATED)
    _, out, err = run("simulate", trace, "--cache-slots", "50%", "--policy", "lru")
    assert "profile machine" in out
    assert "measured on 2026-11-30 by dali 0.1" in err
    _, out, err = run("simulate", trace, "--cache-slots", "50%", "--policy", "lru", "--profile", "paper")
    assert "profile paper" in out
    assert "measured" not in err


def test_a_machine_without_an_accelerator_serves_replays_that_have_none(run, refused, trace, own_profile):
    own_profile()
    assert "profile machine" in run("simulate", trace, "--ram", "50%", "--policy", "lru")[1]
    assert "profile paper" in run("simulate", trace, "--cache-slots", "50%", "--policy", "lru")[1]
    assert (
        "profile paper" in run("simulate", trace, "--ram", "50%", "--cache-slots", "2", "--policy", "lru")[1]
    )
    code, problem, fix = refused("simulate", trace, "--cache-slots", "50%", "--profile", "machine")
    assert code == 2
    assert problem == "The hardware profile machine is of a machine without an accelerator."
    assert "dali bench hw" in fix


def test_a_broken_profile_of_this_machine_is_said_and_the_replay_goes_on(run, trace, own_profile):
    own_profile()
    own.own_path().write_text("{")
    code, out, err = run("simulate", trace, "--cache-slots", "50%", "--policy", "lru")
    assert code == 0
    assert "profile paper" in out
    assert "set aside as machine.broken.json" in err
