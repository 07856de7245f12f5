// A whole decoder layer while decoding: norm, attention, norm, router, experts, and the sums around them.
#pragma once

#include <vector>

#include "model/attention_module.h"
#include "model/layer.h"

namespace dali {

// As RouteCall has it; `dtype` of the weight is the layer's.
struct Router {
    const void* weight;  // [experts, hidden]
    int experts, top_k;
    bool normalise;
    Dtype weights_dtype;
};

struct DecoderLayer {
    Norm before_attention, before_experts;
    const AttentionModule& attention;
    Router router;
    const ExpertLayout& layout;
};

struct LayerOutcome {
    int active;  // experts that took part
    double expert_seconds;
};

// x [rows, hidden] -> out [rows, hidden], which may be x; `records`: where the layer's experts lie in this call; the rest as in
// decode(). Rounds to `dtype` where torch would. `next`: the layer that follows at once, or null.
LayerOutcome decode_layer(const DecoderLayer& layer, const DecoderLayer* next, const Records& records, const void* x, Dtype dtype,
                          int rows, const void* cos, const void* sin, const std::vector<DecodingToken>& tokens, void* out);

}  // namespace dali
