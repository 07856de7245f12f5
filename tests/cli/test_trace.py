"""`dali trace`: prompts in, a trace out."""

from __future__ import annotations

import io
import sys

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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trace"], "needs a file"),
        (["trace", "a", "b", "-o", "t.npz"], "takes one MODEL"),
        (["trace", "-o", "t.npz", "--batch", "1,2"], "one batch size"),
        (["trace", "-o", "t.npz", "--batch", "0"], "--batch cannot be '0'"),
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
