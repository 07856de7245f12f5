#include "recurrent/mamba2.h"

#include "bind/bind.h"
#include "threads/spent.h"

namespace dali {

void bind_mamba2(nb::module_& m) {
    using Sizes = std::tuple<int, int, int, int>;                    // heads, width, groups, state
    using PerHead = std::tuple<ValueParts, ValueParts, ValueParts>;  // rate, bias of steps, skip
    using Limits = std::tuple<float, float>;
    using Strided = std::tuple<uintptr_t, Dtype, int64_t>;  // address, dtype, row stride
    nb::class_<SelectiveScan>(m, "SelectiveScan")
        .def("__init__", [](SelectiveScan* self, const Sizes& sizes, const PerHead& per_head, const Limits& limits) {
            const auto& [heads, width, groups, state] = sizes;
            const auto& [rate, step_bias, skip] = per_head;
            const auto& [least, most] = limits;
            new (self) SelectiveScan{heads, width, groups, state, values_of(rate), values_of(step_bias), values_of(skip), least, most};
        });
    m.def("scan", [](const SelectiveScan& of, const Strided& x, const Strided& in, const Strided& out, const Strided& steps,
                     const std::vector<StretchParts>& stretches, uintptr_t found) {
        nb::gil_scoped_release unlocked;
        const Timed timed(Part::attention);
        const auto rows = [](const Strided& s) { return StridedRows{pointer<const void>(std::get<0>(s)), std::get<1>(s), std::get<2>(s)}; };
        scan(of, {rows(x), rows(in), rows(out), rows(steps)}, stretches_of(stretches), pointer<float>(found));
    });
    using GatedNorm = std::tuple<ValueParts, int, float>;  // weight, group, epsilon
    nb::class_<Mamba2>(m, "Mamba2")
        .def("__init__", [](Mamba2* self, const PackedLinear& in, const PackedLinear& out, const ConvolutionParts& convolution,
                            const SelectiveScan& of, const GatedNorm& norm) {
            const auto& [weight, group, epsilon] = norm;
            new (self) Mamba2{in, out, convolution_of(convolution), of, values_of(weight), group, epsilon};
        });
    bind_mix<Mamba2>(m);
}

}  // namespace dali
