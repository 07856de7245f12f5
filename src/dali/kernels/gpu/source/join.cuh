// The weighted sum of each token's choices, in their order, wherever each was computed.
#pragma once

#include "arithmetic.cuh"
#include "calls.h"

namespace dali::gpu {

// A warp 32 columns of a token.
DALI_KERNEL join(DALI_CALL(JoinCall) call) {
    const int pieces = (call.hidden + 31) / 32;
    const int64_t warp = warp_of_launch();
    if (warp >= int64_t(call.tokens) * pieces) return;
    const int64_t token = warp / pieces;
    const int column = int(warp % pieces) * 32 + lane_of_warp();
    if (column >= call.hidden) return;
    float sum = 0;
    for (int i = 0; i < call.top_k; i++) {
        const int64_t pair = token * call.top_k + i;
        const bool on_cpu = call.places ? call.places[pair] != 0 : call.on_cpu[pair / 32] >> pair % 32 & 1;
        const float part = mul((on_cpu ? call.above : call.rows)[pair * call.hidden + column], read(call.weights, call.weights_dtype, pair));
        sum = i ? add(sum, part) : part;
    }
    write(call.out, call.dtype, token * call.hidden + column, sum);
}

}  // namespace dali::gpu
