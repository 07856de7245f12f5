// Selective state spaces (Mamba2, arXiv 2405.21060), token by token.
#pragma once

#include <vector>

#include "recurrent/recurrence.h"

namespace dali {

// A head's state [state, width] is multiplied by e^(rate * step) and takes step * x (x) B; its output is C times the state, and skip * x.
struct SelectiveScan {
    int heads, width, groups, state;  // heads / groups heads in a row share B and C
    Values rate, step_bias, skip;     // [heads]
    float least_step, most_step;
};

struct ScanCall {
    StridedRows x, in, out;  // [rows, heads * width], B and C [rows, groups * state]
    StridedRows steps;       // [rows, heads], before their bias and softplus
};

// found [rows][heads * width]. States are [heads, state, width padded to 16], float32. Steps round to their dtype as torch would, the
// rest is float32, in one order: a token's bits depend on what comes before it in its sequence alone.
void scan(const SelectiveScan& of, const ScanCall& call, const std::vector<Stretch>& stretches, float* found);

}  // namespace dali
