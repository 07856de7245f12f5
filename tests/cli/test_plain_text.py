from __future__ import annotations

import io
import sys

import pytest

from dali.cli.plain_text import plain_text


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (b"Hello\n", "Hello\n"),
        (b"Hello\r\nyou\r\n", "Hello\nyou\n"),
        (b"\xef\xbb\xbfHello\n", "Hello\n"),
        (b"\xef\xbb\xbf\xef\xbb\xbf", "\ufeff"),  # a second one is somebody's text
        (b"a\rb", "a\nb"),
        (b"", ""),
    ],
)
def test_marks_and_line_ends_are_no_part_of_a_text(given, text):
    assert plain_text(given) == text


def test_an_error_tells_where():
    with pytest.raises(UnicodeDecodeError) as error:
        plain_text(b"ab\xff")
    assert error.value.start == 2


def test_prompts_templates_and_settings_of_windows_programs_mean_the_same(run, monkeypatch, tmp_path):
    asked = []
    for content in (b"Hello\n", b"\xef\xbb\xbfHello\r\n"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        settings, template = tmp_path / "dali.yaml", tmp_path / "template.jinja"
        settings.write_bytes(content.replace(b"Hello", b"predict: 3"))
        template.write_bytes(content.replace(b"Hello", b"{{ messages[0].content }}"))
        code, out, err = run(
            "run", "--temp", "0", "--config", str(settings), "--chat-template", str(template)
        )
        assert code == 0, err
        asked.append((out, err.partition("|")[0]))
    assert asked[0] == asked[1]
