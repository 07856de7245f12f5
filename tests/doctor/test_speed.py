"""Predicted speeds, worked by hand from a profile of round figures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dali.doctor.plan import DISK, KERNELS, RAM, Device, Plan
from dali.doctor.sizes import Dense, ExpertFormat, Kept, ModelSizes
from dali.doctor.speed import MEASURED, ROUGH, predict
from dali.doctor.verdict import of_speed
from dali.hardware.profile import Figure, Profile, Table, load
from dali.options import LoadOptions
from dali.replay.shapes import Shape
from dali.replay.steps import forwards
from dali.replay.timeline import Timeline
from dali.replay.traces.trace import Trace

BANDWIDTH, RATE, DISK_BANDWIDTH = 1e9, 1e15, 1e8  # so fast a processor that bytes alone count


def profile(label: str = "measured") -> Profile:
    values = {
        "memory_bandwidth": (BANDWIDTH, "B/s"),
        "cpu_bandwidth": (BANDWIDTH, "B/s"),
        "cpu_rate": (RATE, "FLOP/s"),
        "disk_bandwidth": (DISK_BANDWIDTH, "B/s"),
        "disk_latency": (1e-4, "s"),
        "disk_queue_depth": (1.0, "reads"),
    }
    return Profile(
        "p", "p", {name: Figure(value, unit, label, "by hand") for name, (value, unit) in values.items()}
    )


SIZES = ModelSizes(
    name="m",
    family="f",
    layers=2,
    moe_layers=2,
    experts=4,
    top_k=2,
    hidden=1000,
    intermediate=500,
    gated=True,
    biased=False,
    dense=(Dense(1000, 1000, "linear"), Dense(100, 1000, "embedding"), Dense(100, 1000, "linear", head=True)),
    kept=(Kept(1, 250, 250, None, 1),) * 2,
    context=1000,
    vocab=100,
    dtype="bfloat16",
    file_bytes=8_000_000,
)
PLAN = Plan(
    RAM,
    [ExpertFormat("f32", 1_000_000, 1_000_000)] * 2,
    "bfloat16",
    False,
    1000,
    2_000_000,
    8_000_000,
    0,
    2**30,
    all_slots=8,
)


def test_a_token_takes_as_long_as_reading_what_it_needs():
    # 2 layers x 2 experts of 1 MB; the linear's 2 MB and the head's 0.2; 2 layers of 1,000 bytes a token, of 500 tokens.
    seconds = (4e6 + 2.2e6 + 2 * 1000 * 500) / BANDWIDTH
    found = predict(SIZES, profile(), PLAN, context=500)
    assert found.decode.expected == pytest.approx(1 / seconds)
    assert found.decode.low == pytest.approx(found.decode.expected / (1 + ROUGH))  # torch computes it
    packed = predict(SIZES, profile(), replace(PLAN, packed=True), context=500).decode
    assert packed.low == pytest.approx(packed.expected / (1 + MEASURED))
    assert predict(SIZES, profile("roofline"), PLAN, 500).decode.high == pytest.approx((1 + ROUGH) / seconds)


def test_from_disk_what_ram_lacks_is_read():
    on_disk = replace(PLAN, where=DISK, slots=2)
    found = predict(SIZES, profile(), on_disk, context=0)
    # A layer's expert takes 1 ms; one that is read 0.1 and 10 before. Of a token's two 1.5 are read, by hits of a quarter: half
    # of the layers read one, half two, one after the other. By hits of its root each layer reads one.
    even = 2.2e-3 + 2 * (11.1e-3 + 21.2e-3) / 2
    kind = 2.2e-3 + 2 * 11.1e-3
    assert found.decode.low == pytest.approx(1 / even / (1 + ROUGH))
    assert found.decode.high == pytest.approx(1 / kind * (1 + ROUGH))
    assert 1 / even < found.decode.expected < 1 / kind
    known = predict(SIZES, profile(), on_disk, context=0, hits=0.5).decode
    assert known == pytest.approx((1 / kind / (1 + ROUGH), 1 / kind, 1 / kind * (1 + ROUGH)))
    assert predict(SIZES, profile(), on_disk, hits=1.0).decode == predict(SIZES, profile(), PLAN).decode


def test_a_step_that_wants_nearly_all_experts_reads_on_beside_its_dense_part():
    # 3 tokens are routed to 3.5 of 4 experts; three quarters of those are read, in 26.25 ms a layer, and all but the last two
    # computed meanwhile.
    on_disk = replace(PLAN, where=DISK, slots=2)
    assert predict(SIZES, profile(), on_disk, prompt=3).prompt.expected == pytest.approx(3 / 56.5e-3)
    # With a disk ten times as fast computing takes longer, here 12 times as long beside reads: 42 ms a layer instead of 3.5.
    tables = tuple(
        Table("cpu", "f32", 1000, 500, 3, ((1, seconds), (4, seconds)), "measured", "by hand", beside=beside)
        for beside, seconds in (("", 1e-3), ("reads", 12e-3))
    )
    slow = 3 / predict(SIZES, replace(profile(), tables=tables), on_disk, prompt=3).prompt.expected
    assert slow == pytest.approx(2 * (26.25e-3 + 2 * 12e-3))
    fast = Figure(10 * DISK_BANDWIDTH, "B/s", "measured", "by hand")
    quick = replace(profile(), figures={**profile().figures, "disk_bandwidth": fast}, tables=tables)
    alone = 3 / predict(SIZES, quick, PLAN, prompt=3).prompt.expected
    assert 3 / predict(SIZES, quick, on_disk, prompt=3).prompt.expected == pytest.approx(alone + 2 * 38.5e-3)


def test_a_prompt_is_computed_in_chunks_each_of_which_reads_all_weights():
    # Chunks of 2 tokens and 1 read the linear's 2 MB and the head's 0.2 each, and 3 and 2 of a layer's 4 experts.
    weights = 2 * 2.2e6 + 2 * (3 + 2) * 1e6
    # A token and layer: two norms and two sums of 1,000 values, a key and a query of 250 that are turned, 2 bytes each; a row of
    # 1,000 values in 4 bytes of each of 2 experts, read before it is written and once after it, and their sum, read before.
    passes = 3 * 2 * (2 * 2000 * (2 + 3) + 2 * 500 * 2 + 4000 * (2 * 3 + 2))
    found = predict(SIZES, profile(), replace(PLAN, chunk=2), prompt=3)
    assert 3 / found.prompt.expected == pytest.approx((weights + passes) / BANDWIDTH)
    assert found.prompt.low == pytest.approx(found.prompt.expected / (1 + ROUGH))


def test_keys_and_values_in_8_bits_are_read_as_such():
    # A head's 250 values are 250 bytes and 8 scales of 2 bytes, a key and a value in each of 2 layers.
    found = predict(SIZES, profile(), replace(PLAN, in_q8=True), context=500)
    assert 1 / found.decode.expected == pytest.approx((4e6 + 2.2e6 + 2 * 2 * 266 * 500) / BANDWIDTH)


def test_without_a_disk_nobody_knows_how_long_loading_takes():
    figures = {name: one for name, one in profile().figures.items() if "disk" not in name}
    assert predict(SIZES, profile(), PLAN).load is not None
    assert predict(SIZES, replace(profile(), figures=figures), PLAN).load is None


@pytest.mark.parametrize("window", [None, 1, 3, 5, 100])
@pytest.mark.parametrize("chunk", [1, 3, 4, 512])
def test_every_head_of_a_query_attends_to_what_the_window_leaves(window, chunk):
    rate = Figure(1e6, "FLOP/s", "measured", "by hand")
    slow = replace(profile(), figures={**profile().figures, "attention_rate": rate})

    def seconds(queries: int) -> float:
        sizes = replace(SIZES, kept=(SIZES.kept[0]._replace(window=window, queries=queries),))
        return 7 / predict(sizes, slow, replace(PLAN, chunk=chunk), prompt=7).prompt.expected

    pairs = sum(min(position, window or position) for position in range(1, 8))
    turned = 7 * 3 * 250 * 2 * 2 / BANDWIDTH  # three more queries a token
    assert seconds(4) - seconds(1) == pytest.approx(3 * pairs * 2 * (250 + 250) / 1e6 + turned)


def test_several_sequences_share_experts():
    alone = predict(SIZES, profile(), PLAN, context=0).decode.expected
    assert alone < predict(SIZES, profile(), PLAN, context=0, batch=4).decode.expected < 4 * alone


@pytest.mark.parametrize(("speed", "word"), [(10.0, "FAST"), (9.9, "USABLE"), (3.0, "USABLE"), (2.9, "SLOW")])
def test_verdicts_go_by_decoding(speed, word):
    found = predict(SIZES, profile(), PLAN)
    interval = found.decode._replace(expected=speed)
    assert of_speed(replace(found, decode=interval)).word == word


MACHINE = load("rtx3060-desktop")
SPARSE = replace(SIZES, layers=4, moe_layers=4, experts=32, top_k=4, kept=SIZES.kept[:1] * 4)
FORMAT = ExpertFormat("w4", 843_776, 843_750)


def beside(resident: int, **options: Any) -> Plan:
    """With so many experts on a simulated accelerator."""
    asked = LoadOptions(device="sim:rtx3060-desktop", **options)
    plan = replace(PLAN, layouts=[FORMAT] * 4, all_slots=4 * 32, packed=True)
    return replace(plan, resident=resident, device=Device(asked.device, MACHINE, True), options=asked)


def replayed(capacity: int, tokens: int = 400, **options: Any) -> float:
    """Tokens a second of a replay in which every expert is as likely, whatever came before, with so many residents a layer."""
    generator = np.random.default_rng(0)
    ids = generator.random((tokens, 4, 32)).argsort(axis=2)[..., :4].astype(np.uint8)
    meta = {"model": "even", "n_experts": 32, "top_k": 4, "n_layers": 4}
    trace = Trace("even", meta, ids, np.array([0, tokens]), np.ones(tokens, np.uint8))
    weights = SPARSE.computed // 4
    shape = Shape(1000, 500, 3, "w4", FORMAT.weights, weights, 2 * weights, KERNELS)
    asked = LoadOptions(device="sim:rtx3060-desktop", **options)
    policies = asked.policies(4, 32, 4, capacity)
    replay = Timeline(trace, policies, shape, shape.costs(MACHINE, 512), capacity, guarded=True)
    result = replay.run(forwards(trace, 1))
    return result.tokens / result.seconds


@pytest.mark.parametrize("assign", ["two_lane", "cpu_on_miss", "gpu", "greedy"])
def test_a_policy_takes_as_long_as_its_replay_where_routing_is_even(assign):
    """The slow end, with residents that stay; 16 of the slots are what others pass through."""
    wanted = replayed(16, assign=assign, cache="static", prefetch="none")
    found = predict(SPARSE, MACHINE, beside(4 * 16 + 16, assign=assign), context=0)
    assert found.decode.low * (1 + ROUGH) == pytest.approx(wanted, rel=0.02)  # which is chance's
    assert found.decode.low < found.decode.expected < found.decode.high


@pytest.mark.parametrize("cpu_layers", [0, 1, 3, 4])
def test_whole_layers_take_as_long_as_their_replay(cpu_layers):
    wanted = replayed(32 if cpu_layers < 4 else 0, tokens=20, n_cpu_moe=cpu_layers)
    found = predict(SPARSE, MACHINE, beside(32 * (4 - cpu_layers), n_cpu_moe=cpu_layers), context=0)
    assert found.decode.expected == pytest.approx(wanted)
    assert found.decode.high == pytest.approx(wanted * (1 + ROUGH))  # nothing depends on what is routed to


def test_a_prompt_goes_by_the_policy_too():
    """Every expert is wanted: those that are not there are copied behind one another, or computed by the CPU."""
    found = {
        name: predict(SPARSE, MACHINE, beside(80, assign=name)).prompt.expected
        for name in ("cpu_on_miss", "gpu")
    }
    there = predict(SPARSE, MACHINE, beside(128)).prompt.expected
    assert found["cpu_on_miss"] < found["gpu"] < there


def test_a_system_is_told_whether_a_step_is_of_a_prompt():
    """Collaborative compression computes prompts on the CPU, answers where its residents are."""
    system = predict(SPARSE, MACHINE, beside(80, policy="collaborative"))
    alone = predict(SPARSE, MACHINE, beside(80, assign="cpu"))
    assert system.prompt == alone.prompt
    assert system.decode.expected > alone.decode.expected


def test_keys_and_values_on_an_accelerator_are_read_there():
    plan = beside(128)
    short, long = (1 / predict(SPARSE, MACHINE, plan, context=each).decode.expected for each in (0, 1000))
    assert long - short == pytest.approx(4 * 1000 * 1000 / MACHINE["gpu_bandwidth"])


def test_experts_on_an_accelerator_need_no_place_in_ram():
    plan = replace(beside(80), where=DISK, slots=48)
    assert predict(SPARSE, MACHINE, plan).decode == predict(SPARSE, MACHINE, beside(80)).decode
    fewer = predict(SPARSE, MACHINE, replace(plan, slots=40)).decode
    assert fewer.expected < predict(SPARSE, MACHINE, plan).decode.expected
