// A packed linear, its input quantized by gather_rows; FORMAT and PASSES are fixed when this is compiled.
#pragma once

#include "tiles.cuh"

namespace dali::gpu {

DALI_KERNEL gather_rows(DALI_CALL(GatherCall) call) { fill_panel<FORMAT>(call); }

DALI_DEVICE void put_product(const LinearCall& call, int token, int row, float sum) {
    if (token >= call.tokens || row >= call.matrix.rows) return;
    if (call.bias) sum = add(sum, call.bias[row]);
    write(call.out, call.dtype, int64_t(token) * call.matrix.rows + row, sum);
}

template <int passes>
DALI_DEVICE void linear_strip(const LinearCall& call, int64_t strip, int first) {
    Sums<passes> sums{};
    multiply_strip<FORMAT>(call.packed, call.matrix, strip, call.panel,
                           [&](int i) { return first + i < call.tokens ? int64_t(first + i) : -1; }, sums);
    const int lane = lane_of_warp(), row = int(strip) * STRIP_ROWS + first_row_of(lane);
#pragma unroll
    for (int p = 0; p < passes; p++)
        for (int i = 0; i < 2; i++)
            for (int r = 0; r < 4; r++) put_product(call, first + p * PASS + 2 * (lane % 4) + i, row + r, sums.of[p][r][i]);
}

// A warp a strip of the matrix.
DALI_KERNEL linear(DALI_CALL(LinearCall) call) {
    const int64_t strip = warp_of_launch();
    if (strip >= (call.matrix.rows + STRIP_ROWS - 1) / STRIP_ROWS) return;
    int first = 0;
    if (!is_quantized(FORMAT)) {
        for (; first < call.tokens; first += PASS) {
            float sums[PASS];
            multiply_rows<FORMAT>(call.packed, call.matrix, strip, call.panel,
                                  [&](int i) { return first + i < call.tokens ? int64_t(first + i) : -1; }, sums);
            for (int i = 0; i < PASS; i++) put_product(call, first + i, int(strip) * STRIP_ROWS + lane_of_warp(), sums[i]);
        }
        return;
    }
    for (; first < call.tokens; first += PASSES * PASS) linear_strip<PASSES>(call, strip, first);
}

}  // namespace dali::gpu
