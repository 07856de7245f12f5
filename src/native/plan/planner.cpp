#include "plan/planner.h"

#include <algorithm>

#include "plan/assign/assign.h"

namespace dali {

namespace {

StepCounts count(const Planned& step, const std::vector<int>& waiting) {
    const LayerPlan& plan = step.plan;
    int used = 0, late = 0;
    for (const int expert : waiting) {
        if (contains(plan.gpu, expert)) used++;
        else if (step.workload.tokens[expert]) late++;
    }
    const int fetched = int(plan.fetch.size());
    return {int(plan.cpu.size()), int(plan.gpu.size()) - fetched - used, used, fetched, late, int(waiting.size()) - used - late, 0, 0, 0};
}

}  // namespace

StepPlan Planner::plan(int layer, const int64_t* ids, int64_t pairs, const Prediction& ahead, double now, uint64_t landed,
                       StepCounts& counts, const InRam* in_ram) {
    const Workload workload = workload_of(ids, pairs, experts_);
    if (totals_)
        for (const int expert : workload.active) totals_[int64_t(layer) * experts_ + expert] += workload.tokens[expert];
    period_.start(layer, now);
    residency_.settle(landed);
    const LayerView view = residency_.view(layer, now);
    LayerPlan plan = all_on_cpu_ ? LayerPlan{workload.active, {}, {}} : assign(workload, view, costs_);
    const Planned decided{layer, workload, view, plan};
    const std::vector<int> waiting = residency_.scratch(layer);
    counts = count(decided, waiting);
    if (!all_on_cpu_) guards_.settle(decided, waiting, residency_.residents(layer), ahead.seconds);
    if (in_ram) order_by_arrival(layer, workload, *in_ram, plan);
    const Planned step{layer, workload, view, plan};

    StepPlan found{{}, place(step, now), {}};
    const std::vector<int> fetched = residency_.scratch(layer);
    std::vector<Swap> swaps = fading_.observe(layer, workload, residency_.residents(layer), fetched, residency_.unsettled(layer));
    if (all_on_cpu_) swaps.clear();
    if (in_ram)
        swaps.erase(std::remove_if(swaps.begin(), swaps.end(), [&](const Swap& swap) {
            return !contains(fetched, swap.load) && !(*in_ram)(layer, swap.load);
        }), swaps.end());
    swaps = guards_.allow(layer, std::move(swaps), fetched, view.link_free);
    counts.swaps = int(swaps.size());
    for (const Swap& swap : swaps)
        if (contains(fetched, swap.load)) residency_.swap(layer, swap.evict, swap.load, now);
    for (const int expert : residency_.scratch(layer)) residency_.release(layer, expert);

    if (ahead.count)
        for (const int expert : choose(ahead, layer, now)) {
            if (in_ram && !(*in_ram)(ahead.layer, expert)) continue;
            residency_.fetch(ahead.layer, {expert}, now);
            found.fetches.push_back({ahead.layer, expert, residency_.slot(ahead.layer, expert)});
            counts.ahead++;
        }
    for (const Swap& swap : swaps)
        if (!contains(fetched, swap.load)) {
            residency_.swap(layer, swap.evict, swap.load, now);
            found.fetches.push_back({layer, swap.load, residency_.slot(layer, swap.load)});
            counts.copied_swaps++;
        }
    guards_.queued(counts.ahead, counts.copied_swaps);
    planned_ = plan.cpu.empty() ? 0 : call_;
    all_on_cpu_seconds_ = 0;
    for (const int expert : plan.cpu) planned_ += given_.cpu[workload.tokens[expert]];
    for (const int expert : workload.active) all_on_cpu_seconds_ += given_.cpu[workload.tokens[expert]];
    found.cpu = std::move(plan.cpu);
    return found;
}

// As src/dali/runtime/loans.py has it.
void Planner::order_by_arrival(int layer, const Workload& workload, const InRam& in_ram, LayerPlan& plan) const {
    std::vector<int> arriving, missing;
    for (const std::vector<int>* experts : {&plan.cpu, &plan.fetch})
        for (const int expert : *experts) (in_ram(layer, expert) ? arriving : missing).push_back(expert);
    if (missing.empty()) return;
    const auto rest = [&](int expert) {
        const int64_t tokens = workload.tokens[expert];
        return contains(plan.cpu, expert) ? costs_.cpu[tokens] : costs_.link + costs_.gpu[tokens] + costs_.launch;
    };
    std::stable_sort(missing.begin(), missing.end(), [&](int a, int b) { return rest(a) > rest(b); });
    arriving.insert(arriving.end(), missing.begin(), missing.end());
    LayerPlan ordered{{}, {plan.gpu.begin(), plan.gpu.end() - int64_t(plan.fetch.size())}, {}};
    for (const int expert : arriving) (contains(plan.cpu, expert) ? ordered.cpu : ordered.fetch).push_back(expert);
    ordered.gpu.insert(ordered.gpu.end(), ordered.fetch.begin(), ordered.fetch.end());
    plan = std::move(ordered);
}

void Planner::correct(double cpu, double link) {
    for (size_t tokens = 0; tokens < given_.cpu.size(); tokens++) costs_.cpu[tokens] = cpu * given_.cpu[tokens];
    costs_.link = link * given_.link;
    costs_.link_contended = link * given_.link_contended;
    residency_.expect(costs_.link);
}

// As src/dali/runtime/executor.py starts the accelerator.
std::vector<Launch> Planner::place(const Planned& step, double now) {
    const int layer = step.layer;
    const std::vector<int>&experts = step.plan.gpu, &fetches = step.plan.fetch;
    for (const int expert : residency_.scratch(layer))
        if (!contains(experts, expert)) residency_.release(layer, expert);  // late or wasted: nothing will read it
    std::vector<Launch> launches;
    const auto launch = [&](std::vector<int> together, bool fetch) {
        std::vector<int> slots;
        for (const int expert : together) slots.push_back(residency_.slot(layer, expert));
        launches.push_back({std::move(together), std::move(slots), fetch});
    };
    const auto in_flight = std::find_if(experts.begin(), experts.end(), [&](int expert) { return step.view.places[expert] != Place::resident; });
    if (in_flight != experts.begin()) launch({experts.begin(), in_flight}, false);
    std::deque<int> recyclable;  // scratch slots, from the oldest launch on
    for (auto expert = in_flight; expert != experts.end() - fetches.size(); expert++) {
        launch({*expert}, false);
        if (!residency_.is_resident(layer, *expert)) recyclable.push_back(*expert);
    }
    const size_t group = size_t(group_size(step.view.slots));
    for (size_t first = 0; first < fetches.size(); first += group) {
        const std::vector<int> together(fetches.begin() + first, fetches.begin() + std::min(first + group, fetches.size()));
        while (residency_.free_slots() < int(together.size())) {
            residency_.release(layer, recyclable.at(0));
            recyclable.pop_front();
        }
        residency_.fetch(layer, together, now);
        launch(together, true);
        recyclable.insert(recyclable.end(), together.begin(), together.end());
    }
    return launches;
}

// The busiest experts that are not there yet, as src/dali/policies/prefetch has it: as many as the link's idle time holds.
std::vector<int> Planner::choose(const Prediction& ahead, int layer, double now) {
    const LayerView view = residency_.view(ahead.layer, now);
    const double idle = std::max(period_.seconds() * double(ahead.layer - layer) - view.link_free, 0.0);
    const int64_t room = view.slots - int64_t(view.in_flight.size());
    const int64_t count = std::min(int64_t(idle / costs_.link_contended + 0.5), room);
    if (count <= 0) return {};
    const Workload expected = workload_of(ahead.ids, ahead.count, experts_);
    std::vector<int> wanted;
    for (const int expert : expected.active)
        if (view.places[expert] == Place::absent) wanted.push_back(expert);
    std::stable_sort(wanted.begin(), wanted.end(), [&](int a, int b) { return expected.tokens[a] > expected.tokens[b]; });
    if (int64_t(wanted.size()) > count) wanted.resize(size_t(count));
    return wanted;
}

}  // namespace dali
