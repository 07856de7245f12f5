"""Trace files: written whole and read back, and refused when they contradict themselves."""

import json

import numpy as np
import pytest

from dali.errors import DaliError, UsageError
from dali.replay.traces import trace as traces
from replay.tiny_traces import fields, random_trace


@pytest.fixture
def file(tmp_path):
    """Writes arrays as they are, good or bad."""

    def write(**arrays):
        np.savez(tmp_path / "bad.npz", **arrays)
        return tmp_path / "bad.npz"

    return write


def full_trace():
    generator = np.random.default_rng(1)
    trace = random_trace()
    tokens, layers, top_k = trace.ids.shape
    return random_trace(
        weights=generator.random((tokens, layers, top_k), np.float32),
        scores=generator.random((tokens, layers, 8), np.float32),
        gate_inputs=generator.normal(size=(tokens, layers, 5)).astype(np.float16),
        embeddings=generator.normal(size=(tokens, 5)).astype(np.float16),
        predicted={("residual", 1): trace.ids, ("next_gate", 2): trace.ids},
    )


def test_what_is_written_is_read(tmp_path):
    trace = full_trace()
    traces.write(tmp_path / "t.npz", trace)
    back = traces.read(tmp_path / "t.npz")
    assert back.name == "t"
    assert back.meta == {"format": "dali-trace-v1", **trace.meta}
    for name in ("ids", "seq_ptr", "phase", "weights", "scores", "gate_inputs", "embeddings"):
        assert np.array_equal(getattr(back, name), getattr(trace, name)), name
    assert back.predicted.keys() == trace.predicted.keys()
    assert back.signals == {"weights", "scores", "gate_inputs", "embeddings"}
    assert [file.name for file in tmp_path.iterdir()] == ["t.npz"]


def test_weights_in_bytes_count_in_255ths(file):
    trace = random_trace()
    weights = np.full(trace.ids.shape, 51, np.uint8)
    assert np.allclose(traces.read(file(**fields(trace), weights=weights)).weights, 0.2)


def without(name):
    return lambda arrays: arrays.pop(name)


def putting(name, array):
    return lambda arrays: arrays.update({name: np.asarray(array)})


def saying(**said):
    def change(arrays):
        arrays["meta"] = np.array(json.dumps(json.loads(str(arrays["meta"])) | said))

    return change


def changing(name, index, value):
    def change(arrays):
        arrays[name] = arrays[name].copy()
        arrays[name][index] = value

    return change


GOOD = random_trace()
BAD = {
    "the field 'ids' is missing": without("ids"),
    "the field 'seq_ptr' is missing": without("seq_ptr"),
    "the field 'phase' is missing": without("phase"),
    "the field 'meta' is missing": without("meta"),
    "meta is no JSON object": putting("meta", "[1, 2]"),
    "its format is 'dali-trace-v2'": saying(format="dali-trace-v2"),
    "n_experts 0": saying(n_experts=0),
    "meta does not name the model": saying(model=None),
    "meta says top_k 3, ids has 2": saying(top_k=3),
    "meta says n_layers 9, ids has 3": saying(n_layers=9),
    "ids is int64 [60, 3, 2]": putting("ids", GOOD.ids.astype(np.int64)),
    "ids is uint8 [60, 6]": putting("ids", GOOD.ids.reshape(60, 6)),
    "ids is uint8 [0, 3, 2]": putting("ids", GOOD.ids[:0]),
    "ids has the expert 8, of 8": changing("ids", (5, 1, 0), 8),
    "names an expert twice": changing("ids", (5, 1), 3),
    "zero sequences": putting("seq_ptr", [0]),
    "seq_ptr does not rise": putting("seq_ptr", [0, 30, 15, 60]),
    "seq_ptr runs from 0 to 59": putting("seq_ptr", [0, 15, 59]),
    "seq_ptr is float64": putting("seq_ptr", [0.0, 60.0]),
    "phase is uint8 [59]": putting("phase", GOOD.phase[:59]),
    "phase has a value": changing("phase", 3, 2),
    "behind a generated one": changing("phase", 14, 0),
    "weights is float32 [60, 3, 3]": putting("weights", np.ones((60, 3, 3), np.float32)),
    "weights has a value that is not finite": putting("weights", np.full((60, 3, 2), np.nan)),
    "weights has a negative value": putting("weights", np.full((60, 3, 2), -1.0)),
    "scores is float64 [60, 3, 7]": putting("scores", np.ones((60, 3, 7))),
    "gate_inputs is float64 [60, 2, 4]": putting("gate_inputs", np.ones((60, 2, 4))),
    "predicted_ridge_1 is uint8 [60, 3, 1]": putting("predicted_ridge_1", GOOD.ids[..., :1]),
    "predicted_ridge_1 has the expert 200": putting("predicted_ridge_1", np.full((60, 3, 2), 200, np.uint8)),
}


@pytest.mark.parametrize("why", BAD)
def test_a_contradiction_is_named(file, why):
    arrays = fields(GOOD)
    BAD[why](arrays)
    path = file(**arrays)
    with pytest.raises(DaliError) as error:
        traces.read(path)
    assert why in error.value.problem
    assert str(path) in error.value.problem
    assert "dali trace" in error.value.fix


@pytest.mark.parametrize("content", [b"", bytes(5000), b"PK\x03\x04 torn", b"\x93NUMPY", b"hello\n" * 50])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "t.npz"
    path.write_bytes(content)
    with pytest.raises(DaliError, match=r"no readable \.npz") as error:
        traces.read(path)
    assert "pickle" not in error.value.problem


def test_a_torn_or_damaged_file_is_refused(tmp_path):
    traces.write(tmp_path / "t.npz", full_trace())
    whole = (tmp_path / "t.npz").read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:200] + bytes(300) + whole[500:]):
        (tmp_path / "t.npz").write_bytes(damaged)
        with pytest.raises(DaliError):
            traces.read(tmp_path / "t.npz")


def test_pickles_are_refused(file):
    with pytest.raises(DaliError, match="no readable"):
        traces.read(file(**(fields(GOOD) | {"ids": np.array([{}, {}], dtype=object)})))


def test_there_is_no_such_file(tmp_path):
    with pytest.raises(UsageError, match="There is no trace"):
        traces.read(tmp_path / "none.npz")
    with pytest.raises(UsageError, match="There is no trace"):
        traces.read(tmp_path / f"{'a' * 300}.npz")  # a name that no file system takes


def test_nothing_is_left_where_nothing_can_be_written(tmp_path):
    (tmp_path / "t.npz").mkdir()
    with pytest.raises(DaliError, match="Cannot write"):
        traces.write(tmp_path / "t.npz", GOOD)
    assert [file.name for file in tmp_path.iterdir()] == ["t.npz"]
