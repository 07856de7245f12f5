// One MoE layer's step on the CPU, from the router's choice to the summed outputs.
#pragma once

#include <functional>
#include <vector>

#include "ops/experts.h"

namespace dali {

class ExpertCache;

using Records = std::vector<const uint8_t*>;  // where each expert of a layer lies

// A layer's experts: all in memory, or of a cache, which has as many as a step needs at a time.
struct LayerExperts {
    Records at;
    ExpertCache* cache = nullptr;
    int layer = 0;  // of the cache's
    int count = 0;
};

struct LayerCall {
    const LayerExperts& experts;
    const int64_t* ids;   // [tokens, top_k]
    const void* weights;  // [tokens, top_k]
    Dtype weights_dtype;
    int tokens, top_k;
    const void* hidden;  // [tokens, hidden]
    Dtype dtype;
    void* out;          // [tokens, hidden]
    int64_t* workload;  // by expert: tokens that it got in all steps, to be added to; null: nobody counts
    const std::function<void()>* meanwhile = nullptr;  // called while the first reads are under way, where there may be any
};

// Returns how many experts took part. Where some have to be read, the others are computed meanwhile, and each of them once it is there:
// not a bit depends on when that is. std::out_of_range for an id that is no expert's. StoreFailure: one cannot be read.
int compute_layer(const ExpertLayout& layout, const LayerCall& call);

}  // namespace dali
