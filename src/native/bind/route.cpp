#include "ops/route.h"

#include <stdexcept>

#include "bind/bind.h"
#include "threads/spent.h"

namespace dali {

namespace {

Score score_of(const std::string& name) {
    if (name == "softmax") return Score::softmax;
    if (name == "sigmoid") return Score::sigmoid;
    throw std::invalid_argument("no score of a router: " + name);
}

}  // namespace

void bind_route(nb::module_& m) {
    using Groups = std::tuple<int, int, int>;                 // all, kept, judged by how many
    using Normalisation = std::tuple<bool, float, float>;     // whether, epsilon, floor
    using Dtypes = std::tuple<Dtype, Dtype, Dtype, Dtype>;    // that logits and scores round to, of the logits, of the weights
    nb::class_<Router>(m, "Router")
        .def("__init__", [](Router* self, const ValueParts& weight, int hidden, int experts, int top_k, const std::string& score,
                            const ValueParts& bias, const ValueParts& correction, bool by_logit, const Groups& groups,
                            const Normalisation& normalisation, float scale, const Dtypes& dtypes, const ValueParts& expert_scales) {
            const auto& [all, kept, judged] = groups;
            const auto& [normalise, epsilon, floor] = normalisation;
            const auto& [rounded, scored, logits, weights] = dtypes;
            new (self) Router{values_of(weight), hidden, experts, top_k, score_of(score), values_of(bias), values_of(correction), by_logit,
                              all, kept, judged, normalise, epsilon, floor, scale, rounded, scored, logits, weights,
                              values_of(expert_scales)};
        });
    m.def("route", [](const Router& router, uintptr_t x, Dtype dtype, int tokens, uintptr_t logits, uintptr_t weights, uintptr_t ids) {
        nb::gil_scoped_release unlocked;
        const Timed timed(Part::router);
        route(router, pointer<const void>(x), dtype, tokens, pointer<void>(logits), pointer<void>(weights), pointer<int64_t>(ids));
    });
    m.def("gate_logits", [](const ValueParts& weight, int hidden, uintptr_t x, Dtype dtype, int tokens, uintptr_t out) {
        nb::gil_scoped_release unlocked;
        const Timed timed(Part::router);
        gate_logits(values_of(weight), hidden, pointer<const void>(x), dtype, tokens, pointer<void>(out));
    });
}

}  // namespace dali
