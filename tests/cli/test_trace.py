"""`dali trace`: prompts in, a trace out."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest

from dali.replay.traces.trace import read


@pytest.fixture
def stdin(monkeypatch):
    def give(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return give


def test_prompts_from_a_file(run, tmp_path):
    (tmp_path / "prompts.txt").write_text("Hello!\n\nTell me a story.\n")
    file = tmp_path / "t.npz"
    code, out, err = run(
        *("trace", "-o", str(file), "--prompts", str(tmp_path / "prompts.txt")),
        *("-n", "5", "--batch", "2", "--seed", "7"),
    )
    assert (code, out) == (0, "")
    assert "2 sequences" in err
    trace = read(file)
    assert (trace.sequences, trace.meta["model"]) == (2, "dali-tiny")
    assert trace.signals == {"weights", "scores"}
    assert (trace.meta["batch"], trace.meta["sampling"]["seed"]) == (2, 7)  # how to record it again


def test_prompts_on_stdin_as_they_are(run, stdin, tmp_path):
    stdin(b"Once upon a time\n")
    code, _, _ = run("trace", "dali-tiny", "-o", str(tmp_path / "t.npz"), "-n", "3", "--raw", "--temp", "0")
    assert code == 0
    assert read(tmp_path / "t.npz").tokens < 20


def test_routing_is_the_same_under_an_accelerator(run, tmp_path):
    (tmp_path / "prompts.txt").write_text("Hello!\n")
    traces = []
    for name, device in (
        ("cpu", ()),
        ("sim", ("--device", "sim:paper", "--vram", "2MiB", "--system", "lru")),
    ):
        file = tmp_path / f"{name}.npz"
        code, _, _ = run(
            *("trace", "-o", str(file), "--prompts", str(tmp_path / "prompts.txt"), "-n", "4", "--temp", "0"),
            *device,
        )
        assert code == 0
        traces.append(read(file))
    assert np.array_equal(traces[0].ids, traces[1].ids)


def test_another_tools_routing_is_made_a_trace_that_can_be_replayed(run, tmp_path):
    rows = [
        f"{step},{layer},{(step + layer + k) % 8}" for step in range(20) for layer in (1, 2) for k in range(2)
    ]
    (tmp_path / "routes.csv").write_text("\n".join(["token,layer,expert", *rows]))
    file = str(tmp_path / "t.npz")
    page = tmp_path / "t.html"
    code, out, err = run(
        *("trace", "--import", str(tmp_path / "routes.csv"), "olmoe-1b-7b", "-o", file, "--plot", str(page))
    )
    assert page.read_text().count("<svg") == 3
    assert (code, out) == (0, "")
    assert "a layer is taken to have 8" in err
    assert "1 sequence, 0 prompt + 20 answer tokens, 2 layers" in err
    assert read(file).meta["model"] == "olmoe-1b-7b"
    code, out, _ = run("simulate", file, "--policy", "lru", "--cache-slots", "50%")
    assert code == 0
    assert "lru" in out


def test_an_imported_files_bad_field_is_named(refused, tmp_path):
    (tmp_path / "routes.csv").write_text("step,layer,expert\n0,0,-1\n")
    code, problem, fix = refused(
        "trace", "--import", str(tmp_path / "routes.csv"), "-o", str(tmp_path / "t.npz")
    )
    assert code == 1
    assert problem.startswith("Row 2, column 'expert',")
    assert "docs/TRACES.md" in fix
    assert not (tmp_path / "t.npz").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trace"], "needs a file"),
        (["trace", "-o", "t.npz", "--import", "none.csv"], "no file 'none.csv'"),
        (["trace", "-o", "t.npz", "--import", "none.csv", "--hidden"], "records nothing, so no --hidden"),
        (["trace", "-o", "t.npz", "--import", "none.csv", "--temp", "0"], "records nothing, so no --temp"),
        (["trace", "-o", "t.npz", "--import", "none.csv", "--raw"], "records nothing, so no --raw"),
        (["trace", "-o", "t.npz", "--experts", "8"], "--experts is of an imported file"),
        (["trace", "a", "b", "-o", "t.npz"], "takes one MODEL"),
        (["trace", "-o", "t.npz", "--batch", "1,2"], "one batch size"),
        (["trace", "-o", "t.npz", "--batch", "0"], "--batch cannot be '0'"),
        (["trace", "-o", "t.npz", "--plot", "t.txt"], "does not know what to write into 't.txt'"),
        (["trace", "-o", "t.npz", "--device", "sim:nobody"], "nobody"),
        (["trace", "-o", "/nowhere/t.npz"], "no file that can be written"),
        (["trace", "-o", "t.npz", "--prompts", "none.txt"], "Cannot read the prompts in 'none.txt'"),
    ],
)
def test_bad_requests(refused, stdin, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    stdin(b"Hello\n")
    code, problem, _ = refused(*arguments)
    assert code == 2
    assert said in problem
    assert list(tmp_path.glob("*.npz")) == []


@pytest.mark.parametrize(("content", "said"), [(b"\n \n", "no prompt in stdin"), (b"\xff\n", "not UTF-8")])
def test_bad_prompts(refused, stdin, tmp_path, content, said):
    stdin(content)
    code, problem, _ = refused("trace", "-o", str(tmp_path / "t.npz"))
    assert code == 2
    assert said in problem
