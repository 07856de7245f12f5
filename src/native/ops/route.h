// A router: which experts each token takes, and with what weights.
#pragma once

#include <cstdint>

#include "layout/activations.h"

namespace dali {

enum class Score : int { softmax, sigmoid };

// logits = x weight^T + bias, rounded to `rounded`; scores of them in float32, rounded to `scored`. A token takes the experts of the highest score (or
// logit) plus correction, those of its best groups alone. Their scores are the weights: over their sum (`floor` at least) plus epsilon if
// `normalise`, times `scale` and the expert's own of `expert_scales`.
struct Router {
    Values weight;  // [experts, hidden], float32 or bfloat16
    int hidden, experts, top_k;
    Score score;
    Values bias, correction;  // [experts]
    bool by_logit;            // a token takes the highest logits, not scores
    int groups, kept_groups, judged;  // a group's worth is the sum of its `judged` highest
    bool normalise;
    float epsilon, floor, scale;
    Dtype rounded, scored, logits_dtype, weights_dtype;
    Values expert_scales;  // [experts]
};

// x [tokens, hidden] of `dtype` -> logits [tokens, experts] of logits_dtype, weights [tokens, top_k] of weights_dtype, and ids
// [tokens, top_k], the highest first. NaN ranks highest, as in torch.
void route(const Router& router, const void* x, Dtype dtype, int tokens, void* logits, void* weights, int64_t* ids);

// One logit a token, out [tokens] of `dtype`: x [tokens, hidden] times weight [hidden], which is as a router's.
void gate_logits(const Values& weight, int hidden, const void* x, Dtype dtype, int tokens, void* out);

}  // namespace dali
