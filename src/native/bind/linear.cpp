#include "ops/linear.h"

#include "bind/bind.h"
#include "threads/spent.h"

namespace dali {

void bind_linear(nb::module_& m) {
    m.def("linear", [](const Matrix& matrix, uintptr_t packed, int columns, uintptr_t bias, uintptr_t x, Dtype dtype, int tokens,
                       uintptr_t out) {
        nb::gil_scoped_release unlocked;
        const Timed timed(Part::dense);
        linear({{matrix, pointer<const uint8_t>(packed), pointer<const float>(bias), pointer<void>(out)}}, columns,
               pointer<const void>(x), dtype, tokens);
    });
    nb::class_<PackedLinear>(m, "PackedLinear")
        .def("__init__", [](PackedLinear* self, const Matrix& matrix, uintptr_t packed, int columns, uintptr_t bias) {
            new (self) PackedLinear{matrix, pointer<const uint8_t>(packed), columns, pointer<const float>(bias)};
        });
}

}  // namespace dali
