// A dense feed-forward network: a layer's own, or the shared expert beside routed ones.
#pragma once

#include <vector>

#include "kernels/variant.h"
#include "model/parts.h"

namespace dali {

struct Mlp {
    std::vector<PackedLinear> first;  // gate and up, or one linear with the rows of both, or up alone: a network without a gate
    PackedLinear down;
    Activation activation;
};

// x [rows, hidden] -> out [rows, hidden]: down of act(gate) * up, or of act(up). Rounds to `dtype` where torch would.
void compute(const Mlp& mlp, const void* x, Dtype dtype, int rows, void* out);

}  // namespace dali
