"""The page in a headless Chromium: `pip install selenium`, and Debian's packages chromium and chromium-driver."""

from __future__ import annotations

import json
import time
from importlib.util import find_spec

import pytest

from serve.page.browser import CHROMIUM, DRIVER, Page, chromium
from served import served

MISSING = [
    name
    for name, found in (("selenium", find_spec("selenium")), ("chromium", CHROMIUM), ("chromedriver", DRIVER))
    if not found
]
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(bool(MISSING), reason=f"there is no {', '.join(MISSING)}"),
]
ENTER, ESCAPE = "\ue007", "\ue00c"
STORY = "Tell me a story about a little dog."  # a long one comes


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def slow(tiny_llm):
    """A model that takes its time, so that something is under way when it is stopped."""
    step = tiny_llm.loop.step

    def slowly():
        time.sleep(0.03)
        step()

    with pytest.MonkeyPatch.context() as patch, served(tiny_llm) as found:
        patch.setattr(tiny_llm.loop, "step", slowly, raising=False)
        yield found


@pytest.fixture
def page(driver, slow):
    driver.get(slow.url)
    driver.execute_script("localStorage.clear()")
    page = Page(driver, slow.url)
    page.until(lambda: page.at("#model").text == "dali-tiny, context of 512")
    page.complaints()
    yield page
    assert not page.complaints()


def answers(page):
    return page.texts("article.assistant > div")


def ask(page, text):
    page.at("#message").send_keys(text, ENTER)


def ended(page):
    """Whether there are answers, and all have ended: each has a note then."""
    notes = page.texts("article.assistant .note")
    return page.idle and bool(notes) and all(notes)


def test_a_question_is_answered_in_pieces_and_a_reload_keeps_both(page):
    assert page.focused == "message"
    page.set("max_tokens", "40")
    page.set("temperature", "0")
    ask(page, STORY)
    page.until(lambda: not page.idle and any(answers(page)))
    begun = answers(page)[0]
    page.until(lambda: ended(page))
    assert "tokens/s" in page.at("article.assistant .note").text
    (answer,) = answers(page)
    assert answer.startswith(begun)
    assert len(answer) > len(begun)
    assert page.focused == "message"
    page.until(lambda: page.run("return document.getElementById('said').textContent") == answer)

    ask(page, "And then?")
    page.until(lambda: ended(page) and len(answers(page)) == 2)
    assert page.run(
        "return document.documentElement.scrollHeight <= innerHeight"
    )  # the log scrolls, not the page
    kept = page.texts("article")
    page.driver.refresh()
    assert page.texts("article") == kept
    assert page.at("[name=max_tokens]").get_attribute("value") == "40"
    assert page.texts("#conversations li button:first-child") == [STORY]


@pytest.mark.parametrize("how", ["button", "key"])
def test_an_answer_is_stopped_and_what_has_come_stays(page, slow, how):
    page.set("temperature", "0")
    ask(page, STORY)
    page.until(lambda: any(answers(page)))
    if how == "button":
        page.at("#stop").click()
    else:
        page.type(ESCAPE)
    page.until(lambda: page.idle and "stopped" in page.texts(".note"))
    assert page.focused == "message"
    (answer,) = answers(page)
    assert answer
    page.until(lambda: slow.service.running == 0)
    page.driver.refresh()
    assert answers(page) == [answer]


def test_conversations_stand_side_by_side(page):
    page.set("max_tokens", "3")
    for text in ("First one", "Second one"):
        page.at("#new").click()
        ask(page, text)
        page.until(lambda: ended(page))
    titles = "#conversations li button:first-child"
    assert page.texts(titles) == ["Second one", "First one"]
    page.driver.find_elements("css selector", titles)[1].click()
    assert page.texts("article.user > div") == ["First one"]
    page.at("[aria-label='Delete First one']").click()
    page.driver.switch_to.alert.accept()
    page.until(lambda: page.texts(titles) == ["Second one"])
    page.driver.refresh()
    assert page.texts(titles) == ["Second one"]


def test_what_the_server_refuses_is_said_and_can_be_sent_again(page, slow):
    page.set("temperature", "-1")
    ask(page, "Hello")
    page.until(lambda: any("temperature" in note for note in page.texts(".note.failed")))
    assert page.at("#message").get_attribute("value") == "Hello"
    assert all("400" in one for one in page.complaints())  # the browser's own word on it
    page.set("temperature", "0")
    page.set("max_tokens", "3")
    ask(page, "")
    page.until(lambda: ended(page) and any(answers(page)))


def test_nothing_that_is_written_is_markup(page):
    page.set("max_tokens", "1")
    text = "<img src=x onerror=document.title='caught'> ``` <b>&amp;"
    ask(page, text)
    page.until(lambda: ended(page))
    assert page.texts("article.user > div") == [text]
    assert page.run("return document.querySelectorAll('#log img, #log b').length") == 0


def test_the_machine_is_shown_live(page):
    page.set("max_tokens", "100")
    page.set("temperature", "0")
    ask(page, STORY)
    page.until(lambda: "got tokens in the last second" in page.at("#heat-text").text)
    canvas = "const c = document.getElementById('heat');"
    config = "return [c.width, c.height, c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(x => x)]"
    width, height, coloured = page.run(canvas + config)
    assert (width, height, coloured) == (*map(int, page.at("#heat-text").text.split()[3::-3]), True)
    page.type(ESCAPE)
    page.until(lambda: page.idle)


STREAM = """
    const events = arguments[0], honest = window.fetch;
    window.fetch = (path, asked) => {
        if (!path.includes("chat")) return honest(path, asked);
        return Promise.resolve(new Response(events.map((event) => `data: ${event}\\n\\n`).join("")));
    };
"""


def streamed(page, *events):
    """What the page makes of an answer of these events."""
    page.run(STREAM, [event if isinstance(event, str) else json.dumps(event) for event in events])
    ask(page, "Hello")
    page.until(lambda: ended(page))


def chunk(finish=None, **delta):
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def test_reasoning_is_folded_and_code_stands_apart(page):
    answer = "See:\n```python\nx < 1\n```\nThat is all."
    thought = [chunk(reasoning_content=text) for text in ("Let me ", "see.")]
    said = [chunk(content=text) for text in answer]
    streamed(page, *thought, *said, chunk(finish="length"), "[DONE]")
    assert not page.at("article.assistant details > div").is_displayed()
    page.at("article.assistant summary").send_keys(ENTER)
    assert page.at("article.assistant details > div").text == "Let me see."
    assert page.texts("article.assistant pre") == ["x < 1"]
    assert page.texts("article.assistant > div .text") == ["See:", "That is all."]
    assert page.texts("article.assistant .note") == ["stopped at the limit of tokens"]


@pytest.mark.parametrize(
    ("last", "says"),
    [([], "The answer broke off."), ([{"error": {"message": "A step failed."}}], "A step failed.")],
)
def test_an_answer_that_fails_on_its_way_says_so_and_is_not_read_again(page, last, says):
    streamed(page, chunk(content="Once"), *last)
    assert page.texts("article.assistant .note.failed") == [says]
    assert answers(page) == ["Once"]
    sent = "return import('./page/conversations.js').then((m) => new m.Conversations().history)"
    assert page.run(sent) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_either_light(page, scheme):
    page.show_in(scheme)
    colours = page.run(
        "const s = getComputedStyle(document.documentElement);"
        "return ['--paper', '--ink', '--faint', '--accent'].map(n => s.getPropertyValue(n).trim())"
    )
    paper, *others = [luminance(colour) for colour in colours]
    assert (paper > 0.5) == (scheme == "light")
    for other in others:
        low, high = sorted((paper, other))
        assert (high + 0.05) / (low + 0.05) >= 4.5  # WCAG 2.2, 1.4.3
    assert page.run("return matchMedia('(prefers-color-scheme: dark)').matches") == (scheme == "dark")


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb, as WCAG 2.2 defines it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_key_is_asked_for_and_kept_nowhere(driver, tiny_llm):
    with served(tiny_llm, api_key="open sesame") as locked:
        page = Page(driver, locked.url)
        page.until(lambda: page.at("#model").text == "the server wants an API key")
        page.until(lambda: page.run("return document.activeElement.name") == "key")
        page.type("open sesame" + ENTER)
        page.until(lambda: page.at("#model").text.startswith("dali-tiny"))
        assert "sesame" not in page.run("return JSON.stringify({...localStorage}) + document.cookie")
    page.complaints()
