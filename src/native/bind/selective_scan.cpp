#include "recurrent/selective_scan.h"

#include "bind/bind.h"
#include "threads/spent.h"

namespace dali {

void bind_selective_scan(nb::module_& m) {
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
}

}  // namespace dali
