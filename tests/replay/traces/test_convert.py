"""Other tools' routing: each format read back, and every kind of damage named by row and column."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dali.errors import DaliError, UsageError
from dali.replay.traces.convert import convert
from dali.replay.traces.trace import read, write
from replay.tiny_traces import random_trace

HEADER = "step,layer,expert,weight\n"


@pytest.fixture
def load(tmp_path):
    def load(text, **more):
        (tmp_path / "routes.csv").write_text(text)
        return convert(tmp_path / "routes.csv", **more)

    return load


def rows_of(trace):
    """(sequence, step, layer, expert) in order, steps counted anew in each sequence."""
    for sequence in range(trace.sequences):
        begin, end = trace.seq_ptr[sequence : sequence + 2]
        for step, token in enumerate(trace.ids[begin:end]):
            for layer, experts in enumerate(token):
                for expert in experts:
                    yield sequence, step, layer, expert


def test_a_trace_goes_out_as_csv_and_comes_back(load, tmp_path):
    trace = random_trace(prompt=0)
    text = "sequence,token,layer,expert\n" + "".join("{},{},{},{}\n".format(*row) for row in rows_of(trace))
    found, notes = load(text, model="tiny", experts=8)
    assert notes == []
    assert np.array_equal(found.ids, trace.ids)
    assert np.array_equal(found.seq_ptr, trace.seq_ptr)
    assert (found.meta["model"], found.experts, found.weights) == ("tiny", 8, None)
    write(tmp_path / "t.npz", found)
    assert np.array_equal(read(tmp_path / "t.npz").ids, trace.ids)


def test_json_lines_with_lists_or_without(load):
    one = '{"step": 0, "layer": 3, "expert": [5, 2], "weight": [0.75, 0.25]}\n{"step": 0, "layer": 9, "expert": [1, 0]}\n'
    found, notes = load(one)
    assert found.ids.tolist() == [[[5, 2], [1, 0]]]
    assert (found.weights, found.experts) == (None, 6)
    assert notes == [
        "All weights are left out: 2 of 4 are missing.",
        "The largest expert is 5, so a layer is taken to have 6; `dali trace --experts` says otherwise.",
    ]
    flat = "".join(json.dumps({"token": t, "layer": 0, "expert": t, "weight": 0.5}) + "\n" for t in range(3))
    found, _ = load(flat)
    assert (found.ids.ravel().tolist(), found.weights.ravel().tolist()) == ([0, 1, 2], [0.5] * 3)


BIG = """# route_trace v1
# model=/models/OLMoE-1B-7B-Q4.gguf arch=olmoe n_layer=3 n_expert=64 n_expert_used=2
# layer=1 expert_bytes=100 dense_bytes=5
turn,phase,step,layer,slot,expert,weight,residency,expert_bytes,dropped
0,0,0,1,0,7,0.6,0,100,0
0,0,0,1,1,8,0.4,0,100,0
0,0,1,1,0,7,0.6,1,0,0
0,0,1,1,1,9,0.4,0,100,0
0,0,1,2,0,3,0.6,0,100,0
0,0,1,2,1,4,0.4,0,100,0
0,1,2,1,0,7,0.7,1,0,0
0,1,2,1,1,1,0.3,0,100,0
0,1,2,2,0,3,0.9,1,0,0
0,1,2,2,1,4,nan,1,0,0
"""


def test_big_moe_on_edge(load):
    """Its last layer has one token of a prompt only; a weight that is not known is no 0."""
    found, notes = load(BIG)
    assert found.ids.tolist() == [[[7, 9], [3, 4]], [[7, 1], [3, 4]]]
    assert (found.phase.tolist(), found.experts, found.weights) == ([0, 1], 64, None)
    assert notes == [
        "1 prompt tokens are left out: they lack rows of some layers.",
        "All weights are left out: 1 of 8 are missing.",
    ]
    assert load(BIG.replace("nan", "0.1"))[0].weights[1, 1].tolist() == pytest.approx([0.9, 0.1])


def test_positions_of_llama_cpp_forks(load):
    text = "-2,0,9,9\n-1,0,9,8\n-1,1,7,6\n0,0,1,2\n0,1,3,4\n1,0,1,5\n1,1,3,6\n-1,0,9,8\n-1,1,7,6\n0,0,2,3\n0,1,4,5\n"
    found, notes = load(text, experts=16)
    assert found.ids.tolist() == [[[1, 2], [3, 4]], [[1, 5], [3, 6]], [[2, 3], [4, 5]]]
    assert found.seq_ptr.tolist() == [0, 2, 3]
    assert notes == ["5 rows of prompts are left out: their tracer does not write them reliably."]


def test_activations_of_llama_cpps_pull_request(load):
    prompt = "2,9\n2,9\n2,9\n2,8\n5,1\n5,2\n"  # two tokens, but for the last layer
    found, notes = load(prompt + "2,1\n2,3\n5,0\n5,4\n" + "2,1\n2,2\n5,3\n5,4\n", experts=10)
    assert found.ids.tolist() == [[[1, 3], [0, 4]], [[1, 2], [3, 4]]]
    assert notes == ["1 evaluations of prompts are left out: their tracer does not write them reliably."]
    with pytest.raises(DaliError, match="one layer only"):
        load("2,1\n2,3\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("layer,expert,weight\n0,1,1\n", "Row 1, column 'step or token',"),
        ("step,layer\n0,1\n", "Row 1, column 'expert',"),
        (HEADER + "0,0,-3,1\n", "Row 2, column 'expert', of PATH cannot be used: -3 is negative"),
        (HEADER + "-1,0,3,1\n", "Row 2, column 'step', of PATH cannot be used: -1 is negative"),
        (HEADER + "0,0,3,-0.5\n", "Row 2, column 'weight', of PATH cannot be used: -0.5 is negative"),
        (HEADER + "0,0,3,inf\n", "column 'weight', of PATH cannot be used: 'inf' is not finite"),
        (HEADER + "0,0,3,x\n", "column 'weight', of PATH cannot be used: 'x' is no number"),
        (HEADER + "\n0,,3,1\n", "Row 3, column 'layer', of PATH cannot be used: it is missing"),
        (HEADER + "0,0.5,3,1\n", "column 'layer', of PATH cannot be used: '0.5' is no whole number"),
        (HEADER + "0,0,99999999999,1\n", "column 'expert', of PATH cannot be used: 99999999999 is more than"),
        (HEADER + "0,0,3\n", "Row 2, column 'weight', of PATH cannot be used: the row has 3 fields, the header 4"),
        (HEADER + "0,0,3,1,7\n", "Row 2, column 'weight', of PATH cannot be used: the row has 5 fields"),
        (HEADER + "1,0,3,1\n0,0,3,1\n", "Row 3, column 'step', of PATH cannot be used: 0 comes after 1 in layer 0"),
        (
            "sequence,step,layer,expert\n1,0,0,1\n0,0,0,1\n",
            "Row 3, column 'sequence', of PATH cannot be used: 0 comes after 1",
        ),
        (HEADER + "0,0,3,1\n0,0,3,1\n", "Row 3, column 'expert', of PATH cannot be used: step 0 has expert 3 twice"),
        (
            HEADER + "0,0,3,1\n0,0,2,1\n1,0,3,1\n1,0,2,1\n2,0,4,1\n",
            "Row 6, column 'expert', of PATH cannot be used: step 2 has 1 experts in layer 0, others have 2",
        ),
        (
            HEADER + "0,0,3,1\n0,4,3,1\n1,0,3,1\n",
            "Row 4, column 'layer', of PATH cannot be used: step 1 has no row of layer 4",
        ),
        ("step,phase,layer,expert\n0,x,0,1\n", "column 'phase', of PATH cannot be used: 'x' is neither"),
        (
            "step,phase,layer,expert\n0,decode,0,1\n1,prefill,0,1\n",
            "Row 3, column 'phase', of PATH cannot be used: it is a prompt's token behind a generated one",
        ),
        ('{"step": 0, "layer": 0}\n', "Row 1, column 'expert', of PATH cannot be used: it is missing"),
        ('{"step": 0, "layer": 0, "expert": true}\n', "column 'expert', of PATH cannot be used: True is no whole"),
        ('{"step": 0, "layer": 0, "expert": [1], "weight": 1}\n', "column 'weight', of PATH cannot be used: it holds 1"),
        ('{"step": 0, "layer": 0, "expert": 1}\n[1]\n', "Row 2 of PATH cannot be used: it is no JSON object"),
        ('{"step": 0,\n', "Row 1 of PATH cannot be used: it is no JSON"),
        ("0,0,1,2\n1,0,1\n", "Row 2, column 'expert', of PATH cannot be used: the row has 1 experts, the first one 2"),
        ("0,0,1,2\n1,x,1,2\n", "Row 2, column 'layer', of PATH cannot be used: 'x' is no whole number"),
        ("0,1\n0\n", "Row 2, column 'expert', of PATH cannot be used: the row has 1 fields, not 2"),
        ("", "PATH holds no routing"),
        (HEADER, "PATH holds no routing"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_by_row_and_column(load, tmp_path, text, said):
    with pytest.raises(DaliError) as caught:
        load(text, experts=None)
    assert said.replace("PATH", str(tmp_path / "routes.csv")) in caught.value.problem
    assert caught.value.fix.startswith(("Mend the file", "Give a file"))


def test_experts_beyond_the_layers(load):
    with pytest.raises(DaliError, match=r"Row 3, column 'expert', .* 8 is none of 8"):
        load(HEADER + "0,0,7,1\n1,0,8,1\n", experts=8)
    with pytest.raises(UsageError, match="cannot have 70001 experts"):
        load(HEADER + "0,0,70000,1\n")


def test_files_that_are_no_text_or_not_there(tmp_path):
    (tmp_path / "x").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DaliError, match="is no text"):
        convert(tmp_path / "x")
    with pytest.raises(UsageError, match="There is no file"):
        convert(tmp_path / "y")
    with pytest.raises(UsageError, match="There is no file"):
        convert(tmp_path / ("y" * 300))
