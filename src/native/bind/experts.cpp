#include "ops/experts.h"

#include "bind/bind.h"
#include "disk/expert_cache.h"
#include "threads/spent.h"

namespace dali {

void bind_experts(nb::module_& m) {
    m.def("compute_experts",
          [](const ExpertLayout& layout, const std::vector<uintptr_t>& records, const std::vector<int64_t>& offsets, uintptr_t pairs,
             int top_k, uintptr_t hidden, Dtype dtype, uintptr_t rows) {
              nb::gil_scoped_release unlocked;
              const Timed timed(Part::experts);
              static_assert(sizeof(uintptr_t) == sizeof(uint8_t*));
              compute_experts(layout, {int(records.size()), reinterpret_cast<const uint8_t* const*>(records.data()), offsets.data(),
                                       pointer<const int64_t>(pairs), top_k, pointer<const void>(hidden), dtype, pointer<float>(rows)});
          });
    m.def("reduce_choices", [](uintptr_t rows, uintptr_t weights, int tokens, int top_k, int hidden, Dtype dtype, uintptr_t out) {
        nb::gil_scoped_release unlocked;
        const Timed timed(Part::experts);
        reduce_choices(pointer<const float>(rows), pointer<const float>(weights), tokens, top_k, hidden, dtype, pointer<void>(out));
    });
    nb::class_<ExpertRecords>(m, "ExpertRecords")
        .def("__init__",
             [](ExpertRecords* self, const std::vector<uintptr_t>& addresses) {
                 new (self) ExpertRecords();
                 for (const uintptr_t address : addresses) self->experts.at.push_back(pointer<const uint8_t>(address));
                 self->experts.count = int(addresses.size());
             })
        .def("__init__", [](ExpertRecords* self, ExpertCache& cache, int layer, int experts) {
            new (self) ExpertRecords{{{}, &cache, layer, experts}};
        }, nb::keep_alive<1, 2>());
    m.def("compute_layer", [](const ExpertLayout& layout, const ExpertRecords& records, uintptr_t ids, uintptr_t weights,
                              Dtype weights_dtype, int tokens, int top_k, uintptr_t hidden, Dtype dtype, uintptr_t out,
                              uintptr_t workload) {
        nb::gil_scoped_release unlocked;
        const Timed timed(Part::experts);
        return compute_layer(layout, {records.experts, pointer<const int64_t>(ids), pointer<const void>(weights), weights_dtype, tokens,
                                      top_k, pointer<const void>(hidden), dtype, pointer<void>(out), pointer<int64_t>(workload)});
    });
}

}  // namespace dali
