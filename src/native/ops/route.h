// A router: which experts each token takes, and with what weights.
#pragma once

#include <cstdint>

#include "layout/activations.h"

namespace dali {

struct RouteCall {
    const void* x;       // [tokens, hidden]
    const void* weight;  // [experts, hidden]
    Dtype dtype;         // float32 or bfloat16, of x, weight and logits
    int tokens, hidden, experts, top_k;
    bool normalise;  // weights sum to 1
    void* logits;    // [tokens, experts]
    void* weights;   // [tokens, top_k], of weights_dtype
    Dtype weights_dtype;
    int64_t* ids;  // [tokens, top_k], the likeliest first
};

// weights = the top_k largest of softmax(x weight^T); softmax in float32 of logits as they were rounded.
void route(const RouteCall& call);

}  // namespace dali
