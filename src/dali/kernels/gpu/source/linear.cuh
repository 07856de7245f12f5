// A packed linear, its input quantized by gather_rows; FORMAT and PASSES are fixed when this is compiled.
#pragma once

#include "tiles.cuh"

namespace dali {

struct LinearCall {
    const void* x;  // [tokens, width]
    void* out;      // [tokens, matrix.rows]
    const uint8_t* packed;
    const float* bias;  // null if there is none
    Panel panel;        // of tokens, as wide as the matrix
    Matrix matrix;
    int tokens, width, dtype;
};

// Fills the panel: a warp a group of a token's columns.
DALI_KERNEL gather_rows(LinearCall call) {
    const int groups = call.panel.columns / GROUP;
    const int64_t warp = warp_of_launch();
    if (warp >= int64_t(call.tokens) * groups) return;
    const int64_t token = warp / groups;
    const int group = int(warp % groups), column = group * GROUP + lane_of_warp();
    const float value = column < call.width ? read(call.x, call.dtype, token * call.width + column) : 0.0f;
    if (is_quantized(FORMAT)) quantize_group(call.panel, token, group, value);
    else call.panel.values[token * call.panel.columns + column] = value;
}

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
DALI_KERNEL linear(LinearCall call) {
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

}  // namespace dali
