// Layers whose tokens meet in a recurrent state: gated delta nets as Qwen3-Next's and Kimi's, LFM2's gated short convolution.
#pragma once

#include <vector>

#include "model/parts.h"
#include "recurrent/recurrence.h"

namespace dali {

// A module's states in one step, of each kind that it keeps: the windows of its convolution, and then what its rule made of all tokens.
using States = std::vector<std::vector<Stretch>>;

// Where heads' values lie in the outputs of the first projections: in runs of `group` heads, `outer` values apart, and within a run
// `inner` apart.
struct Field {
    int projection, begin, group, outer, inner;
    int at(int head) const { return begin + head / group * outer + head % group * inner; }
};

// A linear of what another made of x, which is the projection of that number.
struct Raised {
    int from;
    PackedLinear linear;
};

struct DeltaNet {
    std::vector<PackedLinear> in;
    std::vector<Raised> raised;  // the next projections
    PackedLinear out;
    DeltaRule rule;
    Convolution convolution;  // of all heads' queries, then keys, then values
    Field query, key, value, gate, beta, decay;
    const float *rate, *offset;  // [heads], and [heads] or [heads, key width]: a decay's logarithm is rate * softplus(value + offset)
    const float* norm;           // [value width]: of what the rule gives, before it is multiplied by silu(gate) or sigmoid(gate)
    float epsilon;
    bool by_sigmoid;
};

struct ShortConvolution {
    PackedLinear in, out;     // of [before, after, x], each as wide as the convolution: after * convolution(before * x)
    Convolution convolution;
};

void announce(const DeltaNet& module);
void announce(const ShortConvolution& module);

// x [rows, hidden] -> out [rows, hidden]. A short convolution rounds to `dtype` where torch would, a delta net at its projections alone.
void mix(const DeltaNet& module, const void* x, Dtype dtype, int rows, const States& states, void* out);
void mix(const ShortConvolution& module, const void* x, Dtype dtype, int rows, const States& states, void* out);

}  // namespace dali
