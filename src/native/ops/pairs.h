// The (token, choice) pairs of a layer's step by expert. A pair's number is token * top_k + choice.
#pragma once

#include <cstdint>
#include <vector>

namespace dali {

// How many of the `pairs` went to each expert.
std::vector<int64_t> count_pairs(const int64_t* ids, int64_t pairs, int64_t experts);

// Writes the pairs of `order`'s experts one after another, ascending within an expert; returns where each expert's begin, and
// the end. `workload` as count_pairs() has it; every expert of `ids` is in `order`, once.
std::vector<int64_t> order_pairs(const int64_t* ids, int64_t pairs, const std::vector<int64_t>& workload,
                                 const std::vector<int64_t>& order, int64_t* out);

}  // namespace dali
