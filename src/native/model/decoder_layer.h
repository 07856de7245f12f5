// A whole decoder layer while decoding: attention, then experts or a dense MLP or both, with norms and sums around them.
#pragma once

#include <variant>
#include <vector>

#include "model/attention_module.h"
#include "model/layer.h"
#include "model/mlp.h"
#include "ops/route.h"
#include "recurrent/delta_net.h"
#include "recurrent/mamba2.h"

namespace dali {

// Where a layer's tokens meet those before them, if they do.
using Mixer = std::variant<std::monostate, const AttentionModule*, const DeltaNet*, const ShortConvolution*, const Mamba2*>;

// What a mixer keeps of a step's sequences: keys and values, or the states of a recurrent one.
struct Kept {
    std::vector<DecodingToken> tokens;
    States states;
};

void announce(const Mixer& mixer);

// Where experts stand beside a dense MLP and not in one block with it: norms of their own input and of the router's, of their output
// and of the MLP's.
struct Beside {
    Norm before_router, before_experts, after_experts, after_mlp;
};

// A layer without experts has no router, one without anything dense no MLP; it may have no mixer, or nothing but that. Norms without a
// weight are left out.
struct DecoderLayer {
    int hidden;
    Norm before_attention, after_attention, before_mlp, after_mlp;
    Mixer mixer;
    const Router* router;
    const ExpertLayout* layout;  // of the router's experts
    int64_t* workload;           // as LayerCall has it
    const Mlp* mlp;              // beside experts: the shared one
    Values shared_gate;          // [hidden]: the shared expert's output is multiplied by the sigmoid of x times this
    float residual_scale;        // of what is added to x
    Beside beside;               // without weights where they are not
    Values output_scale;         // a single one, of what the layer gives; null: there is none
};

struct LayerOutcome {
    int active;  // experts that took part
    double expert_seconds;
};

// x [rows, hidden] -> out [rows, hidden], which may be x; `experts`: the layer's, in this call; `kept` by its mixer; the rest
// as in decode(). Rounds to `dtype` where torch would. `next`: the layer that follows at once, or null.
LayerOutcome decode_layer(const DecoderLayer& layer, const DecoderLayer* next, const LayerExperts& experts, const void* x, Dtype dtype,
                          int rows, const void* cos, const void* sin, const Kept& kept, void* out);

}  // namespace dali
