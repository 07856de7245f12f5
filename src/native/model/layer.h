// One MoE layer's step on the CPU, from the router's choice to the summed outputs.
#pragma once

#include <vector>

#include "ops/experts.h"

namespace dali {

using Records = std::vector<const uint8_t*>;  // where each expert of a layer lies

struct LayerCall {
    const Records& records;
    const int64_t* ids;   // [tokens, top_k]
    const void* weights;  // [tokens, top_k]
    Dtype weights_dtype;
    int tokens, top_k;
    const void* hidden;  // [tokens, hidden]
    Dtype dtype;
    void* out;          // [tokens, hidden]
    int64_t* workload;  // by expert: tokens that it got in all steps, to be added to; null: nobody counts
};

// Returns how many experts took part. std::out_of_range for an id that is no expert's.
int compute_layer(const ExpertLayout& layout, const LayerCall& call);

}  // namespace dali
