"""GET /metrics, as Prometheus reads it: the requests in vLLM's words, and what only dali has to tell of its experts.

All is read off the counters when it is asked for; nothing is done for it in a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dali.serve.serving import serving

if TYPE_CHECKING:
    from dali.serve.service import Service
    from dali.telemetry import DiskCounters, Telemetry

LOOKUPS = {
    "resident": "accelerator",
    "prefetched": "accelerator",
    "fetched": "accelerator",
    "cpu": "cpu",
}  # counter -> tier that computed
PREFETCHES = ("used", "late", "wasted")
DRAFTED = ("accepted", "rejected")


class Requests:
    """What clients ask for."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        service, traffic = self._service, self._service.traffic
        yield _gauge("dali_requests_running", "Answers under way.", service.running)
        yield _gauge("dali_requests_waiting", "Answers that wait for others.", service.waiting)
        yield _counter("dali_prompt_tokens", "Tokens of prompts.", traffic.prompt_tokens)
        yield _counter("dali_cached_tokens", "Of them, those kept from before.", traffic.cached_tokens)
        yield _counter("dali_generation_tokens", "Tokens of answers.", traffic.generated_tokens)
        ended = CounterMetricFamily(
            "dali_request_success", "Answers that have ended.", labels=["finished_reason"]
        )
        for reason, count in sorted(traffic.finished.items()):
            ended.add_metric([reason], count)
        yield ended
        for times in (traffic.first_token, traffic.each_token, traffic.whole):
            yield from times.collect()


class Experts:
    """What the machine did for it, experts and drafts."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def collect(self) -> Iterator[Metric]:
        drafts = CounterMetricFamily(
            "dali_draft_tokens", "Tokens that were guessed, by what became of them.", labels=["outcome"]
        )
        for outcome in DRAFTED:
            drafts.add_metric([outcome], getattr(self._telemetry, f"draft_{outcome}"))
        yield drafts
        layers, total = list(self._telemetry.layers), self._telemetry.total()
        lookups = CounterMetricFamily(
            "dali_expert_lookups",
            "Active experts of steps: by layer, what computed them, and where they were found.",
            labels=["layer", "tier", "result"],
        )
        for layer, counters in enumerate(layers):
            for name, tier in LOOKUPS.items():
                result = "computed" if tier == "cpu" else name
                lookups.add_metric([str(layer), tier, result], getattr(counters, name))
        yield lookups
        moved = CounterMetricFamily(
            "dali_expert_bytes",
            "Packed weights that were read to compute (memory), and that were copied to the accelerator (accelerator).",
            labels=["link"],
        )
        moved.add_metric(["memory"], total.expert_bytes)
        moved.add_metric(["accelerator"], total.link_bytes)
        yield moved
        fetched = CounterMetricFamily(
            "dali_prefetch_experts", "Experts fetched ahead, by what became of them.", labels=["outcome"]
        )
        for outcome in PREFETCHES:
            fetched.add_metric([outcome], getattr(total, f"prefetch_{outcome}"))
        yield fetched
        yield _counter(
            "dali_steps_on_cpu",
            "Decoding steps whose experts were all the CPU's, as that was faster, or to compare.",
            self._telemetry.steps_on_cpu,
        )
        yield _gauge(
            "dali_accelerator_reverted",
            "1 while decoding is faster with all experts on the CPU, and done so.",
            self._telemetry.reverted,
        )
        clock = "modelled" if self._telemetry.modelled else "measured"
        if (disk := self._telemetry.disk) is not None:
            yield from _disk(disk, clock)
        makespan = SummaryMetricFamily(
            "dali_layer_makespan_seconds",
            "Of a layer's steps: from when its routing is known until its outputs are summed.",
            labels=["layer", "clock"],
        )
        for layer, counters in enumerate(layers):
            makespan.add_metric([str(layer), clock], counters.steps, counters.seconds)
        yield makespan
        overlap = GaugeMetricFamily(
            "dali_overlap_ratio",
            "Lanes busy at once, on average over all makespans: 1 is one after another.",
            labels=["clock"],
        )
        overlap.add_metric([clock], total.overlap)
        yield overlap


def _disk(disk: DiskCounters, clock: str) -> Iterator[Metric]:
    """Of experts that RAM holds a part of."""
    lookups = CounterMetricFamily(
        "dali_ram_lookups",
        "Active experts of steps that were wanted in RAM, and were there or not.",
        labels=["layer", "result"],
    )
    for layer, counts in enumerate(zip(disk.hits, disk.misses, strict=True)):
        for result, count in zip(("hit", "miss"), counts, strict=True):
            lookups.add_metric([str(layer), result], count)
    yield lookups
    yield _counter("dali_disk_reads", "Experts read from disk.", disk.reads)
    yield _counter("dali_disk_read_bytes", "Bytes of them.", disk.read_bytes)
    yield _counter("dali_disk_wanted_bytes", "Of those, what a step asked for.", disk.wanted_bytes)
    yield _counter("dali_disk_plain_reads", "Of the reads, through the page cache.", disk.plain_reads)
    yield _gauge("dali_disk_reads_plainly", "1 while experts are read through the page cache.", disk.plainly)
    ahead = CounterMetricFamily(
        "dali_disk_read_ahead", "Experts read before their step, by what became of them.", labels=["outcome"]
    )
    for outcome in PREFETCHES:
        ahead.add_metric([outcome], getattr(disk, f"ahead_{outcome}"))
    yield ahead
    for name, says, seconds in (
        ("stalled", "Time in which steps waited for the disk.", disk.stalled_seconds),
        ("busy", "Time in which reads were under way.", disk.busy_seconds),
        ("reading", "Time that reads took, those at a time added up.", disk.reading_seconds),
    ):
        counted = CounterMetricFamily(f"dali_disk_{name}_seconds", says, labels=["clock"])
        counted.add_metric([clock], seconds)
        yield counted


def _gauge(name: str, says: str, value: float) -> Metric:
    return GaugeMetricFamily(name, says, value)


def _counter(name: str, says: str, value: float) -> Metric:
    return CounterMetricFamily(name, says, value)


async def metrics(request: Request) -> Response:
    service = serving(request).service
    registry = CollectorRegistry()
    for collector in (Requests(service), Experts(service.llm.telemetry)):
        registry.register(collector)
    encode, kind = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(registry), media_type=kind)


ROUTES = [Route("/metrics", metrics)]
