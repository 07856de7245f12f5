// What plans steps for the default policies.
#include <nanobind/stl/function.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>

#include "bind/bind.h"
#include "bind/plan/step_plan.h"

namespace dali {

namespace {

auto state_of(const Guard& guard) {
    const Guard::State& state = guard.state();
    return std::make_tuple(state.on, state.trial, state.next_rest, state.resting, state.steps, state.cost, state.benefit);
}

}  // namespace

void bind_planner(nb::module_& m) {
    nb::class_<Planner>(m, "Planner")
        .def("__init__", [](Planner* self, const std::vector<std::vector<std::pair<int, int>>>& residents, int experts, int slots,
                            std::vector<double> cpu, std::vector<double> gpu, double link, double link_contended, double launch,
                            double handover, double call, bool predicts, uintptr_t totals) {
            ExpertCosts costs{std::move(cpu), std::move(gpu), link, link_contended, launch, handover};
            new (self) Planner(residents, experts, slots, std::move(costs), call, predicts, pointer<int64_t>(totals));
        })
        .def_prop_ro("prefetches", &Planner::prefetches)
        // A step planned alone -> cpu, launches and fetches as GpuLayers.execute() takes them, and counts.
        .def("plan", [](Planner& self, int layer, const std::vector<int64_t>& ids, int ahead_layer, const std::vector<int64_t>& ahead,
                        double ahead_seconds, double now, uint64_t landed, const std::optional<InRam>& in_ram) {
            StepCounts counts{};
            const Prediction prediction{ahead_layer, ahead.data(), int64_t(ahead.size()), ahead_seconds};
            const StepPlan plan = self.plan(layer, ids.data(), int64_t(ids.size()), prediction, now, landed, counts, in_ram ? &*in_ram : nullptr);
            std::vector<LaunchParts> launches;
            for (const Launch& one : plan.launches) launches.emplace_back(one.experts, one.slots, one.fetch);
            return std::make_tuple(plan.cpu, launches, parts_of(plan.fetches), counts_of(counts));
        }, nb::arg("layer"), nb::arg("ids"), nb::arg("ahead_layer"), nb::arg("ahead"), nb::arg("ahead_seconds"), nb::arg("now"),
             nb::arg("landed"), nb::arg("in_ram") = nb::none())
        .def("correct", &Planner::correct, nb::arg("cpu"), nb::arg("link"))
        .def("put_all_on_cpu", &Planner::put_all_on_cpu)
        .def_prop_ro("planned", &Planner::planned)
        .def_prop_ro("all_on_cpu", &Planner::all_on_cpu)
        // Of prefetches and of swaps: (on, trial, next rest, rest that is left, steps, cost, benefit).
        .def_prop_ro("guards", [](const Planner& self) {
            return std::make_tuple(state_of(self.guards().prefetch()), state_of(self.guards().swap()));
        })
        // A layer's residents, landed or not.
        .def("residents", [](const Planner& self, int layer) {
            const std::vector<Place>& places = self.residency().residents(layer);
            std::vector<int> experts;
            for (size_t expert = 0; expert < places.size(); expert++)
                if (places[expert] == Place::resident) experts.push_back(int(expert));
            return experts;
        })
        // After a failure: the copies (layer, expert, slot) that fill all slots anew.
        .def("reset", [](Planner& self) { return parts_of(self.reset()); });
}

}  // namespace dali
