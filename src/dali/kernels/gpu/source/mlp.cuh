// A dense feed-forward network between its linears (src/native/model/mlp.cpp), and the shared expert beside routed ones.
#pragma once

#include "router.cuh"

namespace dali::gpu {

DALI_DEVICE float act_of(int kind, float x) {
    switch (kind) {
        case SILU: return act<SILU>(x);
        case GELU: return act<GELU>(x);
        case GELU_TANH: return act<GELU_TANH>(x);
        case RELU2: return act<RELU2>(x);
        default: return act<RELU>(x);
    }
}

// A warp a (token, 32 columns of the panel).
DALI_KERNEL gate_up(DALI_CALL(GateUpCall) call) {
    const int groups = call.panel.columns / GROUP;
    const int64_t warp = warp_of_launch();
    if (warp >= int64_t(call.tokens) * groups) return;
    const int64_t token = warp / groups;
    const int group = int(warp % groups), column = group * GROUP + lane_of_warp();
    float value = 0;
    if (column < call.width) {
        const int64_t at = token * call.stride + column;
        const float gate = rounded(act_of(call.activation, read(call.gate, call.dtype, at)), call.dtype);
        value = rounded(mul(gate, read(call.up, call.dtype, at)), call.dtype);
    }
    put_group(call.panel, token, group, value);
}

// A warp a (token, 32 columns).
DALI_KERNEL share(DALI_CALL(ShareCall) call) {
    const int pieces = (call.hidden + 31) / 32;
    const int64_t warp = warp_of_launch();
    if (warp >= int64_t(call.tokens) * pieces) return;
    const int64_t token = warp / pieces, from = token * call.hidden;
    float gate = 1;
    if (call.gate) {
        const float logit = rounded(dot(call.gate, call.gate_dtype, 0, call.x, call.dtype, from, call.hidden), call.dtype);
        gate = rounded(sigmoid_of_power(glibc_power(-logit)), call.dtype);
    }
    const int column = int(warp % pieces) * 32 + lane_of_warp();
    if (column >= call.hidden) return;
    float shared = read(call.shared, call.dtype, from + column);
    if (call.gate) shared = rounded(mul(shared, gate), call.dtype);
    write(call.part, call.dtype, from + column, add(read(call.part, call.dtype, from + column), shared));
}

}  // namespace dali::gpu
