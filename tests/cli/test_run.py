"""`dali run` with one prompt."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from transformers import LlamaConfig

from dali import systems
from dali.cli import model as cli_model
from dali.cli import run as run_verb
from dali.cli.chat.template import read_template
from dali.errors import DaliError, UsageError
from scripted import CHATML, save_scripted

STORY = "Tell me a story about a little dog."
SHORT = r"\d+ prompt \+ \d+ answer tokens \| prefill [\d.,]+, decode [\d.,]+ tok/s"
LONG = SHORT + r" \| dense [\d.,]+, experts [\d.,]+ \(w\d\), KV [\d.,]+ MiB \| [\d.,]+ MiB of experts read\n"


@pytest.fixture
def stdin(monkeypatch):
    def give(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return give


def start(*arguments: str, **options: object) -> subprocess.Popen[bytes]:
    line = [sys.executable, "-m", "dali", "run", *arguments]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(line, **(pipes | options))  # type: ignore[call-overload]


def test_the_answer_is_all_there_is_on_stdout(run, story):
    code, out, err = run("run", STORY, "--temp", "0")
    assert (code, out) == (0, story + "\n")
    assert re.fullmatch(f"{SHORT}\n", err)


def test_what_a_folder_has_of_a_prompt_is_not_read_again(run, tmp_path):
    answers = set()
    for begun in (SHORT, r"\d+ prompt \(64 cached\) "):
        ask = ("run", 8 * STORY, "--temp", "0", "-n", "9", "--cache-dir", str(tmp_path / "prompts"))
        code, out, err = run(*ask)
        assert code == 0
        assert re.match(begun, err)
        answers.add(out)
        for thread in threading.enumerate():
            if thread.name == "dali-prefixes":
                thread.join()
    assert len(answers) == 1
    code, out, err = run("run", STORY, "--cache-disk", "1GiB")
    assert (code, out) == (2, "")
    assert "--cache-disk" in err
    assert "--cache-dir" in err


def test_drafts_change_the_summary_alone(run):
    ask = (
        "run",
        "And the sons of Merari; Mahli, and Mushi. And the sons of",
        "--raw",
        "--temp",
        "0",
        "-n",
        "50",
    )
    _, out, _ = run(*ask)
    code, same, err = run(*ask, "--draft", "ngram")
    assert (code, same) == (0, out)
    assert re.fullmatch(rf"{SHORT} \| drafted \d+, \d+ accepted\n", err)


def test_the_prompt_may_come_on_stdin(story):
    with start("--temp", "0", "-n", "9", "--log-level", "warning", stdin=subprocess.PIPE) as process:
        out, err = process.communicate(f"{STORY}\n".encode())
    assert (process.returncode, err) == (0, b"")
    assert out.endswith(b"\n")
    assert 9 < len(out) < len(story)
    assert story.startswith(out.decode().strip())


def test_too_long_a_prompt_is_refused_in_our_own_words_alone(refused, caplog):
    logging.getLogger("transformers").addHandler(caplog.handler)
    code, problem, _ = refused("run", "word " * 600)
    logging.getLogger("transformers").removeHandler(caplog.handler)
    assert code == 2
    assert "with a context of 512 at most 511" in problem
    assert caplog.messages == []


def test_flags_reach_the_engine(run, story):
    code, _, err = run("run", "dali-tiny", STORY, "--temp", "0", "-n", "9", "--quant", "w4", "-t", "1", "-v")
    assert code == 0
    assert re.search(LONG, err)
    assert " 9 answer" in err
    assert "(w4)" in err
    first, second = (run("run", STORY, "--seed", "4", "--temp", "2", "-n", "20")[1] for _ in range(2))
    assert first == second != story[: len(first)]
    assert run("run", STORY, "--temp", "0", "--stop", story[30:36])[1] == story[:30] + "\n"


def test_a_template_replaces_the_models_own(run, tmp_path):
    template = "{{ messages[0]['content'] }} | {{ messages[1]['content'] }}"
    (tmp_path / "template.jinja").write_text(template)
    common = ("--temp", "0", "-n", "5")
    raw = run("run", "dali-tiny", f"Be kind. | {STORY}", "--raw", *common)
    for given in (template, str(tmp_path / "template.jinja")):
        asked = run("run", STORY, "-sys", "Be kind.", "--chat-template", given, *common)
        assert asked[:2] == raw[:2]
        assert asked[2].split("+")[0] == raw[2].split("+")[0]


def test_a_template_is_parsed_before_anything_is_loaded(refused, tmp_path, monkeypatch):
    monkeypatch.setattr(run_verb, "load_model", None)
    file = tmp_path / "template.jinja"
    file.write_text("{% for message in messages %}\n{{ message.content }}\n{% endif %}")
    code, problem, _ = refused("run", "hi there", "--chat-template", str(file))
    assert code == 2
    assert problem.startswith(f"Line 3 of {file} is no Jinja (")


@pytest.mark.parametrize(
    ("words", "said"), [((), True), (("--raw",), False), (("--chat-template", "{{ 1 }}"), False)]
)
def test_a_missing_template_is_said_before_anything_is_loaded(
    refused, tmp_path, dali_tiny, monkeypatch, words, said
):
    model = Path(shutil.copytree(dali_tiny, tmp_path / "plain"))
    config = json.loads((model / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (model / "tokenizer_config.json").write_text(json.dumps(config))

    def load(*arguments: object) -> None:
        raise DaliError("Loaded.", "Well.")

    monkeypatch.setattr("dali.entry.load_source", load)
    _, problem, _ = refused("run", str(model), "hi", *words)
    assert problem == (f"{model} has no chat template." if said else "Loaded.")
    (tmp_path / "prompts").write_text("hi")
    trace = ("trace", str(model), "-o", str(tmp_path / "t.npz"), "--prompts", str(tmp_path / "prompts"))
    if "--chat-template" not in words:
        assert refused(*trace, *words)[1] == problem


def test_transformers_own_template_tags_are_known():
    template = (
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% break %}{% endfor %}"
    )
    assert read_template(template) == template


def test_a_prompt_given_leaves_stdin_alone(run, stdin):
    stdin(b"not read")
    assert run("run", STORY, "--temp", "0", "-n", "1")[0] == 0
    assert sys.stdin.read() == "not read"


def test_a_full_context_is_said(run):
    code, _, err = run("run", STORY, "-c", "20")
    assert code == 0
    assert err.endswith(" | context full\n")


@pytest.mark.parametrize(
    ("words", "model", "is_prompt"),
    [
        ([], "dali-tiny", False),
        (["dali-tiny"], "dali-tiny", False),
        (["org/name"], "org/name", False),
        (["org/name:Q4_0"], "org/name:Q4_0", False),
        (["my model.gguf"], "my model.gguf", False),
        (["Once upon a time"], "dali-tiny", True),
        (["a folder"], "a folder", False),
        (["org/name", "Hello"], "org/name", True),
        (["no such model", "Hello"], "no such model", True),
    ],
)
def test_a_word_alone_is_a_model_unless_it_can_only_be_a_prompt(
    words, model, is_prompt, refused, stdin, tmp_path, monkeypatch
):
    (tmp_path / "a folder").mkdir()
    monkeypatch.chdir(tmp_path)
    stdin(b"" if is_prompt else b"from stdin")

    def locate(name: str, offline: bool, before: object) -> Path:
        raise UsageError(f"Asked for {name}.", "Well.")

    monkeypatch.setattr(cli_model, "locate", locate)
    assert refused("run", *words) == (2, f"Asked for {model}.", "Well.")


def test_a_single_word_that_is_no_model_may_have_been_a_prompt(refused, stdin):
    stdin(b"x")
    code, problem, fix = refused("run", "Hello!")
    assert code == 2
    assert "'Hello!'" in problem
    assert "`dali run dali-tiny 'Hello!'`" in fix


@pytest.mark.parametrize(
    ("content", "problem"), [(b"", "empty"), (b" \n", "empty"), (b"ab\xff", "0xff at offset 2")]
)
def test_stdin_that_is_no_prompt_is_refused(refused, stdin, content, problem):
    stdin(content)
    code, said, _ = refused("run")
    assert code == 2
    assert problem in said


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["dali-tiny", ""], "The prompt is empty."),
        ([""], "The prompt is empty."),
        (["dali-tiny", "caf\udce9"], r"The prompt 'caf\udce9' is not UTF-8."),
        (["a", "b", "c"], "`dali run` takes a MODEL and a PROMPT, not 3 words."),
        (["hi there", "--chat-template", "no/such.jinja"], "Cannot read the chat template 'no/such.jinja'"),
        (["hi there", "--chat-template", "{{ x("], "Line 1 of --chat-template is no Jinja (unexpected"),
        (["hi there", "--chat-template", "{{ 1 / 0 }}"], "The chat template of dali-tiny fails"),
        (["hi there", "-c", "9999"], "The context size 9999 is out of range."),
        (["word " * 600], "The prompt has "),
        (["hi there", "--policy", "best", "--device", "sim:paper"], "--policy cannot be 'best'."),
        (["hi there", "--policy", "lru"], "--system is about an accelerator, and the device is cpu."),
        (["hi there", "--lossy"], "--lossy is about an accelerator, and the device is cpu."),
        (["hi there", "--lossy", "--device", "sim:paper"], "--lossy turns on the lossy parts of a system"),
        (["hi there", "--lossy", "--policy", "lru", "--device", "sim:paper"], "Two lanes + LRU has no lossy"),
        (
            ["hi there", "--policy", "lru", "--cache", "lru", "--device", "sim:paper"],
            "--system lru is a whole",
        ),
        (["hi there", "--policy", "lru", "--cpu-moe", "--device", "sim:paper"], "--system lru is a whole"),
        (["./nowhere", "hi"], "No model called './nowhere'"),
        (["model.gguf", "hi"], "There is no file model.gguf."),
    ],
)
def test_a_request_that_cannot_be_meant_exits_with_2(refused, arguments, problem):
    code, said, _ = refused("run", *arguments)
    assert code == 2
    assert said.startswith(problem)


def test_a_system_is_chosen_by_name_and_its_losses_are_named(run, story):
    code, out, err = run("run", STORY, "--temp", "0", "--device", "sim:paper", "--policy", "hobbit")
    assert (code, out) == (0, story + "\n")
    assert " | hobbit" in err
    assert "lossy" not in err
    choice = ("--device", "sim:paper", "--policy", "mixtral-offloading", "--lossy")
    code, out, err = run("run", STORY, "--temp", "0", "-n", "60", *choice)
    assert code == 0
    assert not story.startswith(out.strip())
    assert " | mixtral-offloading, lossy: 2-3 bit experts" in err


def test_systems_are_listed_with_what_they_lose(run):
    code, out, err = run("run", "--list-policies")
    assert (code, err) == (0, "")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert {*systems.names(), "hobbit:cpu", "collaborative:fifo"} <= set(lines)
    for name, line in lines.items():
        assert ("--lossy" in line) == bool(systems.get(name).lossy)


def test_a_model_that_cannot_be_run_exits_with_1(refused, tmp_path):
    config = tmp_path / "config.json"
    LlamaConfig(num_hidden_layers=1, hidden_size=32, vocab_size=9).save_pretrained(tmp_path)
    assert refused("run", str(tmp_path), "hi")[0] == 1
    config.write_text(json.dumps({"model_type": "unheard-of"}))
    assert refused("run", str(tmp_path), "hi")[0] == 1
    assert refused("run", "org/unknown", "hi", "--offline")[0] == 1
    config.unlink()
    assert refused("run", str(tmp_path), "hi")[0] == 2


def test_ctrl_c_ends_an_answer_quietly(story):
    with start(STORY, "--temp", "0") as process:
        shown = os.read(process.stdout.fileno(), 5)
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate()
    assert process.returncode == 130
    assert story.startswith((shown + rest).decode().removesuffix("\n"))
    assert err == b""


def test_ctrl_c_while_packing_leaves_no_store(tmp_path):
    with start(STORY, env=os.environ | {"DALI_CACHE_DIR": str(tmp_path)}) as process:
        while process.poll() is None and not list(tmp_path.rglob("*.part")):
            time.sleep(0.001)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, out, err) == (130, b"", b"")
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full on this system")
def test_a_full_disk_is_named(run):
    with open("/dev/full", "wb") as full, start("hi there", "-n", "2", stdout=full) as process:
        _, err = process.communicate()
    assert process.returncode == 1
    assert err.decode().splitlines()[-2] == "error: There is no space left where dali writes."


def test_a_reader_that_leaves_ends_it_quietly():
    with start(STORY, "--temp", "0") as process:
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.parametrize("line", ["'hi there' -n 3 >&-", "--help >&-", "--help <&- >&- 2>&-"])
def test_a_stdout_that_is_closed_ends_it_quietly(line):
    command = ["bash", "-c", f"{sys.executable} -m dali run {line}"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (141, b"", b"")


def test_an_answer_needs_no_stderr(story):
    line = f"{sys.executable} -m dali run '{STORY}' --temp 0 2>&-"
    done = subprocess.run(["bash", "-c", line], stdout=subprocess.PIPE, check=False)
    assert (done.returncode, done.stdout.decode()) == (0, story + "\n")


def test_reasoning_is_on_no_pipe(run, tmp_path):
    template = CHATML.replace("m['content']", "m['content'].split('</think>')[-1]")
    script = ["<think>", "Hm.", "</think>", "Hello", "<|im_end|>"]
    model = save_scripted(tmp_path / "model", script, added=("<think>", "</think>"), template=template)
    code, out, err = run("run", str(model), "hi", "--temp", "0", "-n", "9")
    assert (code, out) == (0, "Hello\n")
    assert "Hm." not in err


@pytest.mark.parametrize(
    "given",
    [("--system-prompt", "Be brief."), ("--chat-template", "{}"), ("--chat-template-kwargs", "{}")],
    ids=lambda given: given[0],
)
def test_a_prompt_as_it_is_has_no_template(refused, given):
    code, problem, _ = refused("run", "--raw", *given, "dali-tiny", "Once")
    assert code == 2
    assert problem.endswith(f"as it is, so no {given[0]}.")
