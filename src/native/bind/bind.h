// What the files of the binding share: Python's view of the kernels, one file a noun. Tensors come as addresses, which
// src/dali/kernels/native checks.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <tuple>
#include <vector>

#include "model/attention_module.h"
#include "model/layer.h"
#include "ops/route.h"
#include "recurrent/recurrence.h"

namespace dali {

namespace nb = nanobind;

void bind_layout(nb::module_& m);
void bind_experts(nb::module_& m);
void bind_linear(nb::module_& m);
void bind_blocks(nb::module_& m);
void bind_pairs(nb::module_& m);
void bind_norm(nb::module_& m);
void bind_route(nb::module_& m);
void bind_attention(nb::module_& m);
void bind_recurrence(nb::module_& m);
void bind_selective_scan(nb::module_& m);
void bind_model(nb::module_& m);
void bind_dependencies(nb::module_& m);
void bind_two_lane(nb::module_& m);
void bind_planner(nb::module_& m);
void bind_threads(nb::module_& m);
void bind_variants(nb::module_& m);
void bind_gpu(nb::module_& m);

template <class T>
T* pointer(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

// Where a layer's experts lie.
struct ExpertRecords {
    Records at;
};

// (row, keys, values, capacity, place, first)
using Token = std::tuple<int64_t, uintptr_t, uintptr_t, int64_t, int64_t, int64_t>;

inline std::vector<DecodingToken> decoding(const std::vector<Token>& tokens) {
    std::vector<DecodingToken> all;
    for (const auto& [row, keys, values, capacity, place, first] : tokens)
        all.push_back({row, pointer<char>(keys), pointer<char>(values), capacity, place, first});
    return all;
}

using StretchParts = std::tuple<int64_t, int64_t, uintptr_t, uintptr_t>;  // row, tokens, before, after

inline std::vector<Stretch> stretches_of(const std::vector<StretchParts>& parts) {
    std::vector<Stretch> all;
    for (const auto& [row, tokens, before, after] : parts) all.push_back({row, tokens, pointer<const void>(before), pointer<void>(after)});
    return all;
}

using NormParts = std::tuple<uintptr_t, int, float>;  // weight, width, epsilon

inline Norm norm_of(const NormParts& parts) {
    const auto& [weight, width, epsilon] = parts;
    return {pointer<const void>(weight), width, epsilon};
}

using ValueParts = std::tuple<uintptr_t, Dtype>;  // address, or 0

inline Values values_of(const ValueParts& parts) {
    const auto& [address, dtype] = parts;
    return {pointer<const void>(address), dtype};
}

Activation activation_of(const std::string& name);  // std::invalid_argument for a name that is none

}  // namespace dali
