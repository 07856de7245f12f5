"""A server whose model drafts: the same answers, and what became of the drafts is told in llama.cpp's and vLLM's words."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families as families

import dali
from dali.engine.draft import drafts
from dali.kernels import native
from drafting import Always
from served import Served, served

pytestmark = pytest.mark.skipif(not native.enabled(), reason="there are no compiled kernels")
SONS = "And the sons of Merari; Mahli, and Mushi. And the sons of Kohath; Amram, and Izhar. And the sons of"
ASKED = {
    "prompt": SONS,
    "max_tokens": 40,
    "temperature": 0,
    "ignore_eos": True,
}


@pytest.fixture(scope="module")
def drafting(dali_tiny, tmp_path_factory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DALI_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(drafts, "Pace", Always)
        with dali.load(dali_tiny, draft="ngram") as llm, served(llm) as found:
            yield found


def test_answers_are_the_same_whole_and_streamed(tiny: Served, drafting: Served):
    _, expected = tiny.post("/v1/completions", ASKED)
    _, answer = drafting.post("/v1/completions", ASKED)
    assert answer["choices"] == expected["choices"]
    chunks = drafting.events("/v1/completions", ASKED)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == expected["choices"][0]["text"]


def test_drafts_are_told_where_there_were_any(tiny: Served, drafting: Served):
    before = drafting.http.get("/v1/stats").json()["draft_tokens"]
    _, answer = drafting.post("/v1/completions", ASKED)
    timings, after = answer["timings"], drafting.http.get("/v1/stats").json()["draft_tokens"]
    assert timings["draft_n"] > timings["draft_n_accepted"] > 0
    assert after["accepted"] - before["accepted"] == timings["draft_n_accepted"]
    assert sum(after.values()) - sum(before.values()) == timings["draft_n"]
    found = {
        sample.labels["outcome"]: sample.value
        for family in families(drafting.http.get("/metrics").text)
        for sample in family.samples
        if sample.name == "dali_draft_tokens_total"
    }
    assert found == after
    _, answer = tiny.post("/v1/completions", ASKED)
    assert "draft_n" not in answer["timings"]
