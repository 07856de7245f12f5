"""Fields of a body, each of its type."""

from __future__ import annotations

import pytest

from dali.errors import DaliError, TooLong, UsageError
from dali.serve.http.errors import ApiError, api_error, error_body
from dali.serve.http.fields import Fields


def test_null_is_as_good_as_nothing():
    fields = Fields({"a": None})
    read = [fields.text, fields.flag, fields.mapping, fields.list, fields.whole, fields.number]
    assert [one("a") for one in read] == [one("b") for one in read] == [None] * 6
    assert fields.texts("a", 1) is None
    assert "a" not in fields
    fields.refuse("a", "never.")


def test_values_of_their_type_are_given_back():
    fields = Fields({"t": "x", "f": False, "m": {"k": 1}, "l": [1], "w": 3, "n": 0.5})
    assert (fields.text("t"), fields.flag("f"), fields.mapping("m"), fields.list("l")) == (
        "x",
        False,
        {"k": 1},
        [1],
    )
    assert (fields.whole("w", 3, 3), fields.number("n"), fields.number("w")) == (3, 0.5, 3)
    assert (fields.texts("t", 1), fields.one_of("t", ("x", "y"))) == (("x",), "x")


@pytest.mark.parametrize(
    ("read", "value"),
    [
        (lambda fields: fields.text("a"), 1),
        (lambda fields: fields.flag("a"), 1),
        (lambda fields: fields.mapping("a"), []),
        (lambda fields: fields.list("a"), {}),
        (lambda fields: fields.whole("a"), 1.0),
        (lambda fields: fields.whole("a"), True),
        (lambda fields: fields.whole("a", 2), 1),
        (lambda fields: fields.whole("a", 0, 2), 3),
        (lambda fields: fields.number("a"), float("inf")),
        (lambda fields: fields.number("a"), float("nan")),
        (lambda fields: fields.number("a"), -(10**400)),
        (lambda fields: fields.number("a", 0, 1), 1.1),
        (lambda fields: fields.texts("a", 1), ["x", "y"]),
        (lambda fields: fields.texts("a", 1), [""]),
        (lambda fields: fields.one_of("a", ("x",)), "y"),
        (lambda fields: fields.refuse("a", "never.", "off"), "on"),
    ],
)
def test_others_are_refused_by_name(read, value):
    for path in ("", "messages[2]."):
        with pytest.raises(ApiError) as refused:
            read(Fields({"a": value}, path))
        assert refused.value.status == 400
        assert refused.value.param == f"{path}a"
        assert refused.value.message.startswith(f"{path}a ")


def test_objects_of_an_array_know_where_they_are():
    fields = Fields({"messages": [{"a": 1}, {"a": "x"}, 5]})
    each = fields.each("messages")
    assert next(each).whole("a") == 1
    with pytest.raises(ApiError, match=r"messages\[1\]\.a is 'x'"):
        next(each).whole("a")
    with pytest.raises(ApiError, match=r"messages\[2\] has to be an object"):
        next(each)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (UsageError("Bad.", "Mend it."), 400, None),
        (TooLong("Long.", "Cut it."), 400, "context_length_exceeded"),
        (DaliError("No memory.", "Buy some."), 503, None),
    ],
)
def test_dalis_errors_have_a_status(error, status, code):
    told = api_error(error)
    assert (told.status, told.code) == (status, code)
    assert error_body(told)["error"]["message"] == f"{error.problem} {error.fix}"
