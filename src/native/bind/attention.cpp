#include "ops/attention.h"

#include <stdexcept>

#include "bind/bind.h"
#include "threads/spent.h"

namespace dali {

namespace {

using RotaryParts = std::tuple<std::string, int, int, Dtype>;  // turning, width, given, dtype

Rotary rotary_of(const RotaryParts& parts) {
    const auto& [name, width, given, dtype] = parts;
    const char* names[] = {"none", "halves", "neighbours"};
    for (int i = 0; i < 3; i++)
        if (name == names[i]) return {Turning(i), width, given, dtype};
    throw std::invalid_argument("no turning: " + name);
}

}  // namespace

void bind_attention(nb::module_& m) {
    // query, keys, values: (address, row stride, head stride)
    using Strided = std::tuple<uintptr_t, int64_t, int64_t>;
    m.def("attend", [](Dtype dtype, int heads, int kv_heads, int key_width, int value_width, float scale, const Strided& query,
                       const Strided& keys, const Strided& values, uintptr_t sinks, const std::vector<Token>& tokens, uintptr_t out) {
        nb::gil_scoped_release unlocked;
        const Timed timed(Part::attention);
        const auto rows = [](const Strided& s) { return Rows{pointer<const void>(std::get<0>(s)), std::get<1>(s), std::get<2>(s)}; };
        attend({dtype, heads, kv_heads, key_width, value_width, scale, rows(query), rows(keys), rows(values),
                pointer<const float>(sinks), pointer<void>(out)}, decoding(tokens));
    });
    using Heads = std::tuple<int, int, int, int>;  // heads, kv heads, width, value width
    nb::class_<AttentionModule>(m, "AttentionModule")
        .def("__init__", [](AttentionModule* self, const PackedLinear& query, const PackedLinear& key, const PackedLinear& value,
                            const PackedLinear& out, const NormParts& query_norm, const NormParts& key_norm, bool norms_follow,
                            const RotaryParts& rotary, const Heads& sizes, float scale, float value_scale, uintptr_t sinks) {
            const auto& [heads, kv_heads, width, value_width] = sizes;
            new (self) AttentionModule{query, key, value, out, norm_of(query_norm), norm_of(key_norm), norms_follow, rotary_of(rotary),
                                       heads, kv_heads, width, value_width, scale, value_scale, pointer<const float>(sinks)};
        });
    m.def("decode", [](const AttentionModule& module, uintptr_t x, Dtype dtype, int rows, uintptr_t cos, uintptr_t sin,
                       const std::vector<Token>& tokens, uintptr_t out) {
        nb::gil_scoped_release unlocked;
        decode(module, pointer<const void>(x), dtype, rows, pointer<const void>(cos), pointer<const void>(sin), decoding(tokens),
               pointer<void>(out));
    });
}

}  // namespace dali
