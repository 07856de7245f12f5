// A whole attention module while decoding: projections, their norms, rotation, attention, output.
#pragma once

#include <vector>

#include "ops/attention.h"
#include "layout/format.h"
#include "threads/pool.h"

namespace dali {

struct PackedLinear {
    Matrix matrix;
    const uint8_t* packed;
    int columns;        // unpadded
    const float* bias;  // null if there is none
};

struct Norm {
    const void* weight = nullptr;  // null if there is none
    int width = 0;
    float epsilon = 0;
};

// heads of one width for queries, keys and values; rotated in halves, as transformers' rotate_half does.
struct AttentionModule {
    PackedLinear query, key, value, out;
    Norm query_norm, key_norm;
    int heads, kv_heads, width;
    float scale;
    const float* sinks;
};

// What its weights take.
Span span(const PackedLinear& linear);

// Tells the pool that the module's first projections are what is read next.
void announce(const AttentionModule& module);

// x [rows, hidden] -> out [rows, hidden]; cos and sin [rows, width]; `tokens` as in attend(). Rounds to `dtype` where torch would.
void decode(const AttentionModule& module, const void* x, Dtype dtype, int rows, const void* cos, const void* sin,
            const std::vector<DecodingToken>& tokens, void* out);

}  // namespace dali
