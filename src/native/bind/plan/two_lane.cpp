#include "plan/assign/two_lane.h"

#include <algorithm>
#include <stdexcept>

#include "bind/bind.h"

namespace dali {

namespace {

double number(nb::handle from, const char* name) { return nb::cast<double>(from.attr(name)); }

bool contains(const nb::object& all, const nb::int_& key) {
    const int found = PySequence_Contains(all.ptr(), key.ptr());
    if (found < 0) throw nb::python_error();
    return found == 1;
}

// A workload, ResidencyView and ExpertCosts as in src/dali/policies.
LayerState layer_state(const std::vector<int64_t>& workload, nb::handle view, nb::handle costs) {
    const nb::object resident = view.attr("resident"), in_flight = view.attr("in_flight");
    const auto cpu = nb::cast<nb::list>(costs.attr("cpu")), gpu = nb::cast<nb::list>(costs.attr("gpu"));
    const Link link{nb::cast<int64_t>(view.attr("slots")), number(view, "link_free"), number(costs, "link"), number(costs, "link_contended"),
                    number(costs, "launch")};
    LayerState layer{{}, {}, {}, link, number(costs, "handover")};
    const auto expert = [&](size_t id, int64_t tokens) {
        if (tokens < 0 || size_t(tokens) >= std::min(cpu.size(), gpu.size())) throw std::out_of_range("more tokens than foreseen");
        return LayerExpert{int(id), nb::cast<double>(cpu[tokens]), nb::cast<double>(gpu[tokens])};
    };
    for (size_t id = 0; id < workload.size(); id++) {
        const int64_t tokens = workload[id];
        if (!tokens) continue;
        const nb::int_ key(id);
        if (contains(resident, key)) layer.kept.push_back(expert(id, tokens));
        else if (!contains(in_flight, key)) layer.absent.push_back(expert(id, tokens));
    }
    std::vector<std::pair<double, size_t>> landing;
    for (const nb::handle id : in_flight) landing.emplace_back(nb::cast<double>(in_flight[id]), nb::cast<size_t>(id));
    std::sort(landing.begin(), landing.end());
    for (const auto& [seconds, id] : landing) {
        const int64_t tokens = workload.at(id);
        layer.landing.push_back({tokens ? expert(id, tokens) : LayerExpert{-1, 0, 0}, seconds});
    }
    return layer;
}

nb::object tuple_of(const std::vector<int>& ids) {
    nb::list list;
    for (const int id : ids) list.append(id);
    return nb::tuple(list);
}

}  // namespace

void bind_two_lane(nb::module_& m) {
    // -> ((cpu, gpu, fetch), seconds, whether no plan is faster)
    m.def("search_two_lane", [](nb::handle workload, nb::handle view, nb::handle costs) {
        const FoundPlan found = search_two_lane(layer_state(nb::cast<std::vector<int64_t>>(workload), view, costs));
        return nb::make_tuple(nb::make_tuple(tuple_of(found.plan.cpu), tuple_of(found.plan.gpu), tuple_of(found.plan.fetch)), found.seconds,
                              found.proven);
    });
}

}  // namespace dali
