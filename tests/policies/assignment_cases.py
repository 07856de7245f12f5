"""Small layers for the assignment tests: costs by hand, random ones, and the optimum by trying every plan."""

from itertools import permutations
from random import Random

from hypothesis import strategies as st

from dali.hardware.cost import ExpertCosts
from dali.policies.lanes import makespan
from dali.policies.plan import LayerPlan, ResidencyView

MOST_TOKENS = 24
# w:                       0  1  2  3   4
BY_HAND = ExpertCosts(cpu=[0, 4, 6, 8, 10], gpu=[0, 1, 2, 3, 4], link=5, link_contended=5, launch=0)


def roofline(cpu_stream, cpu_token, gpu_stream, gpu_token, link, slowdown, launch):
    def table(stream, token):
        return [0.0] + [max(stream, token * w) for w in range(1, MOST_TOKENS + 1)]

    return ExpertCosts(
        table(cpu_stream, cpu_token), table(gpu_stream, gpu_token), link, link * slowdown, launch
    )


def random_layer(rng: Random, experts: int, in_flight: bool):
    """A workload, a view and costs over four orders of magnitude."""
    workload = [rng.choice([0, 1, 1, 2, 3, 5, 9, 20]) for _ in range(experts)]
    ids = rng.sample(range(experts), experts)
    resident = rng.randrange(experts + 1)
    slots = rng.choice([0, 1, 2, 3, 8])
    link = 10 ** rng.uniform(-0.5, 1)
    flying = {}
    if in_flight:
        landing = 0.0
        for expert in ids[resident : resident + rng.randrange(min(slots, 3) + 1)]:
            landing += link * rng.random()
            flying[expert] = landing
    view = ResidencyView(frozenset(ids[:resident]), flying, slots, rng.choice([0.0, link * rng.random()]))
    costs = roofline(
        10 ** rng.uniform(-0.5, 0.7),
        10 ** rng.uniform(-1.5, 0.3),
        10 ** rng.uniform(-1.5, 0.3),
        10 ** rng.uniform(-2.5, -0.5),
        link,
        rng.choice([1.0, 1.3, 2.0]),
        rng.choice([0.0, 0.05, 0.3]),
    )
    return workload, view, costs


@st.composite
def layers(draw, experts: int = 10):
    """The same as a Hypothesis strategy."""
    return random_layer(
        Random(draw(st.integers(0, 2**32))), draw(st.integers(1, experts)), draw(st.booleans())
    )


def brute_force(workload, view, costs) -> float:
    """The least makespan of all plans: every split, every copy order."""
    active = [expert for expert, tokens in enumerate(workload) if tokens]
    best = float("inf")
    for bits in range(1 << len(active)):
        gpu = [expert for n, expert in enumerate(active) if bits >> n & 1]
        cpu = tuple(expert for expert in active if expert not in gpu)
        residents = [expert for expert in gpu if expert in view.resident]
        landing = [expert for expert in view.landing() if expert in gpu]
        absent = [expert for expert in gpu if expert not in (*residents, *landing)]
        if absent and not view.slots:
            continue
        for fetch in permutations(absent):
            plan = LayerPlan(cpu, (*residents, *landing, *fetch), fetch)
            best = min(best, makespan(plan, workload, view, costs))
    return best
