// What the files of the binding share: Python's view of the kernels, one file a noun. Tensors come as addresses, which
// src/dali/kernels/native checks.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include <tuple>
#include <vector>

#include "model/decoder_layer.h"
#include "model/layer.h"
#include "ops/route.h"

namespace dali {

namespace nb = nanobind;

void bind_layout(nb::module_& m);
void bind_experts(nb::module_& m);
void bind_disk(nb::module_& m);
void bind_linear(nb::module_& m);
void bind_blocks(nb::module_& m);
void bind_pairs(nb::module_& m);
void bind_norm(nb::module_& m);
void bind_route(nb::module_& m);
void bind_attention(nb::module_& m);
void bind_recurrence(nb::module_& m);
void bind_mamba2(nb::module_& m);
void bind_model(nb::module_& m);
void bind_dependencies(nb::module_& m);
void bind_two_lane(nb::module_& m);
void bind_planner(nb::module_& m);
void bind_threads(nb::module_& m);
void bind_variants(nb::module_& m);
void bind_gpu(nb::module_& m);
void bind_gpu_model(nb::module_& m);

template <class T>
T* pointer(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

// A layer's experts, all in memory or of a cache.
struct ExpertRecords {
    LayerExperts experts;
};

// (row, keys, values, capacity, place, first, whether they are kept in 8 bits)
using Token = std::tuple<int64_t, uintptr_t, uintptr_t, int64_t, int64_t, int64_t, bool>;

inline std::vector<DecodingToken> decoding(const std::vector<Token>& tokens) {
    std::vector<DecodingToken> all;
    for (const auto& [row, keys, values, capacity, place, first, in_q8] : tokens)
        all.push_back({row, pointer<char>(keys), pointer<char>(values), capacity, place, first, in_q8});
    return all;
}

// Neighbouring rows of one sequence: (the first, how many, the window that each of them sees or 0).
using TokenRun = std::tuple<Token, int, int64_t>;

inline std::vector<DecodingToken> decoding(const std::vector<TokenRun>& runs) {
    std::vector<DecodingToken> all;
    for (const auto& [first, count, window] : runs)
        for (const DecodingToken& token : following(decoding(std::vector<Token>{first}).front(), count, window)) all.push_back(token);
    return all;
}

// (row, tokens, before, after, copies: (tokens, to) each)
using StretchParts = std::tuple<int64_t, int64_t, uintptr_t, uintptr_t, std::vector<std::tuple<int64_t, uintptr_t>>>;

inline std::vector<Stretch> stretches_of(const std::vector<StretchParts>& parts) {
    std::vector<Stretch> all;
    for (const auto& [row, tokens, before, after, copies] : parts) {
        all.push_back({row, tokens, pointer<const void>(before), pointer<void>(after), {}});
        for (const auto& [count, to] : copies) all.back().copies.push_back({count, pointer<void>(to)});
    }
    return all;
}

inline States states_of(const std::vector<std::vector<StretchParts>>& kinds) {
    States all;
    for (const std::vector<StretchParts>& kind : kinds) all.push_back(stretches_of(kind));
    return all;
}

using ConvolutionParts = std::tuple<int, int, uintptr_t, uintptr_t, bool>;  // channels, width, taps, bias, whether silu follows

inline Convolution convolution_of(const ConvolutionParts& parts) {
    const auto& [channels, width, taps, bias, silu] = parts;
    return {channels, width, pointer<const float>(taps), pointer<const float>(bias), silu};
}

template <class Module>
void bind_mix(nb::module_& m) {
    m.def("mix", [](const Module& module, uintptr_t x, Dtype dtype, int rows, const std::vector<std::vector<StretchParts>>& states,
                    uintptr_t out) {
        nb::gil_scoped_release unlocked;
        mix(module, pointer<const void>(x), dtype, rows, states_of(states), pointer<void>(out));
    });
}

// What a layer's mixer keeps of a step's sequences: (tokens, states of each kind), one of them empty.
using KeptParts = std::tuple<std::vector<TokenRun>, std::vector<std::vector<StretchParts>>>;

inline Kept kept_of(const KeptParts& parts) { return {decoding(std::get<0>(parts)), states_of(std::get<1>(parts))}; }

using NormParts = std::tuple<uintptr_t, int, float, Dtype>;  // weight, width, epsilon, dtype of the weight

inline Norm norm_of(const NormParts& parts) {
    const auto& [weight, width, epsilon, dtype] = parts;
    return {pointer<const void>(weight), width, epsilon, dtype};
}

using ValueParts = std::tuple<uintptr_t, Dtype>;  // address, or 0

inline Values values_of(const ValueParts& parts) {
    const auto& [address, dtype] = parts;
    return {pointer<const void>(address), dtype};
}

// std::invalid_argument for a name that is none
Activation activation_of(const std::string& name);
Format format_of(const std::string& name);

}  // namespace dali
