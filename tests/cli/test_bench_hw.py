"""`dali bench hw`: what is kept, what is printed, and that nothing half-written is left."""

from __future__ import annotations

import json
import os

import pytest

from dali.errors import DaliError
from dali.hardware import own
from dali.hardware.profile import Profile, load
from dali.probe import whole
from measured import measured


@pytest.fixture
def machine(monkeypatch):
    """In the place of a minute."""

    def measure(advance):
        for part, share in whole.PARTS.items():
            advance(part, share)
        return measured()

    monkeypatch.setattr(whole, "measure", measure)


def test_the_profile_is_kept_where_it_is_looked_for(run, machine):
    code, out, err = run("bench", "hw")
    assert code == 0
    assert "memory, read by all threads" in out
    assert str(own.own_path()) in err
    assert load(own.own_path()) == measured()


def test_json_is_the_profile_alone(run, machine):
    _, out, _ = run("bench", "hw", "--json")
    assert Profile.from_json(out, "stdout") == measured()


def test_a_file_of_ones_own_leaves_the_kept_one_alone(run, machine, tmp_path):
    code, _, err = run(
        "bench", "hw", "--output", str(tmp_path / "mine.json"), "--html", str(tmp_path / "a.html")
    )
    assert code == 0
    assert "--profile" in err
    assert load(tmp_path / "mine.json") == measured()
    assert "<svg" in (tmp_path / "a.html").read_text()
    assert not own.own_path().exists()


@pytest.mark.parametrize("stopped", [KeyboardInterrupt(), DaliError("Readings are apart.", "Again.")])
def test_a_measurement_that_does_not_end_leaves_what_was_there(run, machine, monkeypatch, stopped):
    run("bench", "hw")
    before = own.own_path().read_text()

    def measure(advance):
        advance("memory", 2)
        raise stopped

    monkeypatch.setattr(whole, "measure", measure)
    code, out, _ = run("bench", "hw")
    assert code == (130 if isinstance(stopped, KeyboardInterrupt) else 1)
    assert out == ""
    assert own.own_path().read_text() == before
    assert os.listdir(own.config_root()) == ["machine.json"]


def test_a_home_that_cannot_be_written_is_refused_before_anything_is_measured(refused, monkeypatch, tmp_path):
    monkeypatch.setattr(whole, "measure", None)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DALI_CONFIG_DIR", str(tmp_path / "file"))
    code, problem, fix = refused("bench", "hw")
    assert code == 1
    assert "Cannot write" in problem
    assert "--output" in fix


@pytest.mark.parametrize("flag", ["--output", "--html"])
@pytest.mark.parametrize("name", ["{}", "{}/none/a.json", "{}/" + "a" * 300])
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(
    refused, monkeypatch, tmp_path, flag, name
):
    monkeypatch.setattr(whole, "measure", None)
    code, problem, fix = refused("bench", "hw", flag, name.format(tmp_path))
    assert code == 2
    assert "no file that can be written" in problem
    assert fix == "Name one in a writable folder."
    assert not own.config_root().exists()


def test_it_takes_no_model(refused):
    code, problem, _ = refused("bench", "hw", "some-model")
    assert code == 2
    assert "some-model" in problem


def test_a_note_is_said_beside_the_table(run, monkeypatch):
    noted = json.loads(measured().to_json()) | {"notes": ["Other programs took 50 % of the processors."]}
    monkeypatch.setattr(whole, "measure", lambda advance: Profile.from_json(json.dumps(noted), "it"))
    assert "Other programs took 50 %" in run("bench", "hw")[2]
