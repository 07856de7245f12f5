"""`--explain`: a table, trace events, a picture; the answer stays the same."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from trace_events import of, read

SIM = ("--device", "sim:paper", "--vram", "3MiB", "--prefetch", "next_gate")
ASK = ("run", "Tell me a story about a little dog.", "-n", "12", "--temp", "0")


def slices(file):
    """Of experts."""
    return [
        event
        for event in of(read(file.read_text()), "X")
        if "expert" in event["args"] or "experts" in event["args"]
    ]


def test_a_table_after_the_same_answer(run, story):
    for device in ((), SIM):
        code, out, err = run(*ASK, "--explain", *device)
        assert code == 0
        assert story.startswith(out.strip().replace("\n", " ")) or story.split()[:6] == out.split()[:6]
        assert f"times are {'modelled' if device else 'measured'}" in err
        assert ("resident" in err) == bool(device)


def test_the_word_after_the_flag_is_a_file_only_if_it_looks_like_one(run, tmp_path):
    code, out, _ = run("run", "--explain", "Tell me a story.", "-n", "3")
    assert code == 0
    assert out.strip()
    file = tmp_path / "t.json"
    code, _, err = run("run", "--explain", str(file), "Tell me a story.", "-n", "3")
    assert code == 0
    assert f"{file}: trace events, measured" in err
    layers = [event for event in slices(file) if isinstance(event["args"]["experts"], dict)]
    assert {event["args"]["layer"] for event in layers} == set(range(8))
    assert all(sum(event["args"]["experts"].values()) == 4 * event["args"]["tokens"] for event in layers)


def test_events_of_an_accelerator_have_a_track_a_lane_and_a_reason_a_slice(run, tmp_path):
    file = tmp_path / "t.json"
    run(*ASK, "--explain", str(file), *SIM)
    events = read(file.read_text())
    tracks = {event["tid"]: event["args"]["name"] for event in of(events, "M") if "tid" in event}
    assert set(tracks.values()) == {"layers", "CPU", "accelerator", "link"}
    experts = [event for event in slices(file) if {"expert", "tokens"} <= event["args"].keys()]
    assert {"step", "layer", "expert", "tokens", "why", "planned_us"} <= experts[0]["args"].keys()
    assert any(event["ph"] == "C" for event in events)


def test_a_picture_of_a_run_and_of_a_replay(run, tmp_path):
    run("trace", "-o", str(tmp_path / "t.npz"), "--prompts", _prompts(tmp_path), "-n", "6")
    one = ("--policy", "default", "--cache-slots", "50%", "--workers", "1")
    for name, arguments in (
        ("run.svg", (*ASK, *SIM)),
        ("replay.svg", ("simulate", str(tmp_path / "t.npz"), *one)),
    ):
        code, _, err = run(*arguments, "--explain", str(tmp_path / name))
        assert code == 0
        assert f"{name}: a picture of one step, modelled" in err
        texts = {
            text.text for text in ElementTree.parse(tmp_path / name).iter("{http://www.w3.org/2000/svg}text")
        }
        assert {"CPU", "accelerator"} <= texts


def _prompts(folder):
    (folder / "prompts.txt").write_text("Hello!\n")
    return str(folder / "prompts.txt")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "--explain", "t.txt", "Hello"), "does not know what to write into 't.txt'"),
        (("run", "--explain", "/nowhere/t.json", "Hello"), "no file that can be written"),
        (("run", "--explain=maybe", "Hello"), "--explain cannot be 'maybe'"),
        (("simulate", "t.npz", "--explain", "t.png"), "draws .svg, not .png, as in 't.png'"),
        (("run", "--explain", "a/t.jpg", "Hello"), "draws .svg, not .jpg"),
        (("simulate", "t.npz", "--explain", "t.svg", "--cache-only"), "so no --cache-only"),
    ],
)
def test_what_cannot_be_explained_is_refused(refused, arguments, said):
    code, problem, _ = refused(*arguments)
    assert code == 2
    assert said in problem
