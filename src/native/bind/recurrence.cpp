#include "recurrent/recurrence.h"

#include "bind/bind.h"
#include "threads/spent.h"

namespace dali {

void bind_recurrence(nb::module_& m) {
    using Parts = std::vector<StretchParts>;
    m.def("convolve", [](uintptr_t x, int64_t row_stride, Dtype dtype, int channels, int width, uintptr_t taps, uintptr_t bias, bool silu,
                         const Parts& stretches, uintptr_t out) {
        nb::gil_scoped_release unlocked;
        const Timed timed(Part::attention);
        convolve({channels, width, pointer<const float>(taps), pointer<const float>(bias), silu},
                 {{pointer<const void>(x), row_stride, channels}}, dtype, stretches_of(stretches), dtype, pointer<void>(out));
    });
    using Rows = std::tuple<uintptr_t, int64_t>;  // address, values from token to token
    m.def("delta_rule", [](int key_heads, int heads, int key_width, int value_width, bool by_channel, bool normalised, const Rows& query,
                           const Rows& key, const Rows& value, const Rows& decay, const Rows& beta, const Parts& stretches, uintptr_t out) {
        nb::gil_scoped_release unlocked;
        const Timed timed(Part::attention);
        const auto rows = [](const Rows& parts) { return FloatRows{pointer<const float>(std::get<0>(parts)), std::get<1>(parts)}; };
        delta_rule({key_heads, heads, key_width, value_width, by_channel, normalised}, rows(query), rows(key), rows(value), rows(decay),
                   rows(beta), stretches_of(stretches), pointer<float>(out));
    });
}

}  // namespace dali
