#include "ops/recurrent/convolution.h"

#include "bind/bind.h"
#include "threads/spent.h"

namespace dali {

void bind_convolution(nb::module_& m) {
    nb::class_<Convolution>(m, "Convolution")
        .def("__init__", [](Convolution* self, const ValueParts& weight, const ValueParts& bias, int channels, int window, bool silu) {
            new (self) Convolution{values_of(weight), values_of(bias), channels, window, silu};
        });
    m.def("convolve", [](const Convolution& convolution, uintptr_t x, Dtype dtype, int64_t stride,
                         const std::vector<KeptRows>& sequences, uintptr_t out) {
        nb::gil_scoped_release unlocked;
        const Timed timed(Part::attention);
        convolve(convolution, {pointer<const void>(x), dtype, stride}, kept_rows(sequences), pointer<void>(out));
    });
}

}  // namespace dali
