#include "ops/norm.h"

#include "bind/bind.h"
#include "threads/spent.h"

namespace dali {

void bind_norm(nb::module_& m) {
    m.def("rms_norm", [](uintptr_t x, uintptr_t weight, Dtype dtype, int64_t rows, int width, float epsilon, uintptr_t out) {
        nb::gil_scoped_release unlocked;
        const Timed timed(Part::norm);
        rms_norm(pointer<const void>(x), pointer<const void>(weight), dtype, rows, width, epsilon, pointer<void>(out));
    });
    m.def("gated_rms_norm", [](uintptr_t x, const std::tuple<uintptr_t, Dtype, int64_t>& gate, const ValueParts& weight, int64_t rows,
                               int width, int group, float epsilon, uintptr_t out) {
        nb::gil_scoped_release unlocked;
        const Timed timed(Part::norm);
        const auto& [at, dtype, stride] = gate;
        gated_rms_norm(pointer<const float>(x), {pointer<const void>(at), dtype, stride}, values_of(weight), rows, width, group, epsilon,
                       pointer<float>(out));
    });
}

}  // namespace dali
