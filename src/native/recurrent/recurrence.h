// What recurrent layers do with a step's tokens: each sequence's one after another, from what its earlier ones left. A token's result
// depends on those before it in its sequence alone, not on how many come at once, nor on other sequences.
#pragma once

#include <cstdint>
#include <vector>

#include "layout/activations.h"

namespace dali {

// What the state is after so many of a stretch's tokens, fewer than all.
struct Copy {
    int64_t tokens;
    void* to;
};

// A sequence's tokens in the step: where they stand, its state before and after them, and copies in between, in order.
struct Stretch {
    int64_t row, tokens;
    const void* before;
    void* after;
    std::vector<Copy> copies;
};

// Channels that lie together in every token's row.
struct Strip {
    const void* from;    // of the step's first token
    int64_t row_stride;  // in values
    int width;
};

// A causal convolution of each channel by itself.
struct Convolution {
    int channels, width;  // taps
    const float* taps;    // [width][channels]
    const float* bias;    // [channels], or null
    bool silu;            // follows
};

// Strips, in order the convolution's channels, of `dtype` -> out [step's rows, channels] of `out_dtype`. States are [width - 1,
// channels], of `dtype`: the inputs before and after.
void convolve(const Convolution& convolution, const std::vector<Strip>& strips, Dtype dtype, const std::vector<Stretch>& stretches,
              Dtype out_dtype, void* out);

// Values in float32, `stride` from token to token.
struct FloatRows {
    const float* from;
    int64_t stride;
};

// The gated delta rule (arXiv 2412.06464), or with a decay for each channel of keys Kimi's (arXiv 2510.26692).
struct DeltaRule {
    int key_heads, heads;  // each key head serves as many consecutive heads of values
    int key_width, value_width;
    bool by_channel, normalised;  // decays are of each channel of a head; queries and keys are divided by their norms first
};

// query and key [key heads, key width], value [heads, value width], decay, a logarithm, [heads] or [heads, key width], beta [heads] of
// each token -> out [step's rows, heads, value width]. States are [heads, key width, value width], float32.
void delta_rule(const DeltaRule& rule, const FloatRows& query, const FloatRows& key, const FloatRows& value, const FloatRows& decay,
                const FloatRows& beta, const std::vector<Stretch>& stretches, float* out);

}  // namespace dali
