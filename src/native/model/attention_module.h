// A whole attention module while decoding: projections, their norms, rotation, attention, output.
#pragma once

#include <vector>

#include "model/parts.h"
#include "ops/attention.h"

namespace dali {

// Which values turn together: value i and the one half the rotated width later, as transformers' rotate_half does, or neighbours.
enum class Turning : int { none, halves, neighbours };

// How queries and keys are rotated: their first `width` values, by `given` values each of cos and sin, `width` or half as many, of
// `dtype`. In the module's own dtype products round to it, in float32 only the sum does.
struct Rotary {
    Turning turning = Turning::none;
    int width = 0, given = 0;
    Dtype dtype = Dtype::f32;
};

struct AttentionModule {
    PackedLinear query, key, value, out;
    Norm query_norm, key_norm;
    bool norms_follow;  // the rotation
    Rotary rotary;
    int heads, kv_heads;
    int width, value_width;  // of a head of queries and keys, of values
    float scale;             // of scores
    float value_scale;
    const float* sinks;
};

// Tells the pool that the module's first projections are what is read next.
void announce(const AttentionModule& module);

// x [rows, hidden] -> out [rows, hidden]; cos and sin [rows, given]; `tokens` as in attend(). Rounds to `dtype` where torch would.
void decode(const AttentionModule& module, const void* x, Dtype dtype, int rows, const void* cos, const void* sin,
            const std::vector<DecodingToken>& tokens, void* out);

}  // namespace dali
