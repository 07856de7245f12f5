// A whole attention module while decoding: projections, their norms, rotation, attention, output.
#pragma once

#include <variant>
#include <vector>

#include "model/parts.h"
#include "ops/attention.h"
#include "ops/latent/heads.h"

namespace dali {

// Which values turn together: value i and the one half the rotated width later, as transformers' rotate_half does, or neighbours; or
// neighbours that lie half the width apart afterwards.
enum class Turning : int { none, halves, neighbours, unzipped };

// How queries and keys are rotated: `width` of their values, by `given` values each of cos and sin, `width` or half as many, of
// `dtype`. In the module's own dtype products round to it, in float32 only the sum does.
struct Rotary {
    Turning turning = Turning::none;
    int width = 0, given = 0;
    Dtype dtype = Dtype::f32;
};

// Queries, keys and values from linears of their own. The first values of a head are rotated.
struct Projections {
    PackedLinear query, key, value;
    Norm query_norm, key_norm;
    bool norms_follow;  // the rotation
    float value_scale;
    bool gated;  // behind each head's query are as many values, by whose sigmoid what it found is multiplied
    Norm value_norm;
};

// Keys and values from a latent, as DeepSeek-V2 has them: keys_down makes the latent [rank], and behind it what all heads' keys end
// with, which is rotated; these are what is kept, and attended to. Queries may have a latent too.
struct LatentProjections {
    std::vector<PackedLinear> query_down;  // none or one
    Norm query_norm;                       // of its latent
    PackedLinear query, keys_down;
    Norm keys_norm;
    LatentHeads heads;
};

struct AttentionModule {
    std::variant<Projections, LatentProjections> projections;
    PackedLinear out;
    Rotary rotary;
    int heads, kv_heads;     // kv_heads: 1 where all share latents
    int width, value_width;  // of a head of queries and keys, of values
    float scale;             // of scores
    const float* sinks;
};

// Tells the pool that the module's first projections are what is read next.
void announce(const AttentionModule& module);

// x [rows, hidden] -> out [rows, hidden]; cos and sin [rows, given]; `tokens`, of the rows in order, as in attend(). Rounds to `dtype` where torch would.
void decode(const AttentionModule& module, const void* x, Dtype dtype, int rows, const void* cos, const void* sin,
            const std::vector<DecodingToken>& tokens, void* out);

}  // namespace dali
