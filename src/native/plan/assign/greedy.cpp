#include "plan/assign/greedy.h"

#include <cmath>

namespace dali {

LayerPlan greedy(const Workload& workload, const LayerView& view, const ExpertCosts& costs) {
    struct Row {
        double gap;
        int expert;
        double cpu, gpu;
    };
    std::vector<Row> rows;
    for (const int expert : workload.active) {
        const int64_t tokens = workload.tokens[expert];
        const double cpu = costs.cpu.at(tokens);
        double gpu = costs.gpu.at(tokens);
        const auto in_flight = std::find_if(view.in_flight.begin(), view.in_flight.end(), [&](const InFlight& one) { return one.expert == expert; });
        const bool landed = in_flight != view.in_flight.end() && in_flight->seconds <= 0;
        if (view.places[expert] != Place::resident && costs.link > gpu && !landed) gpu = costs.link;
        rows.push_back({-std::fabs(cpu - gpu), expert, cpu, gpu});
    }
    std::stable_sort(rows.begin(), rows.end(), [](const Row& a, const Row& b) { return a.gap < b.gap; });

    double cpu_total = 0, gpu_total = 0;
    LayerPlan plan;
    for (const Row& row : rows) {
        const Place place = view.places[row.expert];
        if (gpu_total + row.gpu <= cpu_total + row.cpu && (place != Place::absent || view.slots)) {
            gpu_total += row.gpu;
            if (place == Place::resident) plan.gpu.push_back(row.expert);
            else if (place == Place::absent) plan.fetch.push_back(row.expert);
        } else {
            cpu_total += row.cpu;
            plan.cpu.push_back(row.expert);
        }
    }
    for (const InFlight& one : view.in_flight)
        if (workload.tokens[one.expert] && !contains(plan.cpu, one.expert)) plan.gpu.push_back(one.expert);
    plan.gpu.insert(plan.gpu.end(), plan.fetch.begin(), plan.fetch.end());
    return plan;
}

}  // namespace dali
