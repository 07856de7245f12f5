// A whole mixer of Mamba2: projection, convolution, selective scan, a norm with a gate, projection.
#pragma once

#include "recurrent/delta_net.h"
#include "recurrent/selective_scan.h"

namespace dali {

struct Mamba2 {
    PackedLinear in, out;     // of [gate, the convolution's channels: x, then B, then C of all groups; steps of the heads]
    Convolution convolution;
    SelectiveScan scan;
    Values norm;  // [heads * width]: of what the scan gives times silu(gate), each `group` values by themselves
    int group;
    float epsilon;
};

void announce(const Mamba2& module);

// x [rows, hidden] -> out [rows, hidden]. Rounds to `dtype` as torch does for several tokens.
void mix(const Mamba2& module, const void* x, Dtype dtype, int rows, const States& states, void* out);

}  // namespace dali
