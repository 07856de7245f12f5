"""The stages of `make gpu-check` that run dali's own code, on a stand-in for the driver: they measure nothing, but end."""

from __future__ import annotations

import json
import math
import sys
import time
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fake import COMPILER, FakeDriver, FakeGpu, shimmed

from dali.hardware import profile as profiles
from dali.kernels import native

rms_norm = native.rms_norm
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
COMMON = {"GATE": 4, "UP": 4, "DOWN": 4, "ACTIVATION": 0, "GATED": 1, "BIASED": 0, "PASSES": 1}
pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="there is no g++"),
    pytest.mark.skipif(
        not native.enabled() or native.variant() == "portable", reason="needs fused multiply-adds"
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("gpu")


@pytest.fixture(scope="module")
def driver(folder):
    return FakeDriver(folder)


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    before = set(sys.modules)
    for name in ("gpu_check", "tools", "policies"):
        monkeypatch.syspath_prepend(str(BENCHMARKS / name))
    yield
    for name in set(sys.modules) - before:
        if "benchmarks" in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]


@pytest.fixture
def result():
    return import_module("result").Result()


@pytest.fixture
def idle(driver, monkeypatch):
    """A GPU that does nothing."""
    driver.reset(0, total=1 << 40)
    driver.idle()
    gpu = FakeGpu("cuda", driver)
    monkeypatch.setattr("torch.cuda.synchronize", lambda: None)
    monkeypatch.setattr("dali.offload.gpu.cubin", lambda *arguments: b"none is read")
    for module in ("build", "gpu"):
        monkeypatch.setattr(f"dali.offload.{module}.Gpu", lambda device: gpu)
    return gpu


@pytest.fixture
def driver_of_models(driver, folder, monkeypatch):
    """A GPU whose kernels are computed by the CPU, for whole models."""
    driver.reset(0)
    gpu = FakeGpu("cuda", driver)
    monkeypatch.setattr("dali.offload.build.Gpu", lambda device: gpu)
    monkeypatch.setattr(
        "dali.offload.gpu.cubin",
        lambda name, macros, sm, kept: str(shimmed.build_macros(macros, folder)).encode(),
    )
    monkeypatch.setattr("dali.offload.gpu.LOGITS", 0)
    return driver


def test_the_right_kernels_are_found_right_and_a_wrong_one_wrong(driver, folder, result):
    driver.reset(0)
    right = import_module("stages.right")
    layout = dict(right.layouts())["w4 40 x 40"]

    def build(name, macros):
        return str(shimmed.build_macros(macros, folder)).encode()

    given = {"seeds": 2, "tokens": (1, 9)}
    assert right.check(result, FakeGpu("cuda", driver), build, "w4", layout, **given) == 0
    wrong = build("", {**COMMON, "ACTIVATION": 1})
    found = right.check(
        result,
        FakeGpu("cuda", driver),
        lambda name, macros: wrong if macros.get("PASSES") == 1 else build(name, macros),
        "w4",
        layout,
        **given,
    )
    assert found > 0
    assert [row["differ"] for row in result.found["rows"]] == [0, found]


def test_the_dense_parts_kernels_are_found_right_and_a_wrong_one_wrong(driver, folder, result, monkeypatch):
    driver.reset(0)
    right, dense = import_module("stages.right"), import_module("dense_kernels")
    monkeypatch.setattr(dense, "LINEARS", ("w4", "w8", "bf16"))
    monkeypatch.setattr(dense, "VOCABULARY", 1500)

    def build(name, macros):
        return str(shimmed.build_macros(macros, folder)).encode()

    gpu = FakeGpu("cuda", driver)
    for sizes in (
        dense.Sizes(64, 2, 1, 32, 16, 4, 48, normed=True, lengths=(1, dense.PART + 6)),
        dense.Sizes(96, 4, 2, 32, 8, 2, 40, biased=True, sinks=True, window=5, lengths=(3, 9)),
    ):
        assert right.check_dense(result, gpu, build, "small", sizes, (1, 9)) == 0
    rows = len(result.found["rows"])
    assert rows == 2 * 9
    assert all(row["compared"] > 0 for row in result.found["rows"])
    monkeypatch.setattr(dense, "EPSILON", 1e-3)  # a norm that is not the CPU's
    monkeypatch.setattr(native, "rms_norm", lambda x, weight, epsilon: rms_norm(x, weight, 1e-6))
    assert right.check_dense(result, gpu, build, "wrong", sizes, (1,)) > 0
    wrong = {row["kernels"] for row in result.found["rows"][rows:] if row["differ"]}
    assert wrong == {"add_norm"}


class HostEvent:
    """An event of a queue that is empty whenever it is asked."""

    def record(self, queue: int = 0) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, later: HostEvent) -> float:
        return 1e3 * (later.at - self.at)


@pytest.fixture
def host_events(monkeypatch):
    timeline = import_module("timeline")
    monkeypatch.setattr(timeline, "timed_event", HostEvent)
    return timeline


def test_a_timeline_has_lanes_on_one_time_base(host_events, tmp_path):
    made = host_events.Timeline()
    made.mark("copies", "")
    made.on_host("the CPU", "work", lambda: time.sleep(2e-3))
    made.mark("copies", "three experts")
    made.write(tmp_path / "trace.json")
    written = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    copies, cpu = (one for one in written if one["ph"] == "X")
    assert (copies["name"], cpu["name"]) == ("three experts", "work")
    assert copies["tid"] != cpu["tid"]
    assert copies["ts"] <= cpu["ts"]
    assert cpu["dur"] >= 2e3  # microseconds
    assert cpu["ts"] + cpu["dur"] <= copies["ts"] + copies["dur"] + 1e-3
    names = {one["tid"]: one["args"]["name"] for one in written if one["name"] == "thread_name"}
    assert (names[copies["tid"]], names[cpu["tid"]]) == ("copies", "the CPU")


def test_overlap_measures_each_alone_in_pairs_and_all_at_once(idle, host_events, monkeypatch, tmp_path):
    (tmp_path / "work").mkdir()
    result = import_module("result").Result(tmp_path / "work" / "overlap.json")
    overlap = import_module("stages.overlap")
    monkeypatch.setattr(overlap, "queue_at", int)
    monkeypatch.setattr(overlap, "open_gpu", lambda: idle)
    monkeypatch.setattr(overlap, "builder", lambda gpu: lambda name, macros: b"none is read")
    monkeypatch.setattr(overlap, "RECORDS", 128)
    overlap.run(result)
    assert len(result.found["rows"]) == 7
    said, shown = result.found["notes"]
    assert "no figure here was measured on silicon" in said
    assert "timeline.json" in shown
    spans = [
        one for one in json.loads((tmp_path / "timeline.json").read_text())["traceEvents"] if one["ph"] == "X"
    ]
    assert len({one["tid"] for one in spans}) == 3
    assert all(one["dur"] >= 0 for one in spans)
    assert {"link_contended", "memory_bandwidth", "cpu_bandwidth", "cpu_rate"} == result.found[
        "figures"
    ].keys()


@pytest.fixture
def with_profile(tmp_path):
    """A result of a stage before which a profile was measured."""
    (tmp_path / "work").mkdir()
    (tmp_path / "profile.json").write_text(profiles.load("rtx4090-desktop").to_json())
    return import_module("result").Result(tmp_path / "work" / "decode.json")


def small_config(**sizes):
    """Qwen3-30B-A3B's, of two small layers."""
    config = import_module("qwen3_layers").qwen3_30b_a3b()
    small = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    small |= {"head_dim": 32, "num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 32}
    for name, value in (small | {"vocab_size": 64} | sizes).items():
        setattr(config, name, value)
    return config


@pytest.fixture
def small(monkeypatch):
    """Stages of small models, over a stand-in whose kernels compute."""
    monkeypatch.setattr("torch.cuda.synchronize", lambda *place: None)
    for module in ("stages.decode", "stages.host"):
        for name, value in {"TOKENS": 6, "PROMPTS": (1, 9), "GREEDY": 4, "STEPS": 4, "WARM_UP": 1}.items():
            monkeypatch.setattr(import_module(module), name, value, raising=False)


def test_decoding_runs_on_the_cpu_and_over_the_gpu_with_each_share(driver_of_models, small, with_profile):
    result, decode, model = with_profile, import_module("stages.decode"), import_module("random_model")
    with torch.inference_mode():
        llm = model.random_llm(small_config())
        speeds = decode.measure(result, llm, (0.0, 0.25, 1.0), 6, 1e12)
    assert len(speeds) == 8
    rows = {(row["what"], row.get("batch")): row for row in result.found["rows"]}
    assert rows["cuda 0%", 1]["cpu"] == rows["cuda 100%", 1]["resident"] == 4  # top-4
    assert rows["cuda 100%", 8]["resident"] > 4
    assert rows["cuda 25%", 8]["cpu"] > 0
    assert rows["cuda 25% and its model", None]["modelled_ms"] > 0
    assert rows["greedy tokens", None] == {"what": "greedy tokens", "compared": 3 * 2 * 4, "differ": 0}
    limits = {limit["what"]: limit for limit in result.found["limits"]}
    assert list(limits) == [
        "cuda 25 % of the floor",
        "cuda 25 % against its model, error",
        "greedy tokens over the GPU that are not the CPU's",
    ]
    assert limits["greedy tokens over the GPU that are not the CPU's"]["kept"]
    assert driver_of_models.races == []


def test_greedy_tokens_that_are_not_the_cpus_are_counted(driver_of_models, small, result, monkeypatch):
    decode, model = import_module("stages.decode"), import_module("random_model")
    answers = iter([[1, 2, 3, 4], [5, 6, 7, 8], [1, 2, 0, 0], [5, 6, 7, 8]])
    monkeypatch.setattr(decode, "greedy", lambda llm, prompt, tokens: next(answers))
    monkeypatch.setattr(decode, "decode_all", lambda *arguments: {})
    with torch.inference_mode():
        decode.measure(result, model.random_llm(small_config()), (1.0,), 2, 1e12)
    (limit,) = result.found["limits"]
    assert (limit["value"], limit["kept"]) == (2, False)


def test_transformers_own_model_is_timed_beside(idle, result):
    decode = import_module("stages.decode")
    assert decode.transformers(result, small_config(), idle, 4).keys() == {
        (decode.TRANSFORMERS, 1),
        (decode.TRANSFORMERS, 8),
    }
    assert [row["layers"] for row in result.found["rows"]] == [2, 2]


def test_a_quarter_resident_is_held_against_the_cpu_and_transformers(result):
    decode = import_module("stages.decode")
    decode.compare(result, {("cuda 25%", 1): 30.0, ("cpu", 1): 20.0, (decode.TRANSFORMERS, 1): 40.0})
    assert [(limit["value"], limit["kept"]) for limit in result.found["limits"]] == [
        (1.5, True),
        (0.75, False),
    ]


def test_transformers_model_is_scaled_by_what_its_second_half_takes(monkeypatch):
    bf16, layers = import_module("bf16_model"), import_module("qwen3_layers")
    config = layers.qwen3_30b_a3b()
    config.hidden_size, config.moe_intermediate_size, config.vocab_size, config.num_experts = 64, 32, 64, 8
    monkeypatch.setattr(bf16, "decode", lambda model, batch, tokens: batch + len(model.model.layers))
    assert bf16.step_seconds(config, 4, torch.device("cpu"), (1, 8), 2) == [
        1 + layers.LAYERS,
        8 + layers.LAYERS,
    ]
    one = sum(part.numel() for part in bf16.on_meta(config, 1).model.layers.parameters()) * 2
    head = 2 * 2 * 64 * 64
    assert bf16.fitting_layers(config, 2**30 + head + 3 * one) == 3
    assert bf16.fitting_layers(config, 2**40) == 12
    assert bf16.fitting_layers(config, 2**20) == 0


def test_transformers_without_room_is_said(result, monkeypatch):
    decode = import_module("stages.decode")
    tight = SimpleNamespace(free_bytes=lambda: 2**30, place=torch.device("cpu"))
    assert decode.transformers(result, import_module("qwen3_layers").qwen3_30b_a3b(), tight, 2) == {}
    assert "does not hold two" in result.found["notes"][0]


WAITING = ("cuStreamSynchronize", "cuEventSynchronize")


def test_the_host_waits_once_a_layer_and_for_no_call(driver, idle, small, result, monkeypatch):
    host = import_module("stages.host")
    monkeypatch.setattr(host, "open_gpu", lambda: idle)
    monkeypatch.setattr(host, "launches", lambda result: None)
    monkeypatch.setattr(host, "builder", lambda gpu: lambda name, macros: b"none is read")
    monkeypatch.setattr(host, "qwen3_30b_a3b", lambda: small_config(hidden_size=2048, num_experts=128))
    monkeypatch.setattr(host, "LAYERS", 2)

    def count(work):
        before = sum(map(driver.calls, WAITING))
        work()
        return sum(map(driver.calls, WAITING)) - before

    monkeypatch.setattr(host, "synchronisations", count)
    monkeypatch.setattr(idle, "hand_over", lambda: None)  # only the stand-in's waits there
    drawn = torch.arange(64).view(2, 32) % 8
    driver.route(drawn, drawn)
    host.run(result)
    limits = {limit["what"]: limit["value"] for limit in result.found["limits"]}
    assert [limits[f"waits of the host, a layer, batch {batch}"] for batch in (1, 8)] == [1, 1]
    assert limits["host's work for a layer, us"] > 0
    assert result.found["figures"].keys() == {"sync"}
    assert "no figure here was measured on silicon" in result.found["notes"][0]


def test_synchronising_calls_are_counted_beyond_what_is_done_once(small, monkeypatch):
    host, timed = import_module("stages.host"), import_module("timed_model")
    counts = iter((7 + 2 * 2, 7 + 4 * 2))  # seven at first, then one a layer
    monkeypatch.setattr(host, "synchronisations", lambda work: (work(), next(counts))[1])
    monkeypatch.setattr(
        host, "run_steps", lambda llm, batch, steps: timed.HostTimes(plans=[(4, 0, 0, 0)] * 2 * steps)
    )
    llm = SimpleNamespace(loaded=SimpleNamespace(pool=SimpleNamespace(layers=2)))
    assert host.waits(llm, 1, 4) == 2  # one more than the flag


def test_what_is_waited_for_a_routing_is_no_work_of_the_host():
    timed = import_module("timed_model")
    outcome = (
        1,
        2,
        3,
        4,
        0,
        0,
        0,
        0,
        5,
        0.5,
        0.25,
        0.125,
        2.0,
    )  # counts; seconds, to plan, the CPU's, waited
    model = timed.TimedModel(SimpleNamespace(step=lambda *arguments: [outcome, outcome]))
    model.step()
    assert (model.plan, model.cpu, model.waited) == (0.5, 0.25, 4.0)
    assert model.plans == [(1, 5, 4, 5)] * 2


def test_what_waits_is_told_by_name_and_no_count_is_taken_for_none(monkeypatch):
    host = import_module("stages.host")

    def seeing(*names):
        class Profile:
            def __init__(self, **options):
                pass

            def __enter__(self):
                return self

            def __exit__(self, *error):
                pass

            def events(self):
                return [SimpleNamespace(name=name) for name in names]

        monkeypatch.setattr(host, "profile", Profile)
        return host.synchronisations(lambda: None)

    assert math.isnan(seeing("aten::add"))
    launched = ("cudaLaunchKernel", "cudaMemcpyAsync", "Stream Wait Event", "cudaStreamWaitEvent")
    assert seeing(*launched) == 0
    assert (
        seeing(*launched, "cudaStreamSynchronize", "Stream Sync", "cudaDeviceSynchronize", "Context Sync")
        == 2
    )


def test_systems_are_measured_and_modelled(idle, monkeypatch):
    policies, host, layers = (
        import_module(name) for name in ("stages.policies", "stages.host", "qwen3_layers")
    )
    monkeypatch.setattr(policies, "Foresight", lambda place="cpu": layers.Foresight())
    monkeypatch.setattr(policies, "WARM_UP", 2)
    monkeypatch.setattr(policies, "STEPS", 2)
    costs, pool = layers.cost_model("rtx4090-desktop"), host.several_records(layers.LAYERS, layers.EXPERTS)
    seconds, of_host = policies.measure(idle, pool, costs, 0.25, "ktransformers")
    assert seconds > layers.LAYERS * of_host / 2
    slower = policies.modelled(costs, 0.25, "ktransformers", 1e-3)
    assert slower - policies.modelled(costs, 0.25, "ktransformers", 0.0) > 0.9e-3 * layers.LAYERS


@pytest.mark.parametrize(
    ("pairs", "tau"),
    [([(1, 1), (2, 3), (3, 9)], 1), ([(1, 9), (2, 3), (3, 1)], -1), ([(1, 1), (2, 3), (3, 2)], 1 / 3)],
)
def test_kendalls_tau(pairs, tau):
    assert import_module("stages.policies").kendall(pairs) == pytest.approx(tau)
