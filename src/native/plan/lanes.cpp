#include "plan/lanes.h"

#include "ops/pairs.h"

namespace dali {

namespace {

constexpr int64_t MOST_TOGETHER = 4;

}  // namespace

Workload workload_of(const int64_t* ids, int64_t pairs, int experts) {
    Workload workload{count_pairs(ids, pairs, experts), {}};
    for (int expert = 0; expert < experts; expert++)
        if (workload.tokens[expert]) workload.active.push_back(expert);
    return workload;
}

int64_t group_size(int64_t slots) { return std::max<int64_t>(std::min(slots / 4, MOST_TOGETHER), 1); }

double accelerator_end(double resident_seconds, const std::vector<Arrival>& arrivals, const std::vector<double>& fetched, const Link& link,
                       double cpu_end, std::vector<double>& released) {
    double lane = resident_seconds, busy = link.free;
    released.clear();
    for (const auto& [landed, seconds] : arrivals) {
        busy = std::max(busy, landed);
        const double start = seconds && lane > landed ? lane : landed;
        if (seconds) lane = start + seconds;
        released.push_back(start + seconds);
    }
    const int64_t group = group_size(link.slots), all = int64_t(fetched.size());
    for (int64_t first = 0; first < all; first += group) {
        const int64_t count = std::min(group, all - first), turn = int64_t(released.size()) + count - 1 - link.slots;
        const double copies = double(count), copy = turn >= 0 ? std::max(released[turn], busy) : busy;
        if (copy >= cpu_end) {
            busy = copy + copies * link.alone;
        } else {
            busy = copy + copies * link.contended;
            if (busy > cpu_end)  // the rest of the copies runs at full pace
                busy = cpu_end + copies * link.alone * (1 - (cpu_end - copy) / (copies * link.contended));
        }
        double together = 0;
        for (int64_t i = first; i < first + count; i++) together += fetched[i];
        lane = std::max(lane, busy) + together - (copies - 1) * link.launch;
        released.insert(released.end(), count, lane);
    }
    return lane;
}

double makespan(const LayerPlan& plan, const Workload& workload, const LayerView& view, const ExpertCosts& costs) {
    const auto on_gpu = [&](int expert) { return costs.gpu.at(workload.tokens[expert]); };
    double cpu_end = 0, residents = 0;
    for (const int expert : plan.cpu) cpu_end += costs.cpu.at(workload.tokens[expert]);
    if (!plan.cpu.empty()) cpu_end = costs.handover + cpu_end;
    bool any = false;
    for (const int expert : plan.gpu)
        if (view.places[expert] == Place::resident) any = true, residents += on_gpu(expert);
    if (any) residents += costs.launch;
    std::vector<double> fetched, released;
    for (const int expert : plan.fetch) fetched.push_back(on_gpu(expert) + costs.launch);
    std::vector<Arrival> arrivals;
    for (const auto& [seconds, expert] : view.in_flight) {
        arrivals.push_back({seconds, contains(plan.gpu, expert) ? on_gpu(expert) + costs.launch : 0.0});
    }
    const Link link{view.slots, view.link_free, costs.link, costs.link_contended, costs.launch};
    return std::max(cpu_end, accelerator_end(residents, arrivals, fetched, link, cpu_end, released));
}

}  // namespace dali
