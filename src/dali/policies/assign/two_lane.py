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
from itertools import accumulate

from dali import compiled
from dali.hardware.cost import ExpertCosts
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
    searched = search if compiled.in_use is None else compiled.in_use.search_two_lane
    found, seconds, proven = searched(workload, view, costs)
    plan = LayerPlan(*found)
    if proven:
        return plan
    paper = greedy(workload, view, costs)
    if makespan(paper, workload, view, costs) <= seconds * EQUAL:
        return paper
    all_on_cpu = costs.handover + sum([costs.cpu[tokens] for tokens in workload])
    return all_cpu(workload) if all_on_cpu < seconds else plan


def search(workload: Sequence[int], view: ResidencyView, costs: ExpertCosts) -> tuple[LayerPlan, float, bool]:
    """Steps 1 to 3: the plan found, its seconds, and whether no plan can be faster. src/native/plan/assign/two_lane.cpp is
    the same in compiled form."""
    return _Search(workload, view, costs).plan()


class _Search:
    """One layer's search. Lists of experts are by gain once `_prepare` has been called."""

    def __init__(self, workload: Sequence[int], view: ResidencyView, costs: ExpertCosts) -> None:
        self.view, self.costs = view, costs
        # Of active experts: seconds on the CPU, and on the accelerator without the launch.
        self.cpu = {expert: costs.cpu[tokens] for expert, tokens in enumerate(workload) if tokens}
        self.gpu = {expert: costs.gpu[workload[expert]] for expert in self.cpu}
        resident, in_flight = view.resident, view.in_flight
        self.kept = [expert for expert in self.cpu if expert in resident]
        self.absent = [expert for expert in self.cpu if expert not in resident and expert not in in_flight]
        landing = view.landing() if in_flight else []
        self.landing = [expert for expert in landing if expert in self.cpu]
        self.arrivals = {
            e: (in_flight[e], self.gpu[e] + costs.launch if e in self.cpu else 0.0) for e in landing
        }
        self.given_up: list[int] = []  # experts in flight that the CPU computes after all
        self.given_up_cpu = 0.0
        self.known: dict[tuple[int, int], tuple[float, float]] = {}  # what `_ends` has found

    def plan(self) -> tuple[LayerPlan, float, bool]:
        """As search() has it."""
        cpu_end = self.costs.handover + sum([self.cpu[expert] for expert in self.absent])
        if (
            self.absent and cpu_end <= self.view.link_free + self.costs.link
        ):  # the first copy would come too late
            residents = self.costs.launch + sum([self.gpu[expert] for expert in self.kept])
            if self._accelerator_end(residents, (), cpu_end) <= cpu_end:
                return LayerPlan(tuple(self.absent), (*self.kept, *self.landing), ()), cpu_end, True
        self._prepare()
        best, keep, fetch = self._give_up(*self._split())
        absent_seconds = [self.cpu[expert] for expert in self.absent]
        longest_first = sorted(absent_seconds, reverse=True)
        rest = self.absent_cpu if longest_first == absent_seconds else _tails(longest_first)
        fetched = min(self.fetched, default=0.0)
        floor = _floor(rest, fetch, self.most_fetched, fetched, self.view, self.costs)
        return self._found(keep, fetch), best, best <= floor * EQUAL

    def _prepare(self) -> None:
        """Seconds by split: the first n on the accelerator, the others on the CPU."""
        cpu, gpu, launch = self.cpu, self.gpu, self.costs.launch
        self.kept.sort(key=lambda expert: gpu[expert] - cpu[expert])
        self.absent.sort(key=lambda expert: gpu[expert] - cpu[expert])
        self.most_kept = len(self.kept)
        self.most_fetched = len(self.absent) if self.view.slots else 0
        self.kept_gpu = [0.0, *accumulate([gpu[expert] for expert in self.kept], initial=launch)]
        self.kept_gpu[1:2] = []  # no resident, no launch
        self.kept_cpu = _tails([cpu[expert] for expert in self.kept])
        self.fetched = [gpu[expert] + launch for expert in self.absent]
        self.absent_cpu = _tails([cpu[expert] for expert in self.absent])

    def _accelerator_end(self, residents: float, fetched: Sequence[float], cpu_end: float) -> float:
        arrivals = list(self.arrivals.values())
        return accelerator_end(residents, arrivals, fetched, self.view, cpu_end, self.costs)

    def _ends(self, keep: int, fetch: int) -> tuple[float, float]:
        """When the CPU and the accelerator are done."""
        if (keep, fetch) not in self.known:
            cpu_end = self.given_up_cpu + self.kept_cpu[keep] + self.absent_cpu[fetch]
            if cpu_end:
                cpu_end += self.costs.handover
            longest_first = sorted(self.fetched[:fetch], reverse=True)
            gpu_end = self._accelerator_end(self.kept_gpu[keep], longest_first, cpu_end)
            self.known[keep, fetch] = cpu_end, gpu_end
        return self.known[keep, fetch]

    def _late(self, keep: int, fetch: int) -> bool:
        cpu_end, gpu_end = self._ends(keep, fetch)
        return gpu_end >= cpu_end

    def _split(self) -> tuple[float, int, int]:
        """Steps 1 and 2: seconds, residents kept, absent experts fetched."""
        most_kept, most_fetched = self.most_kept, self.most_fetched
        # The copies alone bound the crossing from above, without a timeline.
        cpu_rest, link_free, link = (
            self.given_up_cpu + self.kept_cpu[most_kept],
            self.view.link_free,
            self.costs.link,
        )
        copied = range(most_fetched)
        bound = bisect_left(copied, True, key=lambda n: link_free + n * link >= cpu_rest + self.absent_cpu[n])
        crossing = bound
        if bound and self._late(most_kept, bound - 1):  # seldom
            crossing = bisect_left(range(bound - 1), True, key=lambda fetch: self._late(most_kept, fetch))
        cpu_end, gpu_end = self._ends(most_kept, crossing)
        found = max(cpu_end, gpu_end), most_kept, crossing
        splits = [(most_kept, crossing - 1)] if crossing else []
        if self.kept and gpu_end > cpu_end and self._ends(most_kept - 1, crossing)[1] < gpu_end:
            keep = bisect_left(range(most_kept), True, key=lambda keep: self._late(keep, crossing))
            splits += [(keep, crossing), (max(keep - 1, 0), crossing)]
        for keep, fetch in splits:
            found = min(found, (max(self._ends(keep, fetch)), keep, fetch))
        if link_free + most_fetched * link < found[0]:
            found = min(found, (max(self._ends(most_kept, most_fetched)), most_kept, most_fetched))
        return found

    def _give_up(self, best: float, keep: int, fetch: int) -> tuple[float, int, int]:
        """Step 3: what the CPU makes of the experts that land last."""
        for expert in reversed(self.landing):
            # Not when the accelerator waits for new copies, or the CPU would be later still.
            if fetch or self.given_up_cpu + self.cpu[expert] >= best:
                break
            arrival = self.arrivals[expert]
            self.arrivals[expert] = (arrival[0], 0.0)
            self.given_up_cpu += self.cpu[expert]
            self.known.clear()
            found = self._split()
            if found[0] >= best:
                self.arrivals[expert] = arrival
                break
            best, keep, fetch = found
            self.given_up.append(expert)
        return best, keep, fetch

    def _found(self, keep: int, fetch: int) -> LayerPlan:
        on_time = [expert for expert in self.landing if expert not in self.given_up]
        fetches = sorted(self.absent[:fetch], key=lambda expert: -self.gpu[expert]) if fetch else ()
        cpu_experts = (*self.absent[fetch:], *self.kept[keep:], *self.given_up)
        return LayerPlan(cpu_experts, (*self.kept[:keep], *on_time, *fetches), tuple(fetches))


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
