#include "ops/norm.h"

#include "bind/bind.h"
#include "threads/spent.h"

namespace dali {

void bind_norm(nb::module_& m) {
    m.def("rms_norm", [](uintptr_t x, uintptr_t weight, Dtype weight_dtype, Dtype dtype, int64_t rows, int width, float epsilon, uintptr_t out) {
        nb::gil_scoped_release unlocked;
        const Timed timed(Part::norm);
        rms_norm(pointer<const void>(x), pointer<const void>(weight), weight_dtype, dtype, rows, width, epsilon, pointer<void>(out));
    });
}

}  // namespace dali
