#include "ops/attention.h"

#include <stdexcept>

#include "bind/bind.h"
#include "threads/spent.h"

namespace dali {

namespace {

using RotaryParts = std::tuple<std::string, int, int, Dtype>;  // turning, width, given, dtype

Rotary rotary_of(const RotaryParts& parts) {
    const auto& [name, width, given, dtype] = parts;
    const char* names[] = {"none", "halves", "neighbours", "unzipped"};
    for (int i = 0; i < 4; i++)
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
    // `count` tokens of one sequence, the first as given
    m.def("attend_prompt", [](Dtype dtype, int heads, int kv_heads, int key_width, int value_width, float scale, const Strided& query,
                              const Strided& keys, const Strided& values, uintptr_t sinks, const Token& first, int count, int64_t window,
                              uintptr_t out) {
        nb::gil_scoped_release unlocked;
        const Timed timed(Part::attention);
        const auto rows = [](const Strided& s) { return Rows{pointer<const void>(std::get<0>(s)), std::get<1>(s), std::get<2>(s)}; };
        attend({dtype, heads, kv_heads, key_width, value_width, scale, rows(query), rows(keys), rows(values),
                pointer<const float>(sinks), pointer<void>(out)}, decoding(std::vector<Token>{first}).front(), count, window);
    });
    nb::class_<Projections>(m, "Projections")
        .def("__init__", [](Projections* self, const PackedLinear& query, const PackedLinear& key, const PackedLinear& value,
                            const NormParts& query_norm, const NormParts& key_norm, bool norms_follow, float value_scale, bool gated,
                            const NormParts& value_norm) {
            new (self) Projections{query, key, value, norm_of(query_norm), norm_of(key_norm), norms_follow, value_scale, gated,
                                   norm_of(value_norm)};
        });
    // heads, rank, widths of a key without its rotated part and of a value; each head's matrices, and where all heads' lie
    nb::class_<LatentHeads>(m, "LatentHeads")
        .def("__init__", [](LatentHeads* self, int heads, int rank, int key_width, int value_width, const Matrix& keys,
                            uintptr_t packed_keys, const Matrix& values, uintptr_t packed_values) {
            new (self) LatentHeads{heads, rank, key_width, value_width, keys, values, pointer<const uint8_t>(packed_keys),
                                   pointer<const uint8_t>(packed_values)};
        });
    // runs: the first token of each sequence, and how many; they fill the step's rows in order
    m.def("attend_latent", [](const LatentHeads& heads, Dtype dtype, int rotated, float scale, const Strided& query, uintptr_t kept,
                              uintptr_t sinks, const std::vector<std::tuple<Token, int>>& runs, int64_t window, uintptr_t out) {
        nb::gil_scoped_release unlocked;
        const Timed timed(Part::attention);
        std::vector<DecodingToken> tokens;
        for (const auto& [first, count] : runs)
            for (const DecodingToken& token : following(decoding(std::vector<Token>{first}).front(), count, window)) tokens.push_back(token);
        const auto& [from, row_stride, head_stride] = query;
        attend(heads, {dtype, rotated, scale, {pointer<const void>(from), row_stride, head_stride}, pointer<const void>(kept),
                       pointer<const float>(sinks), pointer<void>(out)}, tokens);
    });
    nb::class_<LatentProjections>(m, "LatentProjections")
        .def("__init__", [](LatentProjections* self, const std::vector<const PackedLinear*>& query_down, const NormParts& query_norm,
                            const PackedLinear& query, const PackedLinear& keys_down, const NormParts& keys_norm,
                            const LatentHeads& heads) {
            new (self) LatentProjections{{}, norm_of(query_norm), query, keys_down, norm_of(keys_norm), heads};
            for (const PackedLinear* linear : query_down) self->query_down.push_back(*linear);
        });
    using Sizes = std::tuple<int, int, int, int>;  // heads, kv heads, width, value width
    const auto module = [](const auto& projections, const PackedLinear& out, const RotaryParts& rotary, const Sizes& sizes, float scale,
                           uintptr_t sinks) {
        const auto& [heads, kv_heads, width, value_width] = sizes;
        return AttentionModule{projections, out, rotary_of(rotary), heads, kv_heads, width, value_width, scale,
                               pointer<const float>(sinks)};
    };
    nb::class_<AttentionModule>(m, "AttentionModule")
        .def("__init__", [module](AttentionModule* self, const Projections& projections, const PackedLinear& out, const RotaryParts& rotary,
                                  const Sizes& sizes, float scale, uintptr_t sinks) {
            new (self) AttentionModule(module(projections, out, rotary, sizes, scale, sinks));
        })
        .def("__init__", [module](AttentionModule* self, const LatentProjections& projections, const PackedLinear& out,
                                  const RotaryParts& rotary, const Sizes& sizes, float scale, uintptr_t sinks) {
            new (self) AttentionModule(module(projections, out, rotary, sizes, scale, sinks));
        });
    m.def("decode", [](const AttentionModule& module, uintptr_t x, Dtype dtype, int rows, uintptr_t cos, uintptr_t sin,
                       const std::vector<TokenRun>& tokens, uintptr_t out) {
        nb::gil_scoped_release unlocked;
        decode(module, pointer<const void>(x), dtype, rows, pointer<const void>(cos), pointer<const void>(sin), decoding(tokens),
               pointer<void>(out));
    });
}

}  // namespace dali
