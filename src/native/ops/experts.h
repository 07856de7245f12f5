// All experts of one layer's step that the CPU computes, in one call.
#pragma once

#include <cstdint>

#include "layout/activations.h"
#include "kernels/variant.h"

namespace dali {

// One expert's record: its packed matrices and float32 biases (src/dali/kernels/expert.py).
struct ExpertLayout {
    int hidden = 0, intermediate = 0;
    bool gated = true, biased = false;
    Gate gate_kind;
    Matrix gate, up, down;
    size_t gate_at = 0, up_at = 0, down_at = 0;  // bytes into the record
    size_t gate_bias_at = 0, up_bias_at = 0, down_bias_at = 0;
};

struct ExpertsCall {
    int experts;
    const uint8_t* const* records;  // [experts]
    const int64_t* offsets;         // [experts + 1]: expert i computes pairs[offsets[i] .. offsets[i + 1])
    const int64_t* pairs;           // each token * top_k + choice
    int top_k;
    const void* hidden;  // [tokens, hidden]
    Dtype dtype;
    float* rows;  // [tokens * top_k, hidden], written at the pairs: outputs, not yet weighted
};

void compute_experts(const ExpertLayout& layout, const ExpertsCall& call);

// out [tokens, hidden] = weighted sum of each token's top_k rows, in the order of choices.
void reduce_choices(const float* rows, const float* weights, int tokens, int top_k, int hidden, Dtype dtype, void* out);

}  // namespace dali
