// A whole decoder layer while decoding: attention, then experts or a dense MLP or both, with norms and sums around them.
#pragma once

#include <vector>

#include "model/attention_module.h"
#include "model/layer.h"
#include "model/mlp.h"
#include "ops/route.h"

namespace dali {

// A layer without experts has no router, one without anything dense no MLP. Norms without a weight are left out.
struct DecoderLayer {
    int hidden;
    Norm before_attention, after_attention, before_mlp, after_mlp;
    const AttentionModule* attention;
    const Router* router;
    const ExpertLayout* layout;  // of the router's experts
    const Mlp* mlp;              // beside experts: the shared one
    Values shared_gate;          // [hidden]: the shared expert's output is multiplied by the sigmoid of x times this
    float residual_scale;        // of what is added to x
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
