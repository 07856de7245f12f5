"""Two-lane assignment (ours): the best split found in the lane model of `policies.lanes`.

Greedy's sum of max(transfer, compute) charges residents as if they could not run under another expert's
transfer, and an expert in flight a whole copy. Here every candidate is judged by its timeline, unless the first
copy would come too late to spare the CPU anything: then it computes all that is absent. Fetching costs
the same for each absent expert, so the ones to fetch are those with the largest gain, t_cpu - compute on the
accelerator; the same order says which residents the CPU can best relieve the accelerator of. That leaves a
search over two numbers, how many residents stay on the accelerator and how many absent experts are fetched,
each list by gain (ties: lower id):

1. bisect the fetches with all residents kept: the accelerator's end rises with them, the CPU's falls;
2. at that crossing bisect the residents kept, if the accelerator is late because it computes;
3. if it is late because it waits for an expert in flight, let the CPU have the one that lands last, and
   search again;
4. unless no plan can be faster, compare with everything on one device and with greedy: never worse than
   those in this model.

Copies go longest compute first: the last one to land then leaves the least to do (Johnson's rule for equal
copies).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import cache
from itertools import accumulate

from dali.hardware.cost import ExpertCosts
from dali.kernels.planning import search_two_lane
from dali.policies.assign.cpu import all_cpu
from dali.policies.assign.greedy import greedy
from dali.policies.lanes import accelerator_end, makespan
from dali.policies.plan import LayerPlan, ResidencyView

EQUAL = 1 + 1e-9  # times that differ by less are the same sum, taken in another order


class Policy:
    """`two_lane`, the default."""

    def assign(
        self, layer: int, workload: Sequence[int], view: ResidencyView, costs: ExpertCosts
    ) -> LayerPlan:
        return two_lane(workload, view, costs)


def two_lane(workload: Sequence[int], view: ResidencyView, costs: ExpertCosts) -> LayerPlan:
    """The plan of least makespan among those searched."""
    found, seconds, proven = (search_two_lane or search)(workload, view, costs)
    plan = LayerPlan(*found)
    if proven:
        return plan
    paper = greedy(workload, view, costs)
    if makespan(paper, workload, view, costs) <= seconds * EQUAL:
        return paper
    all_on_cpu = costs.handover + sum([costs.cpu[tokens] for tokens in workload])
    return all_cpu(workload) if all_on_cpu < seconds else plan


def search(workload: Sequence[int], view: ResidencyView, costs: ExpertCosts) -> tuple[LayerPlan, float, bool]:
    """Steps 1 to 3: the plan found, its seconds, and whether no plan can be faster. Compiled where kernels.planning has it."""
    cpu, gpu, launch, resident, in_flight = costs.cpu, costs.gpu, costs.launch, view.resident, view.in_flight
    kept, absent, gains = [], [], {}
    for expert, tokens in enumerate(workload):
        if tokens:
            gains[expert] = gpu[tokens] - cpu[tokens]
            if expert in resident:
                kept.append(expert)
            elif expert not in in_flight:
                absent.append(expert)
    landing = view.landing() if in_flight else []
    arrivals = [(in_flight[e], gpu[workload[e]] + launch if workload[e] else 0.0) for e in landing]
    cpu_end = costs.handover + sum([cpu[workload[expert]] for expert in absent])
    if absent and cpu_end <= view.link_free + costs.link:  # the first copy would come too late
        residents = launch + sum([gpu[workload[expert]] for expert in kept])
        if accelerator_end(residents, arrivals, (), view, cpu_end, costs) <= cpu_end:
            on_time = [expert for expert in landing if workload[expert]]
            return LayerPlan(tuple(absent), (*kept, *on_time), ()), cpu_end, True
    kept.sort(key=gains.__getitem__)
    absent.sort(key=gains.__getitem__)
    most_kept, most_fetched = len(kept), len(absent) if view.slots else 0

    # Seconds by split: the first n on the accelerator, the others on the CPU.
    kept_gpu = [0.0, *accumulate([gpu[workload[expert]] for expert in kept], initial=launch)]
    kept_gpu[1:2] = []  # no resident, no launch
    kept_cpu = _tails([cpu[workload[expert]] for expert in kept])
    fetched = [gpu[workload[expert]] + launch for expert in absent]
    absent_seconds = [cpu[workload[expert]] for expert in absent]
    absent_cpu = _tails(absent_seconds)
    given_up: list[int] = []  # experts in flight that the CPU computes after all
    given_up_cpu = 0.0

    @cache
    def ends(keep: int, fetch: int) -> tuple[float, float]:
        cpu_end = given_up_cpu + kept_cpu[keep] + absent_cpu[fetch]
        if cpu_end:
            cpu_end += costs.handover
        longest_first = sorted(fetched[:fetch], reverse=True)
        return cpu_end, accelerator_end(kept_gpu[keep], arrivals, longest_first, view, cpu_end, costs)

    def late(keep: int, fetch: int) -> bool:
        cpu_end, gpu_end = ends(keep, fetch)
        return gpu_end >= cpu_end

    def split() -> tuple[float, int, int]:
        # The copies alone bound the crossing from above, without a timeline.
        cpu_rest, link_free, link = given_up_cpu + kept_cpu[most_kept], view.link_free, costs.link
        copied = range(most_fetched)
        bound = bisect_left(copied, True, key=lambda n: link_free + n * link >= cpu_rest + absent_cpu[n])
        crossing = bound
        if bound and late(most_kept, bound - 1):  # seldom
            crossing = bisect_left(range(bound - 1), True, key=lambda fetch: late(most_kept, fetch))
        cpu_end, gpu_end = ends(most_kept, crossing)
        found = max(cpu_end, gpu_end), most_kept, crossing
        splits = [(most_kept, crossing - 1)] if crossing else []
        if kept and gpu_end > cpu_end and ends(most_kept - 1, crossing)[1] < gpu_end:
            keep = bisect_left(range(most_kept), True, key=lambda keep: late(keep, crossing))
            splits += [(keep, crossing), (max(keep - 1, 0), crossing)]
        for keep, fetch in splits:
            found = min(found, (max(ends(keep, fetch)), keep, fetch))
        if view.link_free + most_fetched * costs.link < found[0]:
            found = min(found, (max(ends(most_kept, most_fetched)), most_kept, most_fetched))
        return found

    best, keep, fetch = split()
    for index in reversed([i for i, expert in enumerate(landing) if workload[expert]]):
        expert, arrival = landing[index], arrivals[index]
        seconds = cpu[workload[expert]]
        # Not when the accelerator waits for new copies, or the CPU would be later still.
        if fetch or given_up_cpu + seconds >= best:
            break
        arrivals[index] = (arrival[0], 0.0)
        given_up_cpu += seconds
        ends.cache_clear()
        found = split()
        if found[0] >= best:
            arrivals[index] = arrival
            break
        best, keep, fetch = found
        given_up.append(expert)

    longest_first = sorted(absent_seconds, reverse=True)
    rest = absent_cpu if longest_first == absent_seconds else _tails(longest_first)
    floor = _floor(rest, fetch, most_fetched, min(fetched, default=0.0), view, costs)
    on_time = [expert for expert in landing if workload[expert] and expert not in given_up]
    fetches = sorted(absent[:fetch], key=lambda expert: -gpu[workload[expert]]) if fetch else ()
    cpu_experts = (*absent[fetch:], *kept[keep:], *given_up)
    plan = LayerPlan(cpu_experts, (*kept[:keep], *on_time, *fetches), tuple(fetches))
    return plan, best, best <= floor * EQUAL


def _floor(
    rest: list[float], fetch: int, most: int, fetched: float, view: ResidencyView, costs: ExpertCosts
) -> float:
    """Seconds that no plan is below: with n fetches the CPU still has the absent experts but, at best, the n longest, and the
    link n copies. `rest`: the CPU's seconds then; `fetch`: fetches, of `most`, to look near; `fetched`: the least launch and
    compute of one."""

    def on_cpu(n: int) -> float:
        return rest[n] + costs.handover if rest[n] else 0.0

    def on_link(n: int) -> float:
        return view.link_free + n * costs.link + fetched if n else 0.0

    crossing = fetch
    while crossing < most and on_link(crossing) < on_cpu(crossing):
        crossing += 1
    while crossing and on_link(crossing - 1) >= on_cpu(crossing - 1):
        crossing -= 1
    least = max(on_cpu(crossing), on_link(crossing))
    return min(least, on_cpu(crossing - 1)) if crossing else least


def _tails(seconds: list[float]) -> list[float]:
    """Entry n is the sum of seconds[n:]."""
    return list(accumulate(reversed(seconds), initial=0.0))[::-1]
