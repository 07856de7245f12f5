import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dali.engine.text.stop import StopStrings

stop_sets = st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=4).map(tuple)
piece_lists = st.lists(st.text("ab\n", max_size=4), max_size=12)


def run(stops: tuple[str, ...], pieces: list[str]) -> tuple[list[str], bool]:
    stream = StopStrings(stops)
    given_out = []
    for piece in pieces:
        text, stopped = stream.push(piece)
        given_out.append(text)
        if stopped:
            return [*given_out, stream.flush()], True
    return [*given_out, stream.flush()], False


def cut(stops: tuple[str, ...], text: str) -> tuple[str, bool]:
    """The plain meaning: where the text first has a complete stop string, the longest one goes."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text.endswith(stop, 0, end)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


@settings(deadline=None, max_examples=500)
@given(stop_sets, piece_lists)
def test_any_cut_into_pieces_gives_the_same(stops: tuple[str, ...], pieces: list[str]) -> None:
    given_out, stopped = run(stops, pieces)
    assert ("".join(given_out), stopped) == cut(stops, "".join(pieces))


@settings(deadline=None, max_examples=300)
@given(stop_sets, piece_lists)
def test_only_the_beginning_of_a_stop_string_is_held_back(stops: tuple[str, ...], pieces: list[str]) -> None:
    stream, text, out = StopStrings(stops), "", ""
    for piece in pieces:
        text += piece
        emit, stopped = stream.push(piece)
        out += emit
        if stopped:
            return
        held = text[len(out) :]
        assert text.startswith(out)
        assert not held or any(stop != held and stop.startswith(held) for stop in stops)


@pytest.mark.parametrize(
    ("stops", "pieces", "expected"),
    [
        ((), ["any", "thing"], (["any", "thing", ""], False)),
        (("END",), ["one E", "N", "D two"], (["one ", "", "", ""], True)),
        (("END",), ["E", "N", "E", "x"], (["", "", "EN", "Ex", ""], False)),
        (("END",), ["the EN"], (["the ", "EN"], False)),
        (("aab",), ["a", "a", "a", "b"], (["", "", "a", "", ""], True)),
        (("two", "one"), ["one two"], (["", ""], True)),
        (("abcd", "bc"), ["abcd"], (["a", ""], True)),
        (("bc", "abc"), ["xabc"], (["x", ""], True)),
        (("\n",), ["line\nnext"], (["line", ""], True)),
        (("終わり",), ["終", "わ", "る"], (["", "", "終わる", ""], False)),
    ],
)
def test_stories(stops: tuple[str, ...], pieces: list[str], expected: tuple[list[str], bool]) -> None:
    assert run(stops, pieces) == expected
