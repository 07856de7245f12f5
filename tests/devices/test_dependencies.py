from __future__ import annotations

from collections.abc import Callable

import pytest

from dali.devices.dependencies import Dependencies, Operation, Stream, dependencies


class Book:
    """Issues operations by name and says what each one waits for."""

    def __init__(self, made: Dependencies) -> None:
        self.dependencies = made
        self.streams: dict[str, Stream] = {}
        self.issued: dict[str, Operation] = {}

    def issue(self, label: str, stream: str, reads: str = "", writes: str = "") -> list[str]:
        place = self.stream(stream)
        operation = self.issued[label] = Operation(place, label, lambda: None)
        self.dependencies.derive(operation, set(map(ord, reads)), set(map(ord, writes)))
        return [earlier.label for earlier in operation.waits]

    def stream(self, name: str) -> Stream:
        return self.streams.setdefault(name, Stream(name, len(self.streams)))


@pytest.fixture(params=[Dependencies, dependencies], ids=["python", "compiled"])
def make(request: pytest.FixtureRequest) -> Callable[..., Dependencies]:
    made: Callable[..., Dependencies] = request.param
    return made


@pytest.fixture
def book(make: Callable[..., Dependencies]) -> Book:
    return Book(make())


def test_read_after_write_waits_for_the_writer(book: Book) -> None:
    assert book.issue("fetch", "copy", writes="a") == []
    assert book.issue("expert", "compute", reads="a") == ["fetch"]


def test_write_after_read_waits_for_every_reader(book: Book) -> None:
    book.issue("expert", "compute", reads="a")
    book.issue("cpu", "host", reads="a")
    assert book.issue("fetch", "copy", writes="a") == ["cpu", "expert"]


def test_write_after_write_waits_for_the_last_writer_only(book: Book) -> None:
    book.issue("one", "compute", writes="a")
    book.issue("two", "compute", writes="a")
    assert book.issue("three", "copy", writes="a") == ["two"]


def test_reads_do_not_wait_for_reads(book: Book) -> None:
    book.issue("expert", "compute", reads="a")
    assert book.issue("cpu", "host", reads="a") == []


def test_buffers_are_independent(book: Book) -> None:
    book.issue("fetch", "copy", writes="a")
    assert book.issue("expert", "compute", reads="b", writes="c") == []


def test_one_stream_needs_no_waits(book: Book) -> None:
    book.issue("one", "compute", writes="a")
    assert book.issue("two", "compute", reads="a", writes="a") == []


def test_what_another_wait_implies_is_left_out(book: Book) -> None:
    book.issue("fetch", "copy", writes="a")
    book.issue("expert", "compute", reads="a", writes="b")
    assert book.issue("join", "host", reads="ab") == ["expert"]  # which waited for the fetch


def test_what_the_stream_has_waited_for_is_left_out(book: Book) -> None:
    book.issue("fetch", "copy", writes="ab")
    assert book.issue("one", "compute", reads="a") == ["fetch"]
    assert book.issue("two", "compute", reads="b") == []


def test_what_the_host_has_waited_for_is_left_out(book: Book) -> None:
    book.issue("first", "copy", writes="a")
    book.issue("second", "copy", writes="b")
    book.dependencies.host_waited(book.issued["first"])
    assert book.issue("one", "compute", reads="a") == []
    assert book.issue("two", "compute", reads="b") == ["second"]


def test_a_read_and_a_write_in_one_operation_wait_for_both(book: Book) -> None:
    book.issue("fetch", "copy", writes="a")
    book.issue("cpu", "host", reads="b")
    assert book.issue("expert", "compute", reads="a", writes="b") == ["cpu", "fetch"]


def test_forgotten_buffers_have_no_past(book: Book) -> None:
    book.issue("fetch", "copy", writes="ab")
    book.dependencies.forget({ord("a")})
    assert [one.label for one in book.dependencies.before({ord("a"), ord("b")}, set())] == ["fetch"]
    assert book.issue("one", "compute", writes="a") == []


@pytest.mark.parametrize(
    ("drop", "left"), [(0, [[], ["cpu"]]), (1, [["fetch"], []]), (2, [["fetch"], ["cpu"]])]
)
def test_drop_leaves_out_one_derived_wait(
    make: Callable[..., Dependencies], drop: int, left: list[list[str]]
) -> None:
    book = Book(make(drop))
    book.issue("fetch", "copy", writes="a")
    book.issue("cpu", "host", writes="b")
    assert [book.issue("one", "compute", reads="a"), book.issue("two", "compute", reads="b")] == left
    assert book.dependencies.derived == 2
