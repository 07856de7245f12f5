"""Scripts that write GGUF files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "benchmarks" / "tools"


@pytest.mark.parametrize("script", ["export_gguf.py", "random_gguf.py", "walk_gguf.py"])
def test_without_the_gguf_package_they_say_how_to_get_it(script: str) -> None:
    code = "import runpy, sys; sys.modules['gguf'] = None; runpy.run_path(sys.argv[1], run_name='__main__')"
    run = subprocess.run([sys.executable, "-c", code, str(SCRIPTS / script)], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr == "This needs the gguf package.\nInstall it: pip install gguf.\n"
