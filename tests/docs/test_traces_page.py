"""docs/TRACES.md: its converter works, its tables say what the code says."""

from __future__ import annotations

import re
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from dali.cli.main import main
from dali.errors import DaliError
from dali.replay.shapes import Shape
from dali.replay.traces import public
from dali.replay.traces.trace import FORMAT, Trace, read, write
from replay.tiny_traces import public_folder, random_trace

PAGE = (Path(__file__).parents[2] / "docs" / "TRACES.md").read_text()
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```python\n(.*?)```", PAGE, re.DOTALL))


def test_the_converter_of_ten_lines_works_as_the_import_does(tmp_path):
    trace = random_trace(sequences=1, prompt=0)
    (tmp_path / "convert.py").write_text(FILES["convert.py"])
    cells = [
        ((token, layer), cell) for token, layers in enumerate(trace.ids) for layer, cell in enumerate(layers)
    ]
    rows = [f"{token},{layer},{expert}" for (token, layer), cell in cells for expert in cell]
    (tmp_path / "routes.csv").write_text("\n".join(["token,layer,expert", *rows]))
    command = [
        sys.executable,
        str(tmp_path / "convert.py"),
        str(tmp_path / "routes.csv"),
        str(tmp_path / "own.npz"),
    ]
    subprocess.run(command, check=True)
    assert (
        main(["trace", "--import", str(tmp_path / "routes.csv"), "-o", str(tmp_path / "imported.npz")]) == 0
    )
    own, imported = read(tmp_path / "own.npz"), read(tmp_path / "imported.npz")
    assert np.array_equal(own.ids, trace.ids)
    assert np.array_equal(imported.ids, own.ids)
    assert (own.ids.dtype, own.experts) == (imported.ids.dtype, imported.experts)
    assert len(FILES["convert.py"].splitlines()) <= 10


def test_every_array_and_key_is_described():
    arrays = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))
    fields = {"ids", "seq_ptr", "phase", "meta", "weights", "scores", "gate_inputs", "embeddings"}
    assert fields | {"predicted_KIND_D"} <= arrays
    assert fields - {"meta"} <= set(Trace.__dataclass_fields__)
    assert f'`"{FORMAT}"`' in PAGE
    assert all(f"`{name}`" in PAGE for name in Shape.__dataclass_fields__)


def test_the_public_traces_are_those_the_scripts_know():
    rows = re.findall(r"^\| `(\S+)\.npz` \|.*\| `(\w{64})` \| `(\w{64})` \|$", PAGE, re.MULTILINE)
    assert {name: routing for name, _, routing in rows} == {
        name: source.routing for name, source in public.PUBLIC.items()
    }
    folder = public_folder()
    for name, file, _ in rows:
        assert sha256((folder / f"{name}.npz").read_bytes()).hexdigest() == file
        public.read(folder / f"{name}.npz")


def test_other_routing_under_a_public_traces_name_is_refused(tmp_path):
    write(tmp_path / "olmoe-1b-7b_dev.npz", random_trace())
    with pytest.raises(DaliError, match="is not that of the public trace olmoe-1b-7b_dev"):
        public.read(tmp_path / "olmoe-1b-7b_dev.npz")
    write(tmp_path / "mine.npz", random_trace())
    assert public.read(tmp_path / "mine.npz").tokens == random_trace().tokens
