#include "plan/assign/assign.h"

#include <utility>

#include "plan/assign/greedy.h"
#include "plan/assign/two_lane.h"

namespace dali {

namespace {

LayerState state_of(const Workload& workload, const LayerView& view, const ExpertCosts& costs) {
    LayerState state{{}, {}, {}, {view.slots, view.link_free, costs.link, costs.link_contended, costs.launch}, costs.handover};
    const auto expert = [&](int id) {
        const int64_t tokens = workload.tokens[id];
        return LayerExpert{id, costs.cpu.at(tokens), costs.gpu.at(tokens)};
    };
    for (const int id : workload.active) {
        if (view.places[id] == Place::resident) state.kept.push_back(expert(id));
        else if (view.places[id] == Place::absent) state.absent.push_back(expert(id));
    }
    for (const auto& [seconds, id] : view.in_flight)
        state.landing.push_back({workload.tokens[id] ? expert(id) : LayerExpert{-1, 0, 0}, seconds});
    return state;
}

}  // namespace

LayerPlan assign(const Workload& workload, const LayerView& view, const ExpertCosts& costs) {
    FoundPlan found = search_two_lane(state_of(workload, view, costs));
    if (found.proven) return std::move(found.plan);
    LayerPlan paper = greedy(workload, view, costs);
    if (makespan(paper, workload, view, costs) <= found.seconds * EQUAL) return paper;
    double all_on_cpu = 0;
    for (const int expert : workload.active) all_on_cpu += costs.cpu.at(workload.tokens[expert]);
    if (costs.handover + all_on_cpu < found.seconds) return {workload.active, {}, {}};
    return std::move(found.plan);
}

}  // namespace dali
