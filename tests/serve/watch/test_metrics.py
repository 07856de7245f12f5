"""GET /metrics, read by Prometheus' own parser."""

from __future__ import annotations

from dataclasses import replace

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as text

import dali
from dali.serve.watch.metrics import Experts
from dali.telemetry import DiskCounters, Telemetry
from served import STORY, served

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def asked(tiny_llm):
    """A server of which two things were asked, and their usages."""
    with served(tiny_llm) as found:
        body = {"messages": STORY, "max_tokens": 4, "ignore_eos": True}
        usages = [found.post(CHAT, body | {"n": n})[1]["usage"] for n in (1, 2)]
        yield found, usages


def samples(answer, parse=text):
    families = parse(answer.text)
    return {
        (one.name, *sorted(one.labels.items())): one.value for family in families for one in family.samples
    }


DISK = DiskCounters((3, 4), (1, 2), 5, 500, 400, 2, 1, 1, 0.5, 3.0, 1.5, 4, True)


def test_the_disk_is_told_of_where_experts_are_on_one():
    telemetry = Telemetry()
    names = {metric.name for metric in Experts(telemetry).collect()}
    assert not any("disk" in name for name in names)
    telemetry.follow_disk(lambda: replace(DISK, reads=telemetry.layer(0).steps))
    telemetry.layer(0).steps = 5
    found = {
        (one.name, *one.labels.values()): one.value
        for metric in Experts(telemetry).collect()
        for one in metric.samples
    }
    assert found["dali_disk_reads_total",] == 5
    telemetry._disk_before = replace(DISK, hits=(0, 0), misses=(0, 0), plain_reads=1, stalled_seconds=0.25)
    found = {
        (one.name, *one.labels.values()): one.value
        for metric in Experts(telemetry).collect()
        for one in metric.samples
    }
    assert found["dali_ram_lookups_total", "1", "hit"] == 4
    assert found["dali_ram_lookups_total", "1", "miss"] == 2
    assert (found["dali_disk_plain_reads_total",], found["dali_disk_reads_plainly",]) == (3, 1)
    assert found["dali_disk_stalled_seconds_total", "measured"] == 0.25


def test_requests_are_in_vllms_words(asked):
    server, usages = asked
    found = samples(server.http.get("/metrics"))
    assert found["dali_requests_running",] == found["dali_requests_waiting",] == 0
    assert found["dali_generation_tokens_total",] == sum(usage["completion_tokens"] for usage in usages) == 12
    assert found["dali_prompt_tokens_total",] == 3 * usages[0]["prompt_tokens"]
    assert found["dali_cached_tokens_total",] > 0
    assert found["dali_request_success_total", ("finished_reason", "length")] == 3
    assert found["dali_request_success_total", ("finished_reason", "stop")] == 0
    for name in ("time_to_first_token", "time_per_output_token", "e2e_request_latency"):
        assert found[f"dali_{name}_seconds_count",] == 3
        assert found[f"dali_{name}_seconds_sum",] > 0
    assert found["dali_e2e_request_latency_seconds_sum",] > found["dali_time_to_first_token_seconds_sum",]


def test_experts_are_those_of_the_telemetry(asked):
    server, _ = asked
    telemetry = server.llm.telemetry
    found = samples(server.http.get("/metrics"))
    for layer, counters in enumerate(telemetry.layers):
        at = ("layer", str(layer))
        lookups = found["dali_expert_lookups_total", at, ("result", "computed"), ("tier", "cpu")]
        assert lookups == counters.cpu > 0
        clock = ("clock", "measured")
        assert found["dali_layer_makespan_seconds_count", clock, at] == counters.steps
        assert found["dali_layer_makespan_seconds_sum", clock, at] == counters.seconds
    assert found["dali_expert_bytes_total", ("link", "memory")] == telemetry.expert_bytes
    assert found["dali_expert_bytes_total", ("link", "accelerator")] == 0
    assert found["dali_overlap_ratio", ("clock", "measured")] == 1.0


def test_steps_that_were_left_to_the_cpu_are_told():
    telemetry = Telemetry(steps_on_cpu=7, reverted=True)
    found = {one.name: one.value for metric in Experts(telemetry).collect() for one in metric.samples}
    assert found["dali_steps_on_cpu_total"] == 7
    assert found["dali_accelerator_reverted"] == 1


def test_openmetrics_comes_where_it_is_asked_for(asked):
    server, _ = asked
    answer = server.http.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert samples(answer, openmetrics)["dali_generation_tokens_total",] == 12


def test_what_an_accelerator_did_is_told_by_tier_and_as_modelled(dali_tiny):
    with dali.load(str(dali_tiny), device="sim:laptop-8gb", vram=4 << 20) as llm, served(llm) as server:
        server.post(CHAT, {"messages": STORY, "max_tokens": 4})
        total = llm.telemetry.total()
        found = samples(server.http.get("/metrics"))
        assert server.http.get("/v1/stats").json()["accelerator"] is True

    def by(result):
        return sum(
            value
            for (name, *labels), value in found.items()
            if name == "dali_expert_lookups_total" and ("result", result) in labels
        )

    assert [by(name) for name in ("resident", "prefetched", "fetched", "computed")] == [
        total.resident,
        total.prefetched,
        total.fetched,
        total.cpu,
    ]
    assert by("resident") > 0
    for outcome in ("used", "late", "wasted"):
        wanted = getattr(total, f"prefetch_{outcome}")
        assert found["dali_prefetch_experts_total", ("outcome", outcome)] == wanted
    assert found["dali_overlap_ratio", ("clock", "modelled")] == total.overlap
