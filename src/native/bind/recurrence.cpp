#include "recurrent/recurrence.h"

#include "bind/bind.h"
#include "threads/spent.h"

namespace dali {

namespace {

using FieldParts = std::tuple<int, int, int, int, int>;  // projection, begin, group, outer, inner

Field field_of(const FieldParts& parts) {
    const auto& [projection, begin, group, outer, inner] = parts;
    return {projection, begin, group, outer, inner};
}

using RuleParts = std::tuple<int, int, int, int, bool, bool>;  // key heads, heads, their widths, by channel, normalised

DeltaRule rule_of(const RuleParts& parts) {
    const auto& [key_heads, heads, key_width, value_width, by_channel, normalised] = parts;
    return {key_heads, heads, key_width, value_width, by_channel, normalised};
}

}  // namespace

void bind_recurrence(nb::module_& m) {
    using Parts = std::vector<StretchParts>;
    m.def("convolve", [](const ConvolutionParts& parts, uintptr_t x, int64_t row_stride, Dtype dtype, const Parts& stretches, uintptr_t out) {
        nb::gil_scoped_release unlocked;
        const Timed timed(Part::attention);
        const Convolution convolution = convolution_of(parts);
        convolve(convolution, {{pointer<const void>(x), row_stride, convolution.channels}}, dtype, stretches_of(stretches), dtype,
                 pointer<void>(out));
    });
    using Rows = std::tuple<uintptr_t, int64_t>;  // address, values from token to token
    m.def("delta_rule", [](const RuleParts& rule, const Rows& query, const Rows& key, const Rows& value, const Rows& decay, const Rows& beta, const Parts& stretches, uintptr_t out) {
        nb::gil_scoped_release unlocked;
        const Timed timed(Part::attention);
        const auto rows = [](const Rows& parts) { return FloatRows{pointer<const float>(std::get<0>(parts)), std::get<1>(parts)}; };
        delta_rule(rule_of(rule), rows(query), rows(key), rows(value), rows(decay),
                   rows(beta), stretches_of(stretches), pointer<float>(out));
    });
    nb::class_<DeltaNet>(m, "DeltaNet")
        .def("__init__", [](DeltaNet* self, const std::vector<const PackedLinear*>& in, const PackedLinear& out, const RuleParts& rule,
                            const ConvolutionParts& convolution, const std::vector<FieldParts>& fields, uintptr_t rate, uintptr_t offset,
                            uintptr_t norm, float epsilon, bool by_sigmoid,
                            const std::vector<std::tuple<int, const PackedLinear*>>& raised) {
            const auto field = [&](int i) { return field_of(fields.at(i)); };
            new (self) DeltaNet{{}, {}, out, rule_of(rule), convolution_of(convolution), field(0), field(1), field(2), field(3), field(4),
                                field(5), pointer<const float>(rate), pointer<const float>(offset), pointer<const float>(norm), epsilon,
                                by_sigmoid};
            for (const PackedLinear* linear : in) self->in.push_back(*linear);
            for (const auto& [from, linear] : raised) self->raised.push_back({from, *linear});
        });
    nb::class_<ShortConvolution>(m, "ShortConvolution")
        .def("__init__", [](ShortConvolution* self, const PackedLinear& in, const PackedLinear& out, const ConvolutionParts& convolution) {
            new (self) ShortConvolution{in, out, convolution_of(convolution)};
        });
    bind_mix<DeltaNet>(m);
    bind_mix<ShortConvolution>(m);
}

}  // namespace dali
