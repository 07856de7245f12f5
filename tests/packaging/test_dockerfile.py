"""Dockerfile: what it names is there; and, where DALI_DOCKER says so, what it makes answers."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
import tomllib
import urllib.request
from fnmatch import fnmatch
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from dali.cli import serve
from dali.cli.verbs import VERBS
from dali.serve.http.security import OPEN
from dali.serve.options import PORT

ROOT = Path(__file__).resolve().parents[2]
TEXT = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text("utf-8"), flags=re.MULTILINE)
STEPS = re.findall(r"^([A-Z]+) (.*)$", TEXT.replace("\\\n", " "), re.MULTILINE)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
IGNORED = [
    line for line in (ROOT / ".dockerignore").read_text("utf-8").split("\n") if line and line[0] != "#"
]


def steps(kind: str) -> list[str]:
    return [rest for name, rest in STEPS if name == kind]


def is_sent(path: str) -> bool:
    """Whether docker sends it to the build: of .dockerignore's lines the last that fits holds."""
    sent = True
    for line in IGNORED:
        if fnmatch(path, line.removeprefix("!").removeprefix("**/")):
            sent = line.startswith("!")
    return sent


def test_what_it_copies_is_there_and_is_sent():
    copied = [word for step in steps("COPY") if "--from" not in step for word in step.split()[:-1]]
    assert set(copied) >= {"src", "setup", "pyproject.toml", "requirements.lock"}
    assert [path for path in copied if not (ROOT / path).exists() or not is_sent(path)] == []
    assert not any(
        is_sent(path) for path in (".git", ".venv", "tests", "_native.cpython-313-x86_64-linux-gnu.so")
    )


def test_it_copies_all_that_builds_the_package():
    """Whatever pyproject.toml names a file of."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]
    named = [
        *PROJECT["license-files"],
        tool["scikit-build"]["cmake"]["source-dir"],
        "setup/readme.py",
        "README.md",
    ]
    copied = [word for step in steps("COPY") for word in step.split()[:-1]]
    assert all(any(path == one or path.startswith(f"{one}/") for one in copied) for path in named)


def test_both_its_pythons_are_one_that_dali_runs_on():
    images = {step.split()[0] for step in steps("FROM")}
    [version] = {re.match(r"python:(\d+\.\d+)-slim", image)[1] for image in images}
    assert len(images) == 1
    assert version in SpecifierSet(PROJECT["requires-python"])


def test_it_runs_a_command_that_is_there_as_nobody_special():
    [[entry]], [[verb]] = (list(map(json.loads, steps(kind))) for kind in ("ENTRYPOINT", "CMD"))
    assert entry in PROJECT["scripts"]
    assert verb in VERBS
    assert steps("USER") == ["dali"]


def test_its_settings_are_dalis():
    settings = dict(re.findall(r"(\w+)=(\S+)", " ".join(steps("ENV"))))
    flags = {variable for option in serve.VERB.options for variable in option.variables}
    assert {name for name in settings if name.startswith("DALI_")} <= flags | {"DALI_CACHE_DIR"}
    assert settings["DALI_HOST"] == "0.0.0.0"
    assert json.loads(steps("VOLUME")[0]) == ["/models", settings["DALI_CACHE_DIR"]]
    assert steps("EXPOSE") == [str(PORT)]
    asked = re.search(r"http://127\.0\.0\.1:(\d+)(/\w+)", " ".join(steps("HEALTHCHECK")))
    assert asked.groups() == (str(PORT), OPEN[0])


def test_the_lock_becomes_constraints():
    """By the commands that the build runs."""
    pins, torch = (
        subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for command in re.findall(r"sed -n '[^']*' requirements.lock", TEXT)
    )
    lock = (ROOT / "requirements.lock").read_text("utf-8")
    assert pins.splitlines() == [line.rstrip("\\ ") for line in lock.splitlines() if re.match(r"\w", line)]
    assert re.fullmatch(r"torch==[\d.]+\n", torch)


def docker(*words: str) -> str:
    return subprocess.run(["docker", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_what_it_makes_answers_with_a_key_only():
    if not os.environ.get("DALI_DOCKER"):
        pytest.skip("Building takes minutes: set DALI_DOCKER to do it.")
    if shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode:
        pytest.skip("docker is not here, or its daemon is not.")
    docker("build", "--tag", "dali-test", ".")
    refused = subprocess.run(["docker", "run", "--rm", "dali-test"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "--api-key" in refused.stderr
    name = docker(
        "run", "--rm", "--detach", "--env", "DALI_API_KEY=k", "--publish", "8000", "dali-test"
    ).strip()
    try:
        port = docker("port", name, "8000").split(":")[-1].strip()
        while docker("inspect", "--format", "{{.State.Health.Status}}", name).strip() != "healthy":
            time.sleep(1)
        asked = urllib.request.Request(f"http://127.0.0.1:{port}/v1/models", headers={"x-api-key": "k"})
        assert b"dali-tiny" in urllib.request.urlopen(asked).read()
        assert docker("exec", name, "id", "--user").strip() != "0"
    finally:
        docker("stop", name)
