// Attention to latents: what all heads share, and each makes its keys and values of (DeepSeek-V2).
#pragma once

#include <vector>

#include "layout/format.h"
#include "ops/attention.h"

namespace dali {

// A head's key is keys^T times the latent, and what is rotated, which all heads share; its value is values times the latent. So a
// query asks latents by keys times itself, and what it finds becomes the head's output by values: no head's keys and values are made.
struct LatentHeads {
    int heads, rank, key_width, value_width;  // of a latent; of a head's key without the rotated part, of its value
    Matrix keys, values;                      // of one head: [rank, key_width] and [value_width, rank]
    const uint8_t *packed_keys, *packed_values;  // all heads', one after another
};

struct LatentCall {
    Dtype dtype;
    int rotated;  // width
    float scale;
    Rows query;           // [tokens][heads][key_width + rotated]
    const void* kept;     // [tokens][rank + rotated], contiguous: a latent and the rotated part
    const float* sinks;   // as in AttentionCall
    void* out;            // [tokens][heads][value_width], contiguous
};

// As attend() of ops/attention.h, for tokens of the rows 0, 1, 2, ...: keeps what each is to keep in its `keys`, and nothing in its
// `values`. A token's bits depend on nothing but its sequence.
void attend(const LatentHeads& heads, const LatentCall& call, const std::vector<DecodingToken>& tokens);

}  // namespace dali
