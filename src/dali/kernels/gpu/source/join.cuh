// The weighted sum of each token's choices, in their order, wherever each was computed.
#pragma once

#include "arithmetic.cuh"

namespace dali {

struct JoinCall {
    const float* rows;   // [tokens * top_k, hidden]: the accelerator's
    const float* above;  // [the CPU's pairs, hidden], on the host or here
    const int* place;    // [tokens * top_k]: a pair's row in `above`, or -1 where it is in `rows`
    const void* weights; // [tokens, top_k]
    void* out;           // [tokens, hidden]
    int tokens, top_k, hidden, dtype, weights_dtype;
};

// A warp 32 columns of a token.
DALI_KERNEL join(JoinCall call) {
    const int pieces = (call.hidden + 31) / 32;
    const int64_t warp = warp_of_launch();
    if (warp >= int64_t(call.tokens) * pieces) return;
    const int64_t token = warp / pieces;
    const int column = int(warp % pieces) * 32 + lane_of_warp();
    if (column >= call.hidden) return;
    float sum = 0;
    for (int i = 0; i < call.top_k; i++) {
        const int64_t pair = token * call.top_k + i;
        const float* row = call.place[pair] < 0 ? call.rows + pair * call.hidden : call.above + int64_t(call.place[pair]) * call.hidden;
        const float part = mul(row[column], read(call.weights, call.weights_dtype, pair));
        sum = i ? add(sum, part) : part;
    }
    write(call.out, call.dtype, token * call.hidden + column, sum);
}

}  // namespace dali
