// Attention of a step's tokens to what their sequences keep.
#pragma once

#include <cstdint>
#include <vector>

#include "layout/activations.h"

namespace dali {

// The new token of one sequence: its row in the step, and where its keys and values are kept.
struct DecodingToken {
    int64_t row;
    char* keys;    // [kv heads][capacity][key width]
    char* values;  // [kv heads][capacity][value width]
    int64_t capacity;
    int64_t place;  // of the new token; those before it are there already
    int64_t first;  // oldest one it sees
    bool in_q8;     // whether keys and values are kept in 8 bits: rows of bytes (layout/kept_rows.h)
};

// Elements from one row or head to the next; the width is contiguous.
struct Rows {
    const void* from;
    int64_t row_stride, head_stride;
};

struct AttentionCall {
    Dtype dtype;  // of all tensors
    int heads, kv_heads, key_width, value_width;
    float scale;
    Rows query, keys, values;  // of the step's tokens
    const float* sinks;        // [heads], one more logit each without a value; null if there are none
    void* out;                 // [tokens, heads, value width], contiguous
    // All heads share one of keys, whose first values are its values, too: `kv_heads` only says how heads are shared out. Queries and
    // out are float32 then, and nothing is kept in a token's `values`.
    bool latent = false;
};

// Keeps the keys and values of `tokens`, several of which may be of one sequence, in order, and writes their rows of `out`. All of them,
// also the new ones, are attended to as they are kept. Long sequences are attended to in parts of one fixed length, merged in order (as
// FlashDecoding does), so a result depends on nothing but its sequence.
void attend(const AttentionCall& call, const std::vector<DecodingToken>& tokens);

// The `count` tokens of one sequence of which `first` is the first; each sees those before it, and of them at most `window`, itself
// included, if that is not 0.
std::vector<DecodingToken> following(const DecodingToken& first, int count, int64_t window);

// The same for those tokens.
void attend(const AttentionCall& call, const DecodingToken& first, int count, int64_t window);

}  // namespace dali
