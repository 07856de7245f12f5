"""Whether there can be a GPU, told without torch."""

from __future__ import annotations

import ctypes
import importlib.util
from types import SimpleNamespace

import pytest
import torch

from dali.errors import DaliError
from dali.hardware import gpu
from dali.hardware.gpu import check_gpu

VERSION = """from typing import Optional
__version__ = "2.13.0"
cuda: Optional[str] = {cuda}
git_version = "cuda = hip"
hip: Optional[str] = {hip}
"""


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Pretend that torch's version.py is this text (None: there is no such file), and that there is a driver."""

    def machine(version: str | None, driver: bool) -> None:
        if version is not None:
            (tmp_path / "version.py").write_text(version)
        spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)

        def load(name: str) -> None:
            if not driver:
                raise OSError(name)

        monkeypatch.setattr(ctypes, "CDLL", load)

    return machine


def test_what_the_files_of_torch_say_is_what_torch_says():
    built = {name for name in ("cuda", "hip") if getattr(torch.version, name)}
    assert gpu._builds() == built


def test_torch_without_cuda(machine):
    machine(VERSION.format(cuda=None, hip=None), driver=True)
    with pytest.raises(DaliError, match=r"Device 'cuda:1' was asked for, but torch was built without CUDA"):
        check_gpu("cuda:1")


@pytest.mark.parametrize("version", [VERSION.format(cuda="'13.0'", hip=None), "another layout", None])
def test_no_driver(machine, version):
    machine(version, driver=False)
    with pytest.raises(DaliError, match=r"there is no CUDA driver here.*\nInstall"):
        check_gpu("cuda")


@pytest.mark.parametrize(
    ("version", "driver"),
    [
        (VERSION.format(cuda="'13.0'", hip=None), True),
        (VERSION.format(cuda=None, hip="'7.0'"), False),  # AMD's, which torch calls cuda, too
        ("another layout", True),
        (None, True),
    ],
)
def test_torch_is_asked_where_its_files_do_not_rule_it_out(machine, version, driver):
    machine(version, driver)
    check_gpu("cuda")
